"""Commands, files, figures and connections of tasks that are processes."""

import asyncio
import contextlib
import io
import os
import pathlib
import tarfile

import pytest

from agent.runtime import base, process
from skep import errors, pb
from tests.agent.runtime import processes, wired, workloads

SLEEPER = ("sh", "-c", "exec sleep 1000")


def shell(script: str, *, tty: bool = False, stdin: bool = False, env: tuple[str, ...] = (), user: str = "",
          folder: str = "") -> pb.ExecStart:  # fmt: skip
    return pb.ExecStart(command=["sh", "-c", script], tty=tty, stdin=stdin, env=env, user=user, dir=folder)


async def ended(pipe: wired.Pipe) -> None:
    """Ends the runtime's side as the agent does, and waits for the last output."""
    pipe.runtime.end()
    async with asyncio.timeout(10):
        await pipe.manager.ended()
        await asyncio.sleep(0)


def test_a_command_runs_where_the_task_runs(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(*SLEEPER, container=pb.ContainerSpec(image="process", env=["COLOUR=blue"]))
        await workloads.run(runtime, work)
        async with wired.piped() as pipe:
            script = 'echo "$COLOUR $MORE $SKEP_TASK_ID"; pwd; echo complaint >&2; exit 7'
            code = await runtime.access.exec(work.task.id, shell(script, env=("MORE=yes",)), pipe.runtime)
            await ended(pipe)
            assert code == 7
            lines = pipe.out.decode().splitlines()
            assert lines[0] == f"blue yes {work.task.id}"
            assert lines[1] == str(tmp_path / work.task.id / "work")
            assert pipe.err == b"complaint\n"
        async with wired.piped() as pipe:
            assert await runtime.access.exec(work.task.id, pb.ExecStart(command=["nonsense"]), pipe.runtime) == 127
            await ended(pipe)
            assert b"exec nonsense: executable file not found" in pipe.err
        async with wired.piped() as pipe:
            assert await runtime.access.exec(work.task.id, shell("kill -9 $$"), pipe.runtime) == 137
        async with wired.piped() as pipe:
            with pytest.raises(errors.Invalid, match="write KEY=VALUE"):
                await runtime.access.exec(work.task.id, shell(":", env=("NONSENSE",)), pipe.runtime)

    processes.with_runtime(tmp_path, body)


def test_input_reaches_a_command_and_its_end_too(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(*SLEEPER)
        await workloads.run(runtime, work)
        async with wired.piped() as pipe:
            running = asyncio.create_task(runtime.access.exec(work.task.id, shell("wc -c", stdin=True), pipe.runtime))
            await pipe.manager.ready()
            await pipe.manager.send(b"x" * 1_000_000)
            pipe.manager.eof()
            assert await running == 0
            await ended(pipe)
            assert pipe.out.strip() == b"1000000"
        async with wired.piped() as pipe:  # without stdin the input is empty
            assert await runtime.access.exec(work.task.id, shell("cat"), pipe.runtime) == 0

    processes.with_runtime(tmp_path, body)


def test_a_terminal_echoes_has_a_size_and_ends_like_one(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(*SLEEPER)
        await workloads.run(runtime, work)
        async with wired.piped() as pipe:
            what = shell("stty size; tty; cat; stty size; exit 4", tty=True, stdin=True)
            what.size.rows, what.size.columns = 33, 111
            running = asyncio.create_task(runtime.access.exec(work.task.id, what, pipe.runtime))
            await pipe.manager.ready()
            await pipe.until(b"33 111")
            await pipe.until(b"/dev/pts/")
            await pipe.manager.send(b"typed\n")
            await pipe.until(b"typed\r\ntyped\r\n")
            pipe.manager.resize(pb.TerminalSize(rows=20, columns=60))
            await pipe.manager.send(b"\x04")
            assert await running == 4
            await ended(pipe)
            assert b"20 60" in pipe.out

    processes.with_runtime(tmp_path, body)


def test_a_slow_reader_stalls_the_command_and_a_reader_who_leaves_ends_it(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(*SLEEPER)
        await workloads.run(runtime, work)
        pid_file = tmp_path / "pid"
        async with wired.piped(gather=False) as pipe:
            script = f"echo $$ > {pid_file}; trap '' HUP; yes | while read line; do echo $line; done"
            running = asyncio.create_task(runtime.access.exec(work.task.id, shell(script), pipe.runtime))
            await pipe.manager.ready()

            async def printing() -> bool:
                return bool(pipe.manager._inbox)

            await workloads.until(printing, bool, what="output")
            seen = -1
            while seen != len(pipe.manager._inbox):  # until nothing more comes
                seen = len(pipe.manager._inbox)
                await asyncio.sleep(0.2)
            assert sum(len(each.data) for each in pipe.manager._inbox if isinstance(each, pb.ChannelData)) <= 256 * 1024
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await processes.wait_gone(int(pid_file.read_text()))

    processes.with_runtime(tmp_path, body)


def test_a_command_ends_with_its_task(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(*SLEEPER)
        await workloads.run(runtime, work)
        async with wired.piped() as pipe:
            running = asyncio.create_task(runtime.access.exec(work.task.id, shell("sleep 1000"), pipe.runtime))
            await pipe.manager.ready()
            await runtime.stop(work)
            async with asyncio.timeout(10):
                assert await running == 137
        async with wired.piped() as pipe:
            with pytest.raises(errors.FailedPrecondition, match="is not running"):
                await runtime.access.exec(work.task.id, shell("true"), pipe.runtime)
            with pytest.raises(errors.NotFound):
                await runtime.access.exec("nosuchtask", shell("true"), pipe.runtime)

    processes.with_runtime(tmp_path, body)


def test_files_go_in_and_come_out(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(*SLEEPER)
        await workloads.run(runtime, work)
        content = os.urandom(700_000)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo("folder/data.bin")
            entry.size, entry.mode = len(content), 0o640
            tar.addfile(entry, io.BytesIO(content))
            outside = tarfile.TarInfo("../outside")
            tar.addfile(outside)
        async with wired.piped() as pipe:
            moving = asyncio.create_task(runtime.access.archive_in(work.task.id, ".", pipe.runtime))
            await pipe.manager.ready()
            await pipe.manager.send(buffer.getvalue())
            pipe.manager.eof()
            with pytest.raises(errors.FailedPrecondition, match="outside"):
                await moving
        folder = tmp_path / work.task.id / "work"
        assert (folder / "folder/data.bin").read_bytes() == content
        assert not (folder.parent / "outside").exists()
        async with wired.piped() as pipe:
            await runtime.access.archive_out(work.task.id, "folder", pipe.runtime)
            await ended(pipe)
            with tarfile.open(fileobj=io.BytesIO(bytes(pipe.out))) as tar:
                assert tar.getnames() == ["folder", "folder/data.bin"]
        async with wired.piped() as pipe:
            with pytest.raises(errors.NotFound, match=r"missing: no such file"):
                await runtime.access.archive_out(work.task.id, "missing", pipe.runtime)
        await runtime.stop(work)
        async with wired.piped() as pipe:  # what a dead task has left can still be fetched
            await runtime.access.archive_out(work.task.id, "folder/data.bin", pipe.runtime)

    processes.with_runtime(tmp_path, body)


def test_figures_come_until_the_task_ends(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload("sh", "-c", "while :; do :; done")
        await workloads.run(runtime, work)
        found: list[pb.TaskStats] = []
        async with asyncio.timeout(20):
            async for stats in runtime.access.stats(work.task.id):
                found.append(stats)
                if len(found) == 2:
                    await runtime.stop(work)
        assert found[1].nano_cpus > 50_000_000
        assert found[1].memory_bytes > 100_000
        assert found[1].pids == 1
        assert found[1].received_bytes == -1

    processes.with_runtime(tmp_path, body)


SERVER = (
    "import socket,os;s=socket.create_server(('127.0.0.1',int(os.environ['PORT'])));c=s.accept()[0];c.sendall(b'hi')"
)


def test_only_the_tasks_own_ports_are_connected_to(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload("python3", "-c", SERVER, ports=[workloads.host_port(80)])
        seen = await workloads.run(runtime, work)
        assert seen.phase is base.Phase.RUNNING
        stranger = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        taken = stranger.sockets[0].getsockname()[1]

        async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
            with contextlib.suppress(errors.FailedPrecondition):
                return await runtime.access.connect(work.task.id, 80)
            return None

        connection = await workloads.until(connected, lambda found: found is not None, what="a listener")
        assert connection is not None
        assert await connection[0].read() == b"hi"
        connection[1].close()
        with pytest.raises(errors.FailedPrecondition, match=f"does not listen on port {taken}"):
            await runtime.access.connect(work.task.id, taken)
        stranger.close()

    processes.with_runtime(tmp_path, body)
