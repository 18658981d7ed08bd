"""Copying into and out of containers of an engine that hangs in the middle, against a fake one."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.runtime.docker import access, client
from skep import errors
from tests.agent.runtime import fakes, wired

IDLE_S = 0.3


async def one_container(_: str) -> dict[str, Any]:
    return {"Id": "c1", "State": {"Running": True}}


@contextlib.asynccontextmanager
async def entered(path: pathlib.Path, handler: fakes.Handler) -> AsyncIterator[access.DockerAccess]:
    async with fakes.engine(path, handler), fakes.connected(path) as made:
        yield access.DockerAccess(made, one_container)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "COPY_IDLE_S", IDLE_S)


def test_an_engine_that_does_not_take_an_upload_is_given_up(tmp_path: pathlib.Path) -> None:
    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()  # it answers nothing

    async def main() -> None:
        async with entered(tmp_path / "s", handler) as made, wired.piped() as pipe:
            moving = asyncio.create_task(made.archive_in("t1", "/tmp", pipe.runtime))
            await pipe.manager.send(b"x" * 100)
            pipe.manager.eof()
            async with asyncio.timeout(20.0):
                with pytest.raises(client.EngineAway, match="does not take the upload"):
                    await moving

    asyncio.run(main())


def test_a_user_may_take_his_time_with_an_upload(tmp_path: pathlib.Path) -> None:
    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await fakes.answer(writer, 404, {"message": "no such directory"})

    async def main() -> None:
        async with entered(tmp_path / "s", handler) as made, wired.piped() as pipe:
            moving = asyncio.create_task(made.archive_in("t1", "/tmp", pipe.runtime))
            await asyncio.wait((moving,), timeout=3 * IDLE_S)
            pipe.manager.eof()
            with pytest.raises(errors.NotFound, match="no such directory"):
                await moving

    asyncio.run(main())


def test_an_engine_that_falls_silent_in_a_download_is_given_up(tmp_path: pathlib.Path) -> None:
    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\nbeginning")
        await writer.drain()

    async def main() -> None:
        async with entered(tmp_path / "s", handler) as made, wired.piped() as pipe:
            async with asyncio.timeout(20.0):
                with pytest.raises(client.EngineAway, match="does not answer"):
                    await made.archive_out("t1", "/tmp", pipe.runtime)
            assert bytes(pipe.out) == b"beginning"

    asyncio.run(main())
