"""Commands, files, figures and connections of tasks that are containers of a real engine."""

import asyncio
import io
import os
import tarfile

import pytest

from agent.runtime import base, docker
from skep import errors, pb
from tests.agent.runtime import wired, workloads
from tests.engine import conftest, dockerd


def sleeper(node: conftest.Node, *args: str, env: tuple[str, ...] = ()) -> base.Workload:
    spec = pb.ContainerSpec(image=dockerd.BUSYBOX_IMAGE, env=env)
    return workloads.workload(*(args or ("sleep", "1000")), container=spec, node_id=node.node_id)


def shell(script: str, *, tty: bool = False, stdin: bool = False) -> pb.ExecStart:
    return pb.ExecStart(command=["sh", "-c", script], tty=tty, stdin=stdin)


async def finish(pipe: wired.Pipe) -> None:
    pipe.runtime.end()
    async with asyncio.timeout(10):
        await pipe.manager.ended()
        await asyncio.sleep(0)


def test_a_command_has_streams_environment_user_and_exit_code(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = sleeper(node, env=("COLOUR=blue",))
        await workloads.run(runtime, work)
        async with wired.piped() as pipe:
            what = shell('echo "$COLOUR $MORE"; pwd; id -u; echo complaint >&2; exit 7')
            what.env.append("MORE=yes")
            what.user, what.dir = "65534", "/tmp"
            assert await runtime.access.exec(work.task.id, what, pipe.runtime) == 7
            await finish(pipe)
            assert pipe.out == b"blue yes\n/tmp\n65534\n"
            assert pipe.err == b"complaint\n"
        async with wired.piped() as pipe:
            code = await runtime.access.exec(work.task.id, pb.ExecStart(command=["nonsense"]), pipe.runtime)
            assert code in {126, 127}
        async with wired.piped() as pipe:
            running = asyncio.create_task(runtime.access.exec(work.task.id, shell("wc -c", stdin=True), pipe.runtime))
            await pipe.manager.ready()
            await pipe.manager.send(b"x" * 1_000_000)
            pipe.manager.eof()
            assert await running == 0
            await finish(pipe)
            assert pipe.out.strip() == b"1000000"
        what = shell("true")
        what.user = "nosuchuser"
        async with wired.piped() as pipe:
            assert await runtime.access.exec(work.task.id, what, pipe.runtime) in {126, 127}
            await finish(pipe)
            assert b"nosuchuser" in pipe.out + pipe.err

    node.run(body)


def test_a_terminal_has_a_size_and_changes_it(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = sleeper(node)
        await workloads.run(runtime, work)
        async with wired.piped() as pipe:
            what = shell("read line; stty size; echo got $line; read line; stty size; exit 4", tty=True, stdin=True)
            what.size.rows, what.size.columns = 33, 111
            running = asyncio.create_task(runtime.access.exec(work.task.id, what, pipe.runtime))
            await pipe.manager.ready()
            await pipe.manager.send(b"typed\n")
            await pipe.until(b"33 111")
            await pipe.until(b"got typed")
            pipe.manager.resize(pb.TerminalSize(rows=20, columns=60))
            await pipe.manager.send(b"\n")
            assert await running == 4
            await finish(pipe)
            assert b"20 60" in pipe.out

    node.run(body)


def test_a_command_whose_user_leaves_is_ended(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = sleeper(node)
        await workloads.run(runtime, work)
        async with wired.piped() as pipe:
            script = "trap '' HUP; echo started; sleep 987; echo never"
            running = asyncio.create_task(runtime.access.exec(work.task.id, shell(script), pipe.runtime))
            await pipe.until(b"started")
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        async def alive() -> bool:
            async with wired.piped() as pipe:
                script = "grep -l '[e]cho never' /proc/[0-9]*/cmdline | grep -v /proc/$$/ | wc -l"
                await runtime.access.exec(work.task.id, shell(script), pipe.runtime)
                await finish(pipe)
                return pipe.out.strip() != b"0"

        await workloads.until(alive, lambda found: not found, what="the end of the command")

    node.run(body)


def test_files_go_in_and_come_out_also_of_a_dead_task(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = sleeper(node)
        await workloads.run(runtime, work)
        content = os.urandom(3_000_000)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo("data.bin")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        async with wired.piped() as pipe:
            moving = asyncio.create_task(runtime.access.archive_in(work.task.id, "/tmp", pipe.runtime))
            await pipe.manager.ready()
            await pipe.manager.send(buffer.getvalue())
            pipe.manager.eof()
            await moving
        async with wired.piped() as pipe:
            moving = asyncio.create_task(runtime.access.archive_in(work.task.id, "/missing", pipe.runtime))
            await pipe.manager.ready()
            await pipe.manager.send(b"x")
            pipe.manager.eof()
            with pytest.raises(errors.NotFound):
                await moving
        await runtime.stop(work)
        async with wired.piped() as pipe:
            await runtime.access.archive_out(work.task.id, "/tmp/data.bin", pipe.runtime)
            await finish(pipe)
            with tarfile.open(fileobj=io.BytesIO(bytes(pipe.out))) as tar:
                found = tar.extractfile("data.bin")
                assert found is not None
                assert found.read() == content
        async with wired.piped() as pipe:
            with pytest.raises(errors.NotFound):
                await runtime.access.archive_out(work.task.id, "/tmp/missing", pipe.runtime)
            with pytest.raises(errors.FailedPrecondition, match="is not running"):
                await runtime.access.exec(work.task.id, shell("true"), pipe.runtime)

    node.run(body)


def test_figures_of_a_busy_container(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = sleeper(node, "sh", "-c", "while :; do :; done")
        await workloads.run(runtime, work)
        async with asyncio.timeout(30):
            async for stats in runtime.access.stats(work.task.id):
                assert stats.nano_cpus > 50_000_000
                assert stats.memory_bytes > 10_000
                assert stats.pids >= 1
                break

    node.run(body)


def test_a_port_inside_the_container_is_reached(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = sleeper(node, "nc", "-ll", "-p", "8123", "-e", "echo", "hello from inside")
        await workloads.run(runtime, work)

        async def talk() -> bytes:
            try:
                reader, writer = await runtime.access.connect(work.task.id, 8123)
            except errors.FailedPrecondition:
                return b""
            try:
                return await reader.read()
            finally:
                writer.close()

        assert b"hello" in await workloads.until(talk, bool, what="an answer")
        with pytest.raises(errors.FailedPrecondition, match="no connection to port 8124"):
            await runtime.access.connect(work.task.id, 8124)

    node.run(body)
