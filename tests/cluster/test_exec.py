"""Reaching into tasks of a real three-manager cluster by way of a follower, with the real command."""

import asyncio
import contextlib
import os
import pathlib
import pty
import signal
import socket
import sys
import termios
from collections.abc import AsyncIterator

import pytest

from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CREATE = ("service", "create", "--detach", "--restart-delay", "200ms", "--stop-grace-period", "2s")
ECHO = """
import os, socket, threading
def serve(one):
    while data := one.recv(65536):
        one.sendall(data.upper())
    one.close()
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
"""
TICKS = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done"


def test_commands_files_connections_figures_and_logs_through_a_follower(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            publish = ("--publish", "mode=host,target=80")
            await cluster.skep(*CREATE, *publish, "--name", "echo", "process", "python3", "-c", ECHO)
            await cluster.skep(*CREATE, "--name", "ticks", "--replicas", "2", "process", "sh", "-c", TICKS)
            await cluster.converged("echo", 1)
            await cluster.converged("ticks", 2)
            leader = await cluster.leader()
            cluster.talk_to(next(name for name in cluster.names if name != leader))
            await commands(cluster)
            await a_terminal(cluster)
            await files(cluster, tmp_path)
            await connections(cluster)
            await figures(cluster)
            await logs_outlive_the_leader(cluster, leader)

    asyncio.run(main())


async def commands(cluster: harness.Cluster) -> None:
    done = await cluster.skep(
        "exec", "-e", "A=b", "echo.1", "sh", "-c", "echo $A $SKEP_SERVICE_NAME; exit 9", check=False
    )
    assert (done.code, done.out, done.err) == (9, "b echo\n", "")
    missing = await cluster.skep("exec", "echo.2", "true", check=False)
    assert missing.code == 1
    assert "no task echo.2" in missing.err
    several = await cluster.skep("exec", "ticks", "true", check=False)
    assert "name one of ticks.1, ticks.2" in several.err
    unknown = await cluster.skep("exec", "echo.1", "nonsense", check=False)
    assert unknown.code == 127
    async with running(cluster, "exec", "-i", "echo.1", "wc", "-c") as process:
        out, _ = await process.communicate(b"x" * 3_000_000)
        assert out.strip() == b"3000000"


@contextlib.asynccontextmanager
async def running(cluster: harness.Cluster, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The real command with its streams as pipes; killed in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "skep", "--host", f"unix://{cluster.home.socket}", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def a_terminal(cluster: harness.Cluster) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (33, 111))
    os.set_blocking(ours, False)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "skep", "--host", f"unix://{cluster.home.socket}", "exec", "-it", "echo.1", "sh",
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    shown = bytearray()

    async def see(text: bytes) -> None:
        async def there() -> bool:
            with contextlib.suppress(BlockingIOError):
                shown.extend(os.read(ours, 65536))
            return text in shown

        await harness.until(f"{text!r} on the terminal", there, timeout_s=30)
        shown.clear()

    try:
        await see(b"$" if os.geteuid() else b"#")
        os.write(ours, b"stty size\n")
        await see(b"33 111")
        termios.tcsetwinsize(ours, (20, 60))
        process.send_signal(signal.SIGWINCH)  # what the kernel does for a controlling terminal

        async def resized() -> bool:
            os.write(ours, b"stty size\n")
            await asyncio.sleep(0.2)
            with contextlib.suppress(BlockingIOError):
                shown.extend(os.read(ours, 65536))
            return b"20 60" in shown

        await harness.until("the new size", resized, timeout_s=20)
        os.write(ours, b"exit 5\n")
        async with asyncio.timeout(20):
            assert await process.wait() == 5
        assert termios.tcgetattr(theirs)[3] & termios.ECHO, "the terminal is as it was before"
    finally:
        if process.returncode is None:
            process.kill()
        os.close(ours)
        os.close(theirs)


async def files(cluster: harness.Cluster, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "site"
    (source / "deep").mkdir(parents=True)
    content = os.urandom(6_000_000)
    (source / "deep/data.bin").write_bytes(content)
    await cluster.skep("cp", str(source), "echo.1:.")
    listed = await cluster.skep("exec", "echo.1", "ls", "site/deep")
    assert listed.out == "data.bin\n"
    await cluster.skep("cp", "echo.1:site/deep/data.bin", str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == content
    await cluster.skep("cp", str(tmp_path / "back.bin"), "echo.1:site/renamed.bin")
    assert (await cluster.skep("exec", "echo.1", "ls", "site")).out == "deep\nrenamed.bin\n"
    missing = await cluster.skep("cp", "echo.1:missing", str(tmp_path), check=False)
    assert missing.code == 1
    assert "missing: no such file" in missing.err


async def connections(cluster: harness.Cluster) -> None:
    async with running(cluster, "port-forward", "echo.1", "0:80") as process:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("127.0.0.1:")
        port = int(line.split()[0].rpartition(":")[2])

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello " * 100_000)
            writer.write_eof()
            try:
                return await reader.read(-1)
            finally:
                writer.close()

        for answer in await asyncio.gather(talk(), talk(), talk()):
            assert answer == b"HELLO " * 100_000
        with socket.socket() as elsewhere:
            assert elsewhere.connect_ex(("127.0.0.2", port)) != 0, "it listens on 127.0.0.1 only"


async def figures(cluster: harness.Cluster) -> None:
    shown = await cluster.skep("stats", "--no-stream", "ticks")
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "ticks.1", "ticks.2"]
    assert "%" in lines[1]


async def logs_outlive_the_leader(cluster: harness.Cluster, leader: str) -> None:
    async with running(cluster, "service", "logs", "--raw", "--follow", "--tail", "1", "ticks") as process:
        assert process.stdout is not None
        found: dict[int, int] = {}

        async def read(count: int) -> None:
            assert process.stdout is not None
            for _ in range(count):
                async with asyncio.timeout(60):
                    line = (await process.stdout.readline()).decode()
                if line.startswith("tick "):
                    found[int(line.split()[1])] = found.get(int(line.split()[1]), 0) + 1

        await read(20)
        await cluster.cluster.kill(leader)
        await read(100)
    numbers = sorted(found)
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "no line is lost"
    assert max(found.values()) <= 2, "two tasks tick: no line comes twice"
