"""Which runtime a machine gets."""

import asyncio
import pathlib
import typing
from collections.abc import Callable

import pytest

from agent.runtime import base, choose
from skep import clock, errors, ids


async def chosen(
    kind: choose.Kind,
    directory: pathlib.Path,
    socket: pathlib.Path,
    *,
    away: Callable[[str], None] | None = None,
) -> base.Runtime:
    return await choose.choose(
        kind, node_id="n1", directory=directory, docker_socket=f"unix://{socket}",
        clock=clock.SystemClock(), rng=ids.seeded_rng(1), away=away,
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


@pytest.mark.parametrize("kind", ["auto", "docker"])
def test_an_engine_that_was_chosen_may_come_later(kind: choose.Kind, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        socket = tmp_path / "s"
        async with await asyncio.start_unix_server(answer, socket):
            await (await chosen(kind, tmp_path / "r", socket)).close()
        reasons: list[str] = []
        late = await chosen(kind, tmp_path / "r", socket, away=reasons.append)
        assert late.name == "docker"
        assert len(reasons) == 1
        assert "cannot connect to the container engine" in reasons[0]
        with pytest.raises(base.TaskTemporary, match="cannot connect"):
            await late.list()
        await late.close()

    asyncio.run(main())


def test_an_engine_that_hangs_is_not_waited_for_where_it_may_come_later(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            await writer.wait_closed()
            gone.set()

        reasons: list[str] = []
        async with await asyncio.start_unix_server(silent, tmp_path / "s"):
            began = asyncio.get_running_loop().time()
            late = await chosen("docker", tmp_path / "r", tmp_path / "s", away=reasons.append)
            assert asyncio.get_running_loop().time() - began < choose.PATIENCE_S + 1.5
            assert "does not answer" in reasons[0]
            await late.close()
            await gone.wait()

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
