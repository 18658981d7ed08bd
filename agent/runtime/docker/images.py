"""Brings images to this machine.

Owns the pulls that are under way: one per image and credentials, however many tasks wait for it. Must not create
containers.
"""

import asyncio
import json
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from agent.runtime import base
from agent.runtime.docker import cleaning, client
from skep import errors

log = structlog.get_logger(__name__)

Key = tuple[str, str]  # image and credentials

SEEN_S = 5.0  # for so long an image that was here is taken to be so: tasks of one service come together
USED_S = 300.0  # between two looks how much images take
IDLE_S = 300.0  # of silence from the registry before a pull is given up
# What an engine says when trying again cannot help. Everything else (networks, busy registries) may pass.
HOPELESS = ("not found", "denied", "does not exist", "manifest unknown", "unauthorized", "invalid reference",
            "no matching manifest", "no such image", "not implemented", "repository name must be",
            "no basic auth credentials", "authentication required")  # fmt: skip
PASSING = ("no such host", "server misbehaving")  # a name service, not an image, that was not found


def split(reference: str) -> tuple[str, str]:
    """(fromImage, tag) for the pull call. Without tag or digest it is `latest`: the API would pull every tag."""
    if "@" in reference:
        return reference, ""
    name, colon, tag = reference.rpartition(":")
    if colon and "/" not in tag:
        return name, tag
    return reference, "latest"


def hopeless(message: str) -> bool:
    """Whether a pull that failed with this message would fail for ever."""
    lowered = message.lower()
    return any(word in lowered for word in HOPELESS) and not any(word in lowered for word in PASSING)


class Progress:
    """Sums up the lines of a pull in one sentence."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, bool] = {}

    def line(self, event: dict[str, Any]) -> str:
        """The sentence after this line of the pull; empty when it changed nothing worth telling."""
        layer, status = event.get("id", ""), event.get("status", "")
        if not layer or status.startswith("Pulling from"):
            return ""
        finished = status in {"Pull complete", "Already exists"}
        if self._layers.get(layer) == finished:
            return ""
        self._layers[layer] = finished
        return f"pulling {self._image}: {sum(self._layers.values())} of {len(self._layers)} layers"


class Images:
    """The engine's images."""

    def __init__(self, engine: client.Client, cleaner: cleaning.Cleaner) -> None:
        self._engine = engine
        self._cleaner = cleaner
        self._used_bytes, self._used_at = 0, -USED_S
        self._seen: dict[str, float] = {}  # images that were here, and when
        self._pulls: dict[Key, tuple[asyncio.Task[None], list[Callable[[str], None]]]] = {}

    async def ensure(self, image: str, *, auth: str, progress: Callable[[str], None]) -> None:
        """Returns once the image is here. Raises TaskFatal when it never will be, TaskTemporary when it may."""
        now = asyncio.get_running_loop().time()
        if now - self._seen.get(image, -SEEN_S) < SEEN_S:
            return
        if await self._present(image):
            self._seen[image] = now
            self._cleaner.wanted(image)
            return
        self.forget(image)
        key = image, auth
        if key not in self._pulls:
            pull = asyncio.create_task(self._pull(image, auth), name=f"pull {image}")
            self._pulls[key] = (pull, [])
            pull.add_done_callback(lambda _: self._pulls.pop(key, None))
        pull, listeners = self._pulls[key]
        listeners.append(progress)
        try:
            # Shielded: a task that is not wished any more must not break off what others wait for.
            await asyncio.shield(pull)
        except (base.TaskFatal, base.TaskTemporary):
            if await self._present(image):  # imported or built here while the registry was asked
                return
            raise
        finally:
            listeners.remove(progress)

    def forget(self, image: str) -> None:
        """The image is not here, as the engine says."""
        self._seen.pop(image, None)

    async def used_bytes(self) -> int:
        """About how much of the disk images take: layers that several share count once for each."""
        now = asyncio.get_running_loop().time()
        if now - self._used_at >= USED_S:
            found = await self._engine.get("/images/json")
            self._used_bytes, self._used_at = sum(int(each.get("Size") or 0) for each in found), now
        return self._used_bytes

    async def close(self) -> None:
        """Breaks off all pulls; the engine keeps the layers it has."""
        pulls = [pull for pull, _ in self._pulls.values()]
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    async def _present(self, image: str) -> bool:
        try:
            await self._engine.get(f"/images/{urllib.parse.quote(image, safe='/:@')}/json")
        except errors.NotFound:
            return False
        except errors.Invalid as error:
            raise base.TaskFatal(f"image {image}: {error}") from error
        except client.EngineFailed as error:  # Podman, of names that cannot be
            kind = base.TaskFatal if hopeless(str(error)) else base.TaskTemporary
            raise kind(f"image {image}: {error}") from error
        return True

    async def _pull(self, image: str, auth: str) -> None:
        name, tag = split(image)
        query = {"fromImage": name, **({"tag": tag} if tag else {})}
        headers = {"X-Registry-Auth": auth} if auth else {}
        key = image, auth
        self._tell(key, f"pulling {image}")
        progress, failure = Progress(image), ""
        try:
            async with self._engine.stream(
                "POST", "/images/create", query=query, headers=headers, idle_s=IDLE_S
            ) as chunks:
                async for event in json_stream(chunks):
                    failure = failure or event.get("error", "")
                    line = progress.line(event)
                    if line:
                        self._tell(key, line)
        except (base.TaskTemporary, asyncio.CancelledError):
            raise
        except errors.SkepError as error:
            failure = str(error)
        if failure:
            log.warning("image.not_pulled", image=image, error=failure)
            kind = base.TaskFatal if hopeless(failure) else base.TaskTemporary
            raise kind(f"cannot pull image {image}: {failure}")
        self._cleaner.pulled(image)

    def _tell(self, key: Key, line: str) -> None:
        if key in self._pulls:
            for listener in self._pulls[key][1]:
                listener(line)


async def json_stream(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream, one a line, as engines send pulls and events."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)
