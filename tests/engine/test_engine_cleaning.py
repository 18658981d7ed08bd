"""Room for images on a real engine."""

import asyncio
import pathlib
from collections.abc import Iterator

from agent.runtime.docker import cleaning, client
from skep import clock
from tests.engine import conftest, dockerd


def names(engine: conftest.Engine) -> set[str]:
    listed = dockerd.call(engine.socket, "GET", "/images/json")
    return {cleaning.plain(tag) for image in listed for tag in image["RepoTags"] or []}


def test_only_what_was_pulled_and_nothing_needs_goes_and_only_until_there_is_room(
    engine: conftest.Engine, tmp_path: pathlib.Path
) -> None:
    made = {name: f"skep/{name}:1" for name in ("old", "used", "needed", "newer", "newest", "theirs")}
    for name, image in made.items():
        dockerd.import_busybox(engine.socket, image=image, mark=name)
    container = dockerd.call(engine.socket, "POST", "/containers/create", {"Image": made["used"], "Cmd": ["true"]})[
        "Id"
    ]
    shares: Iterator[float] = iter([0.95, 0.90, 0.79])

    async def main() -> list[str]:
        opened = client.Client(f"unix://{engine.socket}")
        await opened.open()
        cleaner = cleaning.Cleaner(
            opened, clock=clock.SystemClock(), notes=tmp_path / "n", measure=lambda _: next(shares)
        )
        for name in ("old", "used", "needed", "newer", "newest"):
            cleaner.pulled(made[name])
        try:
            return await cleaner.tidy([made["needed"]])
        finally:
            await opened.close()

    try:
        assert asyncio.run(main()) == [made["old"], made["newer"]]
        assert set(made.values()) - names(engine) == {made["old"], made["newer"]}
    finally:
        dockerd.call(engine.socket, "DELETE", f"/containers/{container}?force=1")
        for image in set(made.values()) & names(engine):
            dockerd.call(engine.socket, "DELETE", f"/images/{image}?force=1")


def test_the_engines_own_disk_is_measured(engine: conftest.Engine) -> None:
    root = dockerd.call(engine.socket, "GET", "/info")["DockerRootDir"]
    assert 0 < cleaning.used_share(root) <= 1
