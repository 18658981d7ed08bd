"""The images of a Docker Engine, against a fake one: pulls that are shared, and what becomes of those that fail."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator

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
                asyncio.create_task(store.ensure("web:1", auth="secret", revision="r1", progress=said.append))
                for _ in range(20)
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
                *(store.ensure("web:1", auth=auth, revision="r1", progress=lambda _: None) for auth in ("bad", "good")),
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
                    await store.ensure(image, auth="", revision="r1", progress=lambda _: None)

    asyncio.run(main())


class Registry:
    """An engine with the image web:1, and a registry that may have another one of that name."""

    def __init__(self) -> None:
        self.here = self.there = "sha256:old"
        self.pulls: list[str] = []
        self.silent = False
        self.problem = ""

    async def handle(self, call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call.startswith("GET /images/"):
            await fakes.answer(writer, 200, {"Id": self.here})
            return
        self.pulls.append(f"{query['fromImage']}:{query.get('tag', '')}")
        if self.silent:
            return
        if not self.problem:
            self.here = self.there
        await fakes.answer(writer, 200, {"error": self.problem} if self.problem else {"status": "done"})


@contextlib.asynccontextmanager
async def beside(registry: Registry, directory: pathlib.Path) -> AsyncIterator[tuple[images.Images, cleaning.Cleaner]]:
    async with fakes.engine(directory / "s", registry.handle), fakes.connected(directory / "s") as made:
        cleaner = cleaning.Cleaner(made, clock=clock.SystemClock(), notes=directory / "notes")
        store = images.Images(made, cleaner)
        yield store, cleaner
        await store.close()


def test_a_tag_that_may_have_moved_is_asked_for_once_a_revision(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        registry, said = Registry(), list[str]()
        async with beside(registry, tmp_path) as (store, _):
            together = [store.ensure("web:1", auth="", revision="r1", progress=said.append) for _ in range(5)]
            await asyncio.gather(*together)
            await store.ensure("web:1", auth="", revision="r1", progress=said.append)
            assert registry.pulls == ["web:1"]
            await store.ensure("web:1", auth="", revision="r2", progress=said.append)
            assert registry.pulls == ["web:1", "web:1"]
            await store.ensure("web@sha256:0123", auth="", revision="r3", progress=said.append)
            await store.ensure("sha256:0123", auth="", revision="r3", progress=said.append)
            assert registry.pulls == ["web:1", "web:1"], "what cannot move is not asked for"
            assert said == [], "an image that is as it was is not worth a word"

    asyncio.run(main())


@pytest.mark.parametrize("how", ["silent", "refuses"])
def test_an_image_that_is_here_is_taken_when_its_registry_cannot_be_asked(
    how: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "ASK_S", 0.2)

    async def main() -> None:
        registry, said = Registry(), list[str]()
        registry.silent, registry.problem = how == "silent", "dial tcp: no route to host"
        async with beside(registry, tmp_path) as (store, _):
            async with asyncio.timeout(10.0):
                for _ in range(2):
                    await store.ensure("web:1", auth="", revision="r1", progress=said.append)
        assert registry.pulls == ["web:1"]
        reason = "no answer from its registry" if how == "silent" else "dial tcp: no route to host"
        assert len(said) == 1
        assert said[0].startswith("image web:1 is taken as it is here: ")
        assert reason in said[0]

    asyncio.run(main())


def test_only_what_a_pull_has_brought_may_be_cleaned_away(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        registry = Registry()
        async with beside(registry, tmp_path) as (store, cleaner):
            await store.ensure("web:1", auth="", revision="r1", progress=lambda _: None)
            assert cleaner.known() == [], "it was here before, and is an operator's"
            registry.there = "sha256:new"
            await store.ensure("web:1", auth="", revision="r2", progress=lambda _: None)
            assert cleaner.known() == ["web:1"], "what had the name before is still an operator's"
            registry.there = "sha256:newer"
            await store.ensure("web:1", auth="", revision="r3", progress=lambda _: None)
            assert cleaner.known() == ["sha256:new", "web:1"], "what has lost its name is not lost"

    asyncio.run(main())
