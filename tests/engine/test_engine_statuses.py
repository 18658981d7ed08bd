"""What a worker tells of tasks on a real engine: health, exit codes, signals, memory, starts that fail, last lines."""

import asyncio

import pytest

from agent.runtime import docker
from skep import pb
from tests.agent.runtime import workloads
from tests.engine import conftest, dockerd, working

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
# Whoever looks finds a way between the states by files in the container.
HEALTH = pb.HealthConfig(
    test=["CMD-SHELL", "touch /tmp/asked; test -e /tmp/ok"], interval=100_000_000, retries=2, timeout=5_000_000_000,
    start_period=600_000_000_000,
)  # fmt: skip


def run(node: conftest.Node, container: str, *command: str) -> str:
    """Runs a command in the container; what it printed."""
    made = dockerd.call(
        node.engine.socket, "POST", f"/containers/{container}/exec", {"Cmd": list(command), "AttachStdout": True}
    )
    printed = dockerd.call(node.engine.socket, "POST", f"/exec/{made['Id']}/start", {"Detach": False, "Tty": True})
    return printed.decode() if isinstance(printed, bytes) else str(printed)


def test_a_task_is_starting_until_it_is_healthy_and_fails_when_it_is_not_any_more(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        async with working.working(node, runtime) as made:
            task_id = working.new_id()
            made.assign(task_id, full=True, health=HEALTH)
            await made.reach(task_id, "STARTING")
            await made.until(lambda: bool(made.container(task_id)[0]), what="a container in the status")
            container = made.container(task_id)[0]

            await workloads.until(
                lambda: asyncio.to_thread(run, node, container, "ls", "/tmp"),
                lambda listed: "asked" in listed,
                what="a health check",
            )
            assert made.worker.statuses()[task_id].state == pb.TASK_STATE_STARTING
            await asyncio.to_thread(run, node, container, "touch", "/tmp/ok")
            await made.reach(task_id, "RUNNING")
            await asyncio.to_thread(run, node, container, "rm", "/tmp/ok")
            await made.reach(task_id, "FAILED")
            status = made.worker.statuses()[task_id]
            assert status.err == "task: non-zero exit (143): unhealthy container"
            assert (status.container.container_id, status.container.exit_code) == (container, 143)

    node.run(body)


@pytest.mark.parametrize(
    ("args", "memory_bytes", "err", "printed"),
    [
        (("sh", "-c", "echo one; echo two >&2; exit 3"), 0, "task: non-zero exit (3)", ["one", "two"]),
        (
            ("sh", "-c", "echo before; exec tail /dev/zero"), 16 * MIB,
            "task: non-zero exit (137): out of memory", ["before"],
        ),
        (("sh", "-c", "echo bye; kill -9 $$"), 0, "task: non-zero exit (137): killed by SIGKILL", ["bye"]),
    ],
    ids=["exit code", "out of memory", "signal"],
)  # fmt: skip
def test_how_a_task_ended_is_told_with_its_last_lines(
    node: conftest.Node, args: tuple[str, ...], memory_bytes: int, err: str, printed: list[str]
) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        async with working.working(node, runtime) as made:
            task_id = working.new_id()
            made.assign(task_id, full=True, args=args, memory_bytes=memory_bytes)
            await made.reach(task_id, "FAILED")
            status = made.worker.statuses()[task_id]
            assert (status.err, sorted(status.last_output.splitlines())) == (err, printed)

    node.run(body)


def test_a_start_that_fails_is_told_in_the_engines_words(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        async with working.working(node, runtime) as made:
            task_id = working.new_id()
            made.assign(task_id, full=True, args=["/no/such/program"], init=False)
            await made.reach(task_id, "FAILED")
            status = made.worker.statuses()[task_id]
            assert "/no/such/program" in status.err
            assert "no such file or directory" in status.err
            assert status.container.exit_code == 127

    node.run(body)
