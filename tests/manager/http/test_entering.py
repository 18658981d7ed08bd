"""Commands, files and connections over the API: on a real socket, by skep's own client, directly and by a follower."""

import asyncio
import contextlib
import json
import pathlib
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from manager.http import server
from skep import channel, client, errors, frames, pb
from tests.manager.http import rigs

Work = Callable[[rigs.Rig, client.Client], Awaitable[None]]


@pytest.fixture(params=["the leader", "a follower"])
def through(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def with_task(through: str, agent: Callable[[channel.Channel], Awaitable[None]], work: Work) -> None:
    """A service `web` with one running task, served on a socket by the leader, or by a follower that must ask it."""

    async def main() -> None:
        leader, follower = rigs.Rig(), rigs.Rig(seed=2)
        for rig in (leader, follower):
            await rig.machine.found()
        await leader.create(rigs.spec("web", replicas=1))
        await leader.machine.settle()
        leader.manager.channels.agent = agent
        follower.manager.committer.is_leader = False
        follower.manager.leader_id = leader.manager.node_id
        follower.manager.leader = leader.api
        answers = leader if through == "the leader" else follower
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "docker.sock"
            serving = server.HttpServer(answers.api, path)
            await serving.start()
            try:
                await work(leader, client.Client(f"unix://{path}", patience_s=0))
                await until(lambda: leader.manager.channels.open_now == 0)
            finally:
                await serving.stop()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


def frames_of(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    parser = frames.Parser()
    while data := connection.recv(65536):
        yield from parser.feed(data)


async def a_shell(pipe: channel.Channel) -> None:
    """Says what it is told, in capitals; complains about sizes; ends with what was asked for."""
    pipe.say_ready()
    await pipe.send(b"hello ")
    while (piece := await pipe.receive()) is not None:
        if isinstance(piece, pb.TerminalSize):
            await pipe.send(f"{piece.rows}x{piece.columns}".encode(), stream=pb.CHANNEL_STREAM_ERROR)
        else:
            await pipe.send(piece.data.upper())
    pipe.end(exit_code=3)


def test_a_command_has_input_output_a_size_and_an_exit_code(through: str) -> None:
    async def work(leader: rigs.Rig, user: client.Client) -> None:
        def talk() -> list[tuple[int, bytes]]:
            body = {"Cmd": ["sh"], "Tty": True, "AttachStdin": True, "Env": ["A=1"], "ConsoleSize": [24, 80]}
            with contextlib.closing(user.connect("/skep/v1/tasks/web.1/exec", body=body)) as connection:
                connection.sendall(frames.frame(frames.STDIN, b"abc") + frames.resize(30, 100))
                connection.sendall(frames.frame(frames.STDIN_END))
                return list(frames_of(connection))

        found = await asyncio.to_thread(talk)
        assert b"".join(data for kind, data in found if kind == frames.STDOUT) == b"hello ABC"
        assert [data for kind, data in found if kind == frames.STDERR] == [b"30x100"]
        assert frames.exit_code(found[-1][1]) == 3
        (asked,) = leader.manager.channels.asked
        assert asked.task_id == next(iter(leader.manager.store.view().tasks)).id
        assert (list(asked.exec.command), list(asked.exec.env), asked.exec.tty) == (["sh"], ["A=1"], True)
        assert (asked.exec.size.rows, asked.exec.size.columns) == (24, 80)

    with_task(through, a_shell, work)


def test_a_user_who_leaves_ends_the_command(through: str) -> None:
    over = asyncio.Event()

    async def endless(pipe: channel.Channel) -> None:
        pipe.say_ready()
        await pipe.ended()
        over.set()

    async def work(leader: rigs.Rig, user: client.Client) -> None:
        connection = await asyncio.to_thread(lambda: user.connect("/skep/v1/tasks/web.1/exec", body={"Cmd": ["yes"]}))
        assert leader.manager.channels.open_now == 1
        connection.close()
        async with asyncio.timeout(5):
            await over.wait()

    with_task(through, endless, work)


def test_a_reader_that_stops_stalls_the_command_and_not_the_manager(through: str) -> None:
    sent = 0

    async def flood(pipe: channel.Channel) -> None:
        nonlocal sent
        pipe.say_ready()
        while True:
            await pipe.send(b"x" * 32768)
            sent += 32768

    async def work(leader: rigs.Rig, user: client.Client) -> None:
        connection = await asyncio.to_thread(lambda: user.connect("/skep/v1/tasks/web.1/exec", body={"Cmd": ["yes"]}))
        before = -1
        while before != sent:  # until the buffers on the way are full
            before = sent
            await asyncio.sleep(0.2)
        assert 0 < sent < 8 * 1024 * 1024
        assert await rigs.Rig.get(leader, "/services/web")
        connection.close()

    with_task(through, flood, work)


def test_what_goes_wrong_before_the_command_is_an_answer_and_after_it_a_frame(through: str) -> None:
    async def breaks(pipe: channel.Channel) -> None:
        if pipe.opened.exec.command[0] == "late":
            pipe.say_ready()
            await pipe.send(b"so far")
        pipe.end(errors.NotFound("no such thing"))

    async def work(leader: rigs.Rig, user: client.Client) -> None:
        def ask(body: Any, path: str = "/skep/v1/tasks/web.1/exec") -> list[tuple[int, bytes]]:
            with contextlib.closing(user.connect(path, body=body)) as connection:
                return list(frames_of(connection))

        with pytest.raises(errors.NotFound, match="no such thing"):
            await asyncio.to_thread(ask, {"Cmd": ["early"]})
        assert await asyncio.to_thread(ask, {"Cmd": ["late"]}) == [(1, b"so far"), (3, b"no such thing")]
        for body, problem in (
            ({}, "Cmd: no command"), ({"Cmd": "ls"}, "Cmd: expected a list"), ([], "must be an object"),
            ({"Cmd": ["ls"], "Privileged": True}, "Privileged: no such field"),
            ({"Cmd": ["ls"], "ConsoleSize": [1]}, "ConsoleSize"),
        ):  # fmt: skip
            with pytest.raises(errors.Invalid, match=problem):
                await asyncio.to_thread(ask, body)
        with pytest.raises(errors.NotFound, match=r"no task web\.2"):
            await asyncio.to_thread(ask, {"Cmd": ["ls"]}, "/skep/v1/tasks/web.2/exec")

    with_task(through, breaks, work)


def test_raw_connections_must_be_asked_for() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec("web", replicas=1))
        await rig.machine.settle()
        answer = await rig.ask("POST", "/skep/v1/tasks/web.1/exec", {"Cmd": ["ls"]})
        assert answer.status == 400
        assert "Connection: Upgrade" in json.loads(answer.body)["message"]

    rigs.run(work)


def test_files_of_any_size_go_in_and_come_out(through: str) -> None:
    size = 9 * 1024 * 1024  # more than any request's body may have elsewhere
    taken = bytearray()

    async def agent(pipe: channel.Channel) -> None:
        pipe.say_ready()
        if pipe.opened.HasField("archive_in"):
            while isinstance(piece := await pipe.receive(), pb.ChannelData):
                taken.extend(piece.data)
            pipe.end()
            return
        for start in range(0, len(taken), 100_000):
            await pipe.send(bytes(taken[start : start + 100_000]))
        pipe.end()

    async def work(leader: rigs.Rig, user: client.Client) -> None:
        path, query = "/skep/v1/tasks/web.1/archive", {"path": "/data"}
        chunks = (bytes([number % 251]) * 65536 for number in range(size // 65536))
        await asyncio.to_thread(lambda: user.upload(path, chunks, query))
        assert len(taken) == size
        found = await asyncio.to_thread(lambda: b"".join(user.stream(path, query)))
        assert found == bytes(taken)
        with pytest.raises(errors.Invalid, match="path: say which"):
            await asyncio.to_thread(lambda: user.upload(path, iter([b"x"])))

    with_task(through, agent, work)


def test_an_upload_that_is_refused_half_way_says_why(through: str) -> None:
    async def full(pipe: channel.Channel) -> None:
        pipe.say_ready()
        await pipe.receive()
        pipe.end(errors.FailedPrecondition("no space left on device"))

    async def work(leader: rigs.Rig, user: client.Client) -> None:
        chunks = (b"x" * 65536 for _ in range(200))
        with pytest.raises(errors.SkepError, match="no space left"):
            await asyncio.to_thread(lambda: user.upload("/skep/v1/tasks/web.1/archive", chunks, {"path": "/"}))

    with_task(through, full, work)


def test_a_connection_to_a_port_ends_each_direction_by_itself(through: str) -> None:
    async def counts(pipe: channel.Channel) -> None:
        assert pipe.opened.connect.port == 80
        pipe.say_ready()
        size = 0
        while isinstance(piece := await pipe.receive(), pb.ChannelData):
            size += len(piece.data)
        await pipe.send(str(size).encode())
        pipe.eof()
        pipe.end()

    async def work(leader: rigs.Rig, user: client.Client) -> None:
        def talk() -> bytes:
            with contextlib.closing(user.connect("/skep/v1/tasks/web.1/forward/80")) as connection:
                connection.sendall(b"x" * 1_000_000)
                connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(100), b""))

        assert await asyncio.to_thread(talk) == b"1000000"

    with_task(through, counts, work)
