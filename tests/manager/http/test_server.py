"""The API on a real unix socket: who may use it, framing, streams, limits, and how it starts and stops."""

import asyncio
import io
import json
import os
import pathlib
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from manager.http import api, messages, server
from skep import errors
from tests.manager.http import fake_machine

Work = Callable[[aiohttp.ClientSession, fake_machine.FakeMachine, pathlib.Path], Awaitable[None]]


def with_server(work: Work) -> None:
    async def main() -> None:
        machine = fake_machine.FakeMachine()
        await machine.found()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "run" / "docker.sock"
            front = server.HttpServer(api.Api(machine, leader_patience_s=0.2), path)
            await front.start()
            try:
                connector = aiohttp.UnixConnector(str(path))
                async with aiohttp.ClientSession("http://docker", connector=connector) as session:
                    await work(session, machine, path)
            finally:
                await front.stop()
            assert not path.exists()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  nothing announces it
            await asyncio.sleep(0.01)


def spec(name: str) -> dict[str, object]:
    return {"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": "nginx"}}}


def test_requests_over_the_socket() -> None:
    async def work(session: aiohttp.ClientSession, machine: fake_machine.FakeMachine, path: pathlib.Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        async with session.head("/_ping") as answer:
            assert answer.status == 200
            assert answer.headers["Api-Version"] == "1.41"
        async with session.post("/v1.41/services/create", json=spec("web")) as answer:
            assert answer.status == 201
        async with session.get("/v1.24/services") as answer:
            assert answer.headers["Content-Type"] == "application/json"
            assert [one["Spec"]["Name"] for one in await answer.json()] == ["web"]
        async with session.get("/services/x%2Fy") as answer:
            assert answer.status == 404
            assert answer.headers["Content-Type"] == "application/json"
            assert await answer.json() == {"message": "service x/y not found"}
        async with session.delete("/services/web") as answer:
            assert (answer.status, await answer.read()) == (200, b"")

    with_server(work)


def test_a_body_that_is_too_large_is_refused() -> None:
    async def work(session: aiohttp.ClientSession, machine: fake_machine.FakeMachine, path: pathlib.Path) -> None:
        body = b" " * (messages.BODY_BYTES_MAX + 1)
        async with session.post("/services/create", data=io.BytesIO(body)) as answer:
            assert answer.status == 413
        body = json.dumps(spec("web")).encode().ljust(2 * 1024 * 1024)
        headers = {"Content-Type": "application/json"}
        async with session.post("/services/create", data=io.BytesIO(body), headers=headers) as answer:
            assert answer.status == 201

    with_server(work)


def test_a_followed_log_is_chunked_and_ends_with_its_reader() -> None:
    async def work(session: aiohttp.ClientSession, machine: fake_machine.FakeMachine, path: pathlib.Path) -> None:
        assert machine.manager is not None
        async with session.post("/services/create", json=spec("web")):
            pass
        await machine.settle()
        for task in machine.manager.store.view().tasks:
            machine.manager.logs.add(task.id, b"hello\n")
        before = len(asyncio.all_tasks())
        answer = await session.get("/services/web/logs?stdout=1&follow=1")
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert await answer.content.readexactly(14) == b"\x01\0\0\0\0\0\0\x06hello\n"
        answer.close()
        await until(lambda: len(asyncio.all_tasks()) <= before)

    with_server(work)


def test_a_change_outlives_the_client_that_asked_for_it() -> None:
    async def work(session: aiohttp.ClientSession, machine: fake_machine.FakeMachine, path: pathlib.Path) -> None:
        assert machine.manager is not None
        committer, state = machine.manager.committer, machine.manager.store
        held, reached = asyncio.Event(), asyncio.Event()
        through = committer.commit

        async def slow(operations: object) -> int:
            reached.set()
            await held.wait()
            return await through(operations)  # type: ignore[arg-type]

        committer.commit = slow  # type: ignore[method-assign]
        asking = asyncio.create_task(session.post("/services/create", json=spec("web")))
        await reached.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        held.set()
        await until(lambda: len(state.view().services) == 1)

    with_server(work)


def test_old_sockets_are_replaced_and_living_ones_respected() -> None:
    async def main() -> None:
        answers = api.Api(fake_machine.FakeMachine())
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "docker.sock"
            left_behind = socket.socket(socket.AF_UNIX)
            left_behind.bind(str(path))
            left_behind.close()
            first = server.HttpServer(answers, path)
            await first.start()
            with pytest.raises(errors.FailedPrecondition, match="another daemon already listens on"):
                await server.HttpServer(answers, path).start()
            await first.stop()
            path.write_text("mine")
            with pytest.raises(errors.FailedPrecondition, match="exists and is no socket"):
                await server.HttpServer(answers, path).start()
            assert path.read_text() == "mine"
            assert os.listdir(folder) == ["docker.sock"]
            too_long = pathlib.Path(folder) / ("x" * 120)
            with pytest.raises(errors.FailedPrecondition, match="cannot listen on"):
                await server.HttpServer(answers, too_long).start()

    asyncio.run(main())
