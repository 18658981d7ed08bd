"""The real docker command, as installed here, against the API over a fake machine: it must take skep for an engine."""

import asyncio
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable

import pytest

from manager.http import api, server
from skep import pb
from tests.manager.http import fake_machine

COMMANDS = sorted(
    {
        str(pathlib.Path(found).resolve())
        for folder in os.environ.get("PATH", "").split(os.pathsep)
        if (found := shutil.which("docker", path=folder))
    }
)
COMMAND_S = 30.0

pytestmark = pytest.mark.skipif(not COMMANDS, reason="no docker command on this machine")


class Docker:
    """Runs the command against one socket."""

    def __init__(self, command: str, path: pathlib.Path, home: str, machine: fake_machine.FakeMachine) -> None:
        self._command = command
        self._path = path
        self._home = home
        self.machine = machine
        assert machine.manager is not None
        self.manager = machine.manager

    async def __call__(self, *arguments: str, code: int = 0) -> str:
        """Standard output (and error, when it is to fail) of one command that must exit with `code`."""
        process = await asyncio.create_subprocess_exec(
            self._command, "-H", f"unix://{self._path}", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
            env={"HOME": self._home, "PATH": os.environ["PATH"]},
        )  # fmt: skip
        try:
            async with asyncio.timeout(COMMAND_S):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == code, (arguments, out, err)
        return out.decode() if code == 0 else (out + err).decode()


async def live(machine: fake_machine.FakeMachine) -> None:
    """The cluster goes on whenever something was changed."""
    assert machine.manager is not None
    changed = asyncio.Event()
    watch = machine.manager.store.watch((), changed.set)
    try:
        while True:
            await changed.wait()
            changed.clear()
            await machine.settle()
    finally:
        watch.close()


def with_docker(command: str, work: Callable[[Docker], Awaitable[None]]) -> None:
    async def main() -> None:
        machine = fake_machine.FakeMachine()
        await machine.found()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "docker.sock"
            front = server.HttpServer(api.Api(machine), path)
            await front.start()
            living = asyncio.create_task(live(machine))
            try:
                await work(Docker(command, path, folder, machine))
            finally:
                living.cancel()
                await asyncio.gather(living, return_exceptions=True)
                await front.stop()

    asyncio.run(main())


