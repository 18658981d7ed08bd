"""The images of a Docker Engine, against a fake one: pulls that are shared, and what becomes of those that fail."""

import asyncio
import pathlib

import pytest

from agent.runtime import base
from agent.runtime.docker import cleaning, images
from skep import clock
from tests.agent.runtime import fakes


def test_one_pull_for_many_waiting_tasks(tmp_path: pathlib.Path) -> None:
    pulls: list[dict[str, str]] = []
    release = asyncio.Event()

    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call.startswith("GET /images/"):
            await fakes.answer(writer, 200 if release.is_set() else 404, {"message": "no such image"})
            return
        pulls.append(query)
        await release.wait()
        await fakes.answer(writer, 200, {"status": "done"})

    async def main() -> None:
        async with fakes.engine(tmp_path / "s", handler), fakes.connected(tmp_path / "s") as made:
            store, said = images.Images(made, cleaning.Cleaner(made, clock=clock.SystemClock())), list[str]()
            waiting = [
                asyncio.create_task(store.ensure("web:1", auth="secret", progress=said.append)) for _ in range(20)
            ]
            while not pulls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            waiting[0].cancel()  # the one that started the pull is not wished any more
            release.set()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes[1:]] == [type(None)] * 19
            assert pulls == [{"fromImage": "web", "tag": "1", "auth": "secret"}]
            await store.close()

    asyncio.run(main())


def test_a_pull_with_other_credentials_is_another_pull(tmp_path: pathlib.Path) -> None:
    asked: list[str] = []

    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call.startswith("GET /images/"):
            await fakes.answer(writer, 404, {"message": "no such image"})
            return
        asked.append(query["auth"])
        while len(asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        good = query["auth"] == "good"
        await fakes.answer(writer, 200, {"status": "done"} if good else {"error": "unauthorized"})

    async def main() -> None:
        async with fakes.engine(tmp_path / "s", handler), fakes.connected(tmp_path / "s") as made:
            store = images.Images(made, cleaning.Cleaner(made, clock=clock.SystemClock()))
            bad, good = await asyncio.gather(
                *(store.ensure("web:1", auth=auth, progress=lambda _: None) for auth in ("bad", "good")),
                return_exceptions=True,
            )
            assert good is None
            assert isinstance(bad, base.TaskFatal)
            assert "unauthorized" in str(bad)
            await store.close()

    async def limited() -> None:
        async with asyncio.timeout(20.0):
            await main()

    asyncio.run(limited())


def test_pull_errors_within_the_stream(tmp_path: pathlib.Path) -> None:
    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call.startswith("GET /images/"):
            await fakes.answer(writer, 404, {"message": "no such image"})
        elif query["fromImage"] == "gone":
            await fakes.answer(
                writer, 200, {"error": "manifest unknown", "errorDetail": {"message": "manifest unknown"}}
            )
        elif query["fromImage"] == "denied":
            await fakes.answer(writer, 404, {"message": "pull access denied for denied"})
        else:
            await fakes.answer(writer, 500, {"message": "dial tcp 1.2.3.4:443: i/o timeout"})

    async def main() -> None:
        async with fakes.engine(tmp_path / "s", handler), fakes.connected(tmp_path / "s") as made:
            store = images.Images(made, cleaning.Cleaner(made, clock=clock.SystemClock()))
            for image, kind in (("gone", base.TaskFatal), ("denied", base.TaskFatal), ("busy", base.TaskTemporary)):
                with pytest.raises(kind, match=f"cannot pull image {image}: "):
                    await store.ensure(image, auth="", progress=lambda _: None)

    asyncio.run(main())
