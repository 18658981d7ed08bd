"""Brings images to this machine.

Owns the pulls that are under way: one per image and credentials, however many tasks wait for it. A name that may mean
something else by now is asked for once by each revision, so that all its tasks here get the same. Must not create
containers.
"""

import asyncio
import dataclasses
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
ASK_S = 8.0  # until a registry answers, where the image is here: without a network a task must not wait for long
ASKED_MAX = 2000  # revisions of which is known that they have asked
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


def movable(reference: str) -> bool:
    """Whether the name may come to mean another image."""
    return "@" not in reference and not reference.startswith("sha256:")


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


@dataclasses.dataclass(frozen=True)
class Pull:
    """One that is under way."""

    work: asyncio.Task[None]
    listeners: list[Callable[[str], None]]
    answered: asyncio.Event  # the registry has said something


class Images:
    """The engine's images."""

    def __init__(self, engine: client.Client, cleaner: cleaning.Cleaner) -> None:
        self._engine = engine
        self._cleaner = cleaner
        self._used_bytes, self._used_at = 0, -USED_S
        self._seen: dict[str, float] = {}  # images that were here, and when
        self._pulls: dict[Key, Pull] = {}
        self._asked: dict[tuple[str, str], None] = {}  # revision and image, the latest last

    async def ensure(self, image: str, *, auth: str, revision: str, progress: Callable[[str], None]) -> None:
        """Returns once the image is here, as its registry has it now if nobody of the revision has asked before.

        Raises TaskFatal when it never will be, TaskTemporary when it may. Where the registry cannot be asked, what is
        here must do, and `progress` is told.
        """
        now = asyncio.get_running_loop().time()
        due = movable(image) and (revision, image) not in self._asked
        if not due and now - self._seen.get(image, -SEEN_S) < SEEN_S:
            return
        here = await self._identity(image)
        if here:
            self._seen[image] = now
            self._cleaner.wanted(image)
            due = due and (revision, image) not in self._asked  # those who came together have asked together
            if due and await self._ask(image, auth, here, progress):
                self._note(revision, image)
            return
        self.forget(image)
        pull = self._begin(image, auth, here)
        pull.listeners.append(progress)
        try:
            # Shielded: a task that is not wished any more must not break off what others wait for.
            await asyncio.shield(pull.work)
            self._note(revision, image)
        except (base.TaskFatal, base.TaskTemporary):
            if await self._identity(image):  # imported or built here while the registry was asked
                return
            raise
        finally:
            pull.listeners.remove(progress)

    def _begin(self, image: str, auth: str, here: str) -> Pull:
        """The pull that is under way, or a new one."""
        key = image, auth
        if key not in self._pulls:
            work = asyncio.create_task(self._pull(image, auth, here), name=f"pull {image}")
            self._pulls[key] = Pull(work, [], asyncio.Event())
            work.add_done_callback(lambda done: self._pulled(key, done))
        return self._pulls[key]

    def _pulled(self, key: Key, done: asyncio.Task[None]) -> None:
        del self._pulls[key]
        if not done.cancelled():
            done.exception()  # nobody may wait for it any more

    async def _ask(self, image: str, auth: str, here: str, progress: Callable[[str], None]) -> bool:
        """Pulls what is here under this name already; a registry that is silent is waited for in the background.

        False when the engine was not there to ask it.
        """
        pull = self._begin(image, auth, here)
        answered = asyncio.ensure_future(pull.answered.wait())
        pull.listeners.append(progress)
        try:
            await asyncio.wait((pull.work, answered), timeout=ASK_S, return_when=asyncio.FIRST_COMPLETED)
            if pull.answered.is_set() or pull.work.done():
                await asyncio.shield(pull.work)
                return True
            reason = f"no answer from its registry within {ASK_S:g} s"
        except client.EngineAway:
            return False
        except (base.TaskFatal, base.TaskTemporary) as error:
            reason = str(error)
        finally:
            pull.listeners.remove(progress)
            answered.cancel()
        log.warning("image.not_asked_for", image=image, reason=reason)
        progress(f"image {image} is taken as it is here: {reason}")
        return True

    def _note(self, revision: str, image: str) -> None:
        self._asked.pop((revision, image), None)
        self._asked[revision, image] = None
        while len(self._asked) > ASKED_MAX:
            del self._asked[next(iter(self._asked))]

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
        pulls = [pull.work for pull in self._pulls.values()]
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    async def _identity(self, image: str) -> str:
        """The ID of the image that is here under this name; empty when there is none."""
        try:
            found = await self._engine.get(f"/images/{urllib.parse.quote(image, safe='/:@')}/json")
        except errors.NotFound:
            return ""
        except errors.Invalid as error:
            raise base.TaskFatal(f"image {image}: {error}") from error
        except client.EngineFailed as error:  # Podman, of names that cannot be
            kind = base.TaskFatal if hopeless(str(error)) else base.TaskTemporary
            raise kind(f"image {image}: {error}") from error
        return str(found["Id"])

    async def _pull(self, image: str, auth: str, here: str) -> None:
        """`here` is the ID of what has this name now."""
        name, tag = split(image)
        query = {"fromImage": name, **({"tag": tag} if tag else {})}
        headers = {"X-Registry-Auth": auth} if auth else {}
        key = image, auth
        if not here:
            self._tell(key, f"pulling {image}")
        progress, failure = Progress(image), ""
        try:
            async with self._engine.stream(
                "POST", "/images/create", query=query, headers=headers, idle_s=IDLE_S
            ) as chunks:
                async for event in json_stream(chunks):
                    self._pulls[key].answered.set()
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
        if not here:
            self._cleaner.pulled(image)
        elif await self._identity(image) != here:
            log.info("image.moved", image=image, before=here)
            self._cleaner.replaced(image, before=here)

    def _tell(self, key: Key, line: str) -> None:
        if key in self._pulls:
            for listener in self._pulls[key].listeners:
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
