"""Where the managers are, as this agent last heard: a small file that outlives the process."""

import json
import os
import pathlib
from collections.abc import Iterable

import structlog

log = structlog.get_logger(__name__)

ADDRESSES_MAX = 64  # a cluster has a handful of managers


class ManagerBook:
    """The managers' cluster addresses (host:port)."""

    def __init__(self, path: pathlib.Path | None, *, seeds: Iterable[str] = ()) -> None:
        """Reads `path`; `seeds` count while it holds nothing. None keeps the addresses in memory only."""
        self._path = path
        self._written = _read(path)
        self._addresses = self._written or _clean(seeds)

    def addresses(self) -> list[str]:
        """The addresses to try."""
        return list(self._addresses)

    def replace(self, addresses: Iterable[str]) -> None:
        """Takes a new list and writes it down; an empty one is ignored, as it would cut the agent off."""
        fresh = _clean(addresses)
        if not fresh:
            return
        self._addresses = fresh
        if self._path is not None and fresh != self._written:  # seeds that turn out right are worth keeping, too
            _write(self._path, fresh)
            self._written = fresh


def _clean(addresses: Iterable[str]) -> list[str]:
    return [each for each in dict.fromkeys(addresses) if each][:ADDRESSES_MAX]


def _read(path: pathlib.Path | None) -> list[str]:
    if path is None:
        return []
    try:
        content = json.loads(path.read_text())
        return _clean(str(each) for each in content["managers"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        log.warning("managers.file_unreadable", path=str(path), error=str(error))
        return []


def _write(path: pathlib.Path, addresses: list[str]) -> None:
    beside = path.with_name(path.name + ".new")
    with beside.open("w") as file:
        json.dump({"managers": addresses}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
