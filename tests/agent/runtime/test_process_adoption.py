"""What becomes of tasks when agents and supervisors are killed: adoption, proof of identity, leftovers."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent.runtime import base, process
from agent.runtime.process import proof
from skep import clock, ids
from tests.agent.runtime import processes, workloads


def test_leftovers_of_a_killed_supervisor(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload("sh", "-c", "setsid sleep 600 & echo $!; exec sleep 601")
        seen = await workloads.run(runtime, work)
        text = await workloads.until(
            lambda: workloads.output(runtime, work.task.id), lambda text: "\n" in text, what="output"
        )
        shim_pid = json.loads((tmp_path / work.task.id / "run.json").read_text())["shim_pid"]
        os.kill(shim_pid, signal.SIGKILL)
        ended = await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
        assert (ended.exit_code, ended.error) == (137, "its supervisor was killed")
        await processes.wait_gone(seen.pid)
        await processes.wait_gone(int(text.split()[0]))

    processes.with_runtime(tmp_path, body)


AGENT = """
import asyncio, pathlib, sys
from agent.runtime import process
from skep import clock, ids
from tests.agent.runtime import workloads

async def main():
    runtime = process.ProcessRuntime(node_id=workloads.NODE_ID, directory=pathlib.Path(sys.argv[1]),
                                     clock=clock.SystemClock(), rng=ids.system_rng())
    await runtime.open()
    work = workloads.workload(*sys.argv[3:], task_id=sys.argv[2])
    await workloads.run(runtime, work)
    print("started", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@contextlib.contextmanager
def killed_agent(directory: pathlib.Path, task_id: str, *command: str) -> Iterator[None]:
    root = pathlib.Path(__file__).resolve().parents[3]
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(directory), task_id, *command], stdout=subprocess.PIPE, cwd=root
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"started\n"
    finally:
        agent.kill()
        agent.communicate()
    yield


def test_tasks_outlive_a_killed_agent(tmp_path: pathlib.Path) -> None:
    gate, task_id = tmp_path / "gate", ids.new_id(workloads.RNG)
    os.mkfifo(gate)

    async def adopt() -> None:
        async with processes.opened(tmp_path / "tasks") as runtime:
            seen = await runtime.observe(task_id)
            assert seen.phase is base.Phase.RUNNING
            assert not processes.gone(seen.pid)
            events = runtime.events()
            await asyncio.to_thread(gate.write_text, "go\n")  # now it may end: with an agent that never was its parent
            async with asyncio.timeout(workloads.DEADLINE_S):
                while (await runtime.observe(task_id)).phase is not base.Phase.EXITED:
                    await anext(events)
            assert (await runtime.observe(task_id)).exit_code == 42
            assert await workloads.output(runtime, task_id) == "before\nafter go\n"

    command = ["sh", "-c", f"echo before; read word < {gate}; echo after $word; exit 42"]
    with killed_agent(tmp_path / "tasks", task_id, *command):
        asyncio.run(adopt())


def test_exit_while_no_agent_was_there(tmp_path: pathlib.Path) -> None:
    gate, task_id = tmp_path / "gate", ids.new_id(workloads.RNG)
    os.mkfifo(gate)

    async def look() -> None:
        async with processes.opened(tmp_path / "tasks") as runtime:
            seen = await workloads.phase(runtime, task_id, base.Phase.EXITED)
            assert seen.exit_code == 9

    with killed_agent(tmp_path / "tasks", task_id, "sh", "-c", f"read word < {gate}; exit 9"):
        gate.write_text("go\n")
        asyncio.run(look())


@pytest.mark.parametrize("field", ["shim_start", "boot_id"])
def test_a_reused_pid_is_neither_adopted_nor_touched(tmp_path: pathlib.Path, field: str) -> None:
    stranger = subprocess.Popen(["sleep", "600"])

    async def main() -> None:
        async with processes.opened(tmp_path) as runtime:
            work = workloads.workload("sleep", "601")
            await runtime.prepare(work, lambda _: None)
            start = proof.status(stranger.pid)
            assert start is not None
            run = {
                "boot_id": proof.boot_id(), "shim_pid": stranger.pid, "shim_start": start.start,
                "pid": stranger.pid, "pid_start": start.start, "started_at": 0.0,
            }  # fmt: skip
            run |= {"boot_id": "another"} if field == "boot_id" else {"shim_start": 1, "pid_start": 1}
            (tmp_path / work.task.id / "run.json").write_text(json.dumps(run))
            second = processes.make(tmp_path)
            await second.open()
            assert (await second.observe(work.task.id)).phase is base.Phase.EXITED
            await second.stop(work)
            await second.remove(work.task.id)
            await second.close()

    try:
        asyncio.run(main())
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_start_that_is_broken_off_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        for pauses in range(0, 30, 3):  # cancelled at ever later moments
            work = workloads.workload("sleep", "6543")
            await runtime.prepare(work, lambda _: None)
            starting = asyncio.create_task(runtime.start(work))
            for _ in range(pauses):
                await asyncio.sleep(0.001)
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            await runtime.remove(work.task.id)
            assert await runtime.observe(work.task.id) == base.ABSENT
            marks = [f"SKEP_TASK_ID={work.task.id}"]
            assert not [pid for pid in proof.pids() if proof.environ_holds(pid, marks)]
        assert not list(tmp_path.iterdir())

    processes.with_runtime(tmp_path, body)


def test_close_stops_nothing_and_another_nodes_tasks_are_not_ours(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        work = workloads.workload("sleep", "600")
        first = processes.make(tmp_path)
        await first.open()
        before = await workloads.run(first, work)
        await first.close()
        assert not processes.gone(before.pid)
        other = process.ProcessRuntime(
            node_id="another", directory=tmp_path, clock=clock.SystemClock(), rng=ids.system_rng()
        )
        await other.open()
        assert await other.list() == []
        await other.close()
        async with processes.opened(tmp_path) as again:
            assert await again.observe(work.task.id) == before

    asyncio.run(main())
