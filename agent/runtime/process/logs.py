"""Reads a task's rotated output.

Owns the record format's reading side (see `shim.Log` for the writing side); must not write or rotate.
"""

import asyncio
import os
import pathlib
from collections.abc import AsyncIterator, Callable

from agent.runtime import base
from skep import pb, stamps

POLL_S = 0.1  # while somebody follows; files give no notice of growth that the standard library could wait for
FILES_MAX = 1000  # a bound for the search of log.N
STREAMS = {b"o": pb.LOG_STREAM_STDOUT, b"e": pb.LOG_STREAM_STDERR}


def parse(record: bytes) -> pb.LogEntry | None:
    """One line of a log file without its newline; None when it is damaged."""
    at, space, rest = record.partition(b" ")
    kind, text = rest[:1], rest[2:]
    stream = STREAMS.get(kind.lower())
    if not space or stream is None:
        return None
    try:
        seconds = float(at)
    except ValueError:
        return None
    partial = kind.isupper()
    return pb.LogEntry(timestamp=stamps.stamp(seconds), stream=stream, data=text if partial else text + b"\n")


def wanted(entry: pb.LogEntry, options: base.LogOptions) -> bool:
    """Whether the options ask for this entry (all but `tail`)."""
    if entry.stream == pb.LOG_STREAM_STDOUT and not options.stdout:
        return False
    if entry.stream == pb.LOG_STREAM_STDERR and not options.stderr:
        return False
    return stamps.seconds(entry.timestamp) >= options.since


class Reader:
    """Reads on where it stopped, across rotations. Blocking."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._file: int | None = None
        self._rest = b""

    def close(self) -> None:
        """Lets go of the open file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def read(self) -> list[pb.LogEntry]:
        """Everything that was written since the last call, oldest first."""
        entries: list[pb.LogEntry] = []
        if self._file is None:
            self._open_oldest()
        while self._file is not None:
            newer = self._newer(self._file)  # looked up first: what is written until then is still in the old file
            entries += self._drain(self._file)
            if newer is None:
                break
            os.close(self._file)
            self._file = newer
        return entries

    def _numbers(self) -> list[int]:
        found: list[int] = []
        for number in range(FILES_MAX):
            if not (self._directory / f"log.{number}").exists():
                break
            found.append(number)
        return found

    def _open(self, number: int) -> int | None:
        try:
            return os.open(self._directory / f"log.{number}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def _open_oldest(self) -> None:
        numbers = self._numbers()
        if numbers:
            self._file = self._open(numbers[-1])

    def _newer(self, current: int) -> int | None:
        """The file after the one that is open; None when it is the newest."""
        mine = os.fstat(current).st_ino
        following: int | None = None
        for number in self._numbers():
            try:
                if (self._directory / f"log.{number}").stat().st_ino == mine:
                    return None if number == 0 else self._open(number - 1)
            except FileNotFoundError:
                continue
            following = number
        return None if following is None else self._open(following)  # ours was dropped: go on with the oldest

    def _drain(self, current: int) -> list[pb.LogEntry]:
        chunks: list[bytes] = []
        while chunk := os.read(current, 1 << 20):
            chunks.append(chunk)
        lines = (self._rest + b"".join(chunks)).split(b"\n")
        self._rest = lines.pop()
        return [entry for entry in map(parse, lines) if entry is not None]


async def read(
    directory: pathlib.Path, options: base.LogOptions, *, ended: Callable[[], bool]
) -> AsyncIterator[pb.LogEntry]:
    """The entries asked for; follows until `ended` says that nothing will be written any more."""
    reader = Reader(directory)
    try:
        final = ended()
        entries = [entry for entry in await asyncio.to_thread(reader.read) if wanted(entry, options)]
        if options.tail >= 0:
            entries = entries[len(entries) - min(options.tail, len(entries)) :]
        for entry in entries:
            yield entry
        while options.follow and not final:
            await asyncio.sleep(POLL_S)
            final = ended()
            for entry in reader.read():
                if wanted(entry, options):
                    yield entry
    finally:
        reader.close()
