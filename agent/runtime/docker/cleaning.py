"""Removes images when the engine's disk fills up: only those that were pulled here, oldest use first.

Owns the note of what was pulled for tasks, so that nobody else's image is ever touched. Never removes what a container
uses, nor what a revision known on this node names.
"""

import asyncio
import json
import pathlib
import shutil
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from typing import Any

import structlog

from agent.runtime.docker import client
from skep import clock, errors

log = structlog.get_logger(__name__)

HIGH, LOW = 0.85, 0.80  # of the disk: begins above the one, ends below the other
REMOVE_S = 120.0
NOTED_MAX = 2000  # images on record; the oldest are forgotten, and then never removed

Measure = Callable[[str], float]


def used_share(directory: str) -> float:
    """How full the file system of `directory` is, 0 to 1. Raises OSError."""
    usage = shutil.disk_usage(directory)
    return usage.used / (usage.used + usage.free) if usage.used else 0.0  # what root keeps for itself is neither


def candidates(pulled: Mapping[str, float], *, needed: Collection[str], containers: Collection[str]) -> list[str]:
    """Images that may go, the one that was not wanted for the longest time first. Pure.

    `pulled` says when each was last wanted; `needed` and `containers` are the names in use.
    """
    kept = {plain(image) for image in (*needed, *containers)}
    return sorted((image for image in pulled if plain(image) not in kept), key=lambda image: (pulled[image], image))


def plain(image: str) -> str:
    """The name without what Podman puts in front of short ones: it shows containers' images in full."""
    for prefix in ("docker.io/library/", "docker.io/", "localhost/"):
        if image.startswith(prefix):
            return image[len(prefix) :]
    return image


class Cleaner:
    """The images that skep pulled on this engine."""

    def __init__(
        self,
        engine: client.Client,
        *,
        clock: clock.Clock,
        notes: pathlib.Path | None = None,
        measure: Measure = used_share,
    ) -> None:
        """`notes` is the file that outlives the agent; without one an agent only knows what it pulled itself."""
        self._engine = engine
        self._clock = clock
        self._notes = notes
        self._measure = measure
        self._pulled: dict[str, float] = _read(notes)

    def pulled(self, image: str) -> None:
        """The image was pulled for a task."""
        self._pulled[image] = self._clock.now()
        for oldest in sorted(self._pulled, key=lambda each: self._pulled[each])[:-NOTED_MAX]:
            del self._pulled[oldest]
        self._write()

    def replaced(self, image: str, *, before: str) -> None:
        """A pull has brought another image of that name; `before` is the ID of the one that has lost it."""
        if image in self._pulled:
            self._pulled[before] = self._pulled[image]
        self.pulled(image)

    def known(self) -> list[str]:
        """What was pulled and is not known to be gone, by name."""
        return sorted(self._pulled)

    def wanted(self, image: str) -> None:
        """A task wants the image, which is here."""
        if image in self._pulled:
            self.pulled(image)

    async def tidy(self, needed: Collection[str]) -> list[str]:
        """Removes images while the disk is too full; returns which. Raises what the client raises."""
        if not self._pulled:
            return []
        info = await self._engine.get("/info")
        root = str(info.get("DockerRootDir") or "")
        share = await asyncio.to_thread(self._share, root)
        if share < HIGH:
            return []
        containers: list[dict[str, Any]] = await self._engine.get("/containers/json", query={"all": "1"})
        used = [str(each.get("Image", "")) for each in containers]
        removed: list[str] = []
        for image in candidates(self._pulled, needed=needed, containers=used):
            if not await self._remove(image):
                continue
            removed.append(image)
            share = await asyncio.to_thread(self._share, root)
            if share < LOW:
                break
        log.warning("image.disk_full", directory=root, used=round(share, 3), removed=removed)
        return removed

    async def _remove(self, image: str) -> bool:
        try:
            path = f"/images/{urllib.parse.quote(image, safe='/:@')}"
            await self._engine.delete(path, timeout_s=REMOVE_S)  # not forced: the engine refuses what it needs
        except errors.Conflict as error:
            log.info("image.kept", image=image, reason=str(error))
            return False
        except errors.NotFound:
            pass
        self._pulled.pop(image, None)
        self._write()
        return True

    def _share(self, root: str) -> float:
        try:
            return self._measure(root)
        except OSError as error:  # an engine whose files are elsewhere: nothing to measure
            log.debug("image.disk_unknown", directory=root, error=str(error))
            return 0.0

    def _write(self) -> None:
        if self._notes is None:
            return
        temporary = self._notes.with_suffix(".tmp")
        try:
            self._notes.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._pulled))
            temporary.rename(self._notes)
        except OSError as error:
            log.warning("image.not_noted", path=str(self._notes), error=str(error))


def _read(notes: pathlib.Path | None) -> dict[str, float]:
    try:
        found = json.loads(notes.read_text()) if notes is not None else {}
        return {str(image): float(at) for image, at in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # nothing is known to be ours, so nothing is removed