@pytest.fixture(params=COMMANDS or ["docker"])
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_service_through_its_life(command: str) -> None:
    async def work(docker: Docker) -> None:
        created = await docker(
            "service", "create", "--detach", "--name", "web", "--replicas", "3", "--publish",
            "mode=host,target=80", "--env", "A=1", "--label", "tier=front", "--constraint",
            "node.role==worker", "--limit-memory", "64m", "--restart-delay", "1s", "--update-parallelism", "2",
            "--no-resolve-image", "nginx:1", "sleep", "100",
        )  # fmt: skip
        await docker.machine.settle()
        assert docker.manager.store.view().services.get(created.split()[0]) is not None
        listed = (await docker("service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}}")).strip()
        assert listed == "web replicated 3/3 nginx:1"
        rows = (await docker("service", "ps", "web", "--format", "{{.Name}} {{.Node}} {{.CurrentState}}")).splitlines()
        assert sorted(row.split()[0] for row in rows) == ["web.1", "web.2", "web.3"]
        assert {row.split()[1] for row in rows} <= {"n1", "n2"}
        assert all("Running" in row for row in rows)
        (shown,) = json.loads(await docker("service", "inspect", "web"))
        container = shown["Spec"]["TaskTemplate"]["ContainerSpec"]
        assert (container["Args"], container["Env"]) == (["sleep", "100"], ["A=1"])
        pretty = await docker("service", "inspect", "--pretty", "web")
        assert "Replicas:\t3" in pretty
        assert "web" in await docker("service", "scale", "--detach", "web=5")
        await docker("service", "update", "--detach", "--image", "nginx:2", "--no-resolve-image", "web")
        (shown,) = json.loads(await docker("service", "inspect", "web"))
        assert shown["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "nginx:1"
        await docker("service", "rollback", "--detach", "web")
        listed = await docker("service", "ls", "--filter", "name=web", "--format", "{{.Image}} {{.Replicas}}")
        assert listed.startswith("nginx:1 ")
        await docker("service", "rm", "web")
        assert await docker("service", "ls", "-q") == ""
        assert "no such service: web" in await docker("service", "inspect", "web", code=1)

    with_docker(command, work)


def test_waiting_for_convergence(command: str) -> None:
    async def work(docker: Docker) -> None:
        quick = ("--no-resolve-image", "--update-monitor", "50ms")
        out = await docker("service", "create", "--name", "web", "--replicas", "2", *quick, "nginx:1")
        assert "converged" in out
        # Here an update is over before the command looks: it sees "completed" and ends without a display.
        await docker("service", "update", "--image", "nginx:2", "--no-resolve-image", "web")
        (shown,) = json.loads(await docker("service", "inspect", "web"))
        assert shown["UpdateStatus"]["State"] == "completed"
        await docker("service", "update", "--force", "--no-resolve-image", "web")
        await docker("service", "scale", "web=4")
        await docker("service", "rollback", "web")
        listed = await docker("service", "ls", "--format", "{{.Replicas}}")
        assert listed.strip() == "2/2"

    with_docker(command, work)


def test_nodes_and_swarm(command: str) -> None:
    async def work(docker: Docker) -> None:
        rows = (await docker("node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}")).splitlines()
        assert [row.strip() for row in rows] == ["n0 Ready Leader", "n1 Ready", "n2 Ready"]
        await docker("node", "update", "--availability", "drain", "--label-add", "disk=ssd", "n1")
        (shown,) = json.loads(await docker("node", "inspect", "n1"))
        assert shown["Spec"] == {"Labels": {"disk": "ssd"}, "Role": "worker", "Availability": "drain"}
        assert "Hostname:" in await docker("node", "inspect", "--pretty", "self")
        await docker("service", "create", "--detach", "--name", "a", "--replicas", "2", "--no-resolve-image", "nginx:1")
        await docker.machine.settle()
        assert "a." in await docker("node", "ps", "n0", "n2")
        assert "can't be removed" in await docker("node", "rm", "n1", code=1)
        await docker("node", "rm", "--force", "n1")
        token = (await docker("swarm", "join-token", "-q", "worker")).strip()
        again = (await docker("swarm", "join-token", "-q", "--rotate", "worker")).strip()
        assert token != again
        await docker("swarm", "update", "--task-history-limit", "2")
        assert docker.manager.store.view().cluster.spec.orchestration.task_history_retention_limit == 2
        assert "Is Manager: true" in await docker("info")
        assert "skep" in await docker("version")
        assert "cluster manager" in await docker("node", "rm", "--force", "n0", code=1)

    with_docker(command, work)


def test_logs(command: str) -> None:
    async def work(docker: Docker) -> None:
        await docker("service", "create", "--detach", "--name", "a", "--no-resolve-image", "nginx:1")
        await docker.machine.settle()
        (task,) = docker.manager.store.view().tasks
        docker.manager.logs.add(task.id, b"hello\n")
        docker.manager.logs.add(task.id, b"trouble\n", stream=pb.LOG_STREAM_STDERR)
        out = await docker("service", "logs", "--timestamps", "a")
        assert "hello" in out
        assert "a.1." in out
        assert await docker("service", "logs", "--raw", "a") == "hello\n"
        out = await docker("service", "logs", task.id)
        assert "hello" in out

    with_docker(command, work)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("service", "create", "--name", "a b", "nginx"), "name must be valid as a DNS name component"),
        (("service", "create", "--constraint", "foo", "nginx"), "constraint expected one operator from ==, !="),
        (("service", "create", "--publish", "80:80", "nginx"), "use mode=host"),
        (("service", "create", "--mode", "global", "--env", "A={{.Nope}}", "nginx"), "expanding env failed"),
        (("service", "create", "--limit-memory", "1k", "nginx"), "Must be at least 4MiB"),
        (("service", "update", "nope"), "nope"),
        (("service", "ps", "nope"), "no such service: nope"),
        (("node", "inspect", "nope"), "nope"),
        (("inspect", "nope"), "No such object: nope"),
        (("network", "create", "-d", "overlay", "n"), "this version of skep does not implement networks"),
    ],
)
def test_errors(command: str, arguments: tuple[str, ...], text: str) -> None:
    async def work(docker: Docker) -> None:
        extra = ("--no-resolve-image", "--detach") if arguments[1] == "create" and arguments[0] == "service" else ()
        out = await docker(*arguments[:2], *extra, *arguments[2:], code=1)
        assert text.lower() in out.lower()
        assert '{"message"' not in out

    with_docker(command, work)
