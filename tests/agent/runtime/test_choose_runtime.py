"""Which runtime a machine gets."""

import asyncio
import pathlib
import typing

import pytest

from agent.runtime import base, choose
from skep import clock, errors, ids


async def chosen(kind: choose.Kind, directory: pathlib.Path, socket: pathlib.Path) -> base.Runtime:
    return await choose.choose(
        kind, node_id="n1", directory=directory, docker_socket=f"unix://{socket}",
        clock=clock.SystemClock(), rng=ids.seeded_rng(1),
    )  # fmt: skip


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = b'{"ApiVersion": "1.41", "MinAPIVersion": "1.12"}'
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def test_auto_without_engine_is_process_and_stays_so(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        socket = tmp_path / "s"
        first = await chosen("auto", tmp_path / "r", socket)
        assert first.name == "process"
        assert await first.list() == []
        await first.close()
        async with await asyncio.start_unix_server(answer, socket):
            again = await chosen("auto", tmp_path / "r", socket)
            assert again.name == "process"
            await again.close()

    asyncio.run(main())


def test_auto_with_engine_is_docker_and_waits_for_it(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        socket = tmp_path / "s"
        async with await asyncio.start_unix_server(answer, socket):
            first = await chosen("auto", tmp_path / "r", socket)
            assert first.name == "docker"
            await first.close()
        with pytest.raises(errors.Unavailable, match="ran its tasks on the container engine"):
            await chosen("auto", tmp_path / "r", socket)
        (tmp_path / "r" / choose.CHOSEN).unlink()
        second = await chosen("auto", tmp_path / "r", socket)
        assert second.name == "process"
        await second.close()

    asyncio.run(main())


def test_forced_choices(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        with pytest.raises(errors.Unavailable, match="cannot connect to the container engine"):
            await chosen("docker", tmp_path / "r", tmp_path / "s")
        memory = await chosen("memory", tmp_path / "r", tmp_path / "s")
        assert memory.name == "memory"
        await memory.close()
        with pytest.raises(errors.Invalid, match="unknown runtime 'lxc'"):
            await chosen(typing.cast("choose.Kind", "lxc"), tmp_path / "r", tmp_path / "s")

    asyncio.run(main())
