"""Reads a task's rotated output.

Owns the record format's reading side (see `shim.Log` for the writing side); must not write or rotate. Files are read
in small pieces in a thread, each only when the one before has been taken: however big a log is and however slow its
reader, a reading holds one piece in memory, and the event loop goes on.
"""

import asyncio
import contextlib
import os
import pathlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from agent.runtime import base
from skep import pb, stamps

POLL_S = 0.1  # while somebody follows; files give no notice of growth that the standard library could wait for
FILES_MAX = 1000  # of one task: a bound for the search of log.N, and so for the log driver's option max-file
CHUNK_BYTES = 64 * 1024  # read at a time
SCAN_BYTES = 1 << 20  # looked through in one go where nothing is wanted: closing a reading must not wait for long
RECORD_BYTES_MAX = 64 * 1024  # a record is a quarter of this at most: what is longer is damage
SECONDS_MAX = 1e11  # in a record; what is later is damage
SEARCHES_MAX = 100  # for a neighbouring file, while files are rotated under the search
STREAMS = {b"o": pb.LOG_STREAM_STDOUT, b"e": pb.LOG_STREAM_STDERR}


def _head(record: bytes) -> tuple[float, bytes, bytes] | None:
    """(time, kind, data) of one record without its newline; None when it is damaged."""
    at, _, rest = record.partition(b" ")
    kind = rest[:1]
    if kind.lower() not in STREAMS:
        return None
    try:
        seconds = float(at)
    except ValueError:
        return None
    return (seconds, kind, rest[2:]) if 0 <= seconds < SECONDS_MAX else None


def parse(record: bytes) -> pb.LogEntry | None:
    """One line of a log file without its newline; None when it is damaged."""
    head = _head(record)
    if head is None:
        return None
    seconds, kind, text = head
    data = text if kind.isupper() else text + b"\n"  # capitals: a part of a line, or a last one without a newline
    return pb.LogEntry(timestamp=stamps.stamp(seconds), stream=STREAMS[kind.lower()], data=data)


def wanted(record: bytes, options: base.LogOptions) -> bool:
    """Whether the options ask for this record (all but `tail`)."""
    head = _head(record)
    if head is None:
        return False
    seconds, kind, _ = head
    return (options.stdout if kind in b"oO" else options.stderr) and seconds >= options.since


class Reader:
    """Reads on where it stopped, across rotations. Blocking, but for `close`; one thread at a time."""

    def __init__(self, directory: pathlib.Path, options: base.LogOptions) -> None:
        self._directory = directory
        self._options = options
        self._missing = options.tail  # records to go back for
        self._file: int | None = None
        self._at = 0  # in the open file: where to read on, or down to where the search for the tail has come
        self._rest = b""  # a record that goes on at `_at`, or in the search ends there
        self._whole = False  # in the search: whether `_rest` ends with its newline
        self._left = 0  # bytes from `_at` to what was the end: only those are read unless somebody follows
        self._guard = threading.Lock()
        self._busy = self._closed = False

    def close(self) -> None:
        """Lets go of the open file, or has the thread do it that is reading."""
        with self._guard:
            self._closed = True
            if self._busy:
                return
        self._let_go()

    def seek(self) -> bool:
        """Goes towards where the wanted records begin; True once it is there. To be called before `read`."""
        with self._reading() as open_:
            if not open_:
                return True
            if self._file is None:
                files = self._files()
                self._file = self._open(files[0 if self._missing >= 0 else -1]) if files else None
                if self._file is None:
                    return not files  # it has just been renamed
                if self._missing < 0:
                    self._left = sum(self._size(number) for number, _ in files)
                    return True
                self._to_end(self._file)
            return any(self._back(self._file) for _ in range(max(1, SCAN_BYTES // CHUNK_BYTES)))

    def read(self) -> list[bytes] | None:
        """Some of the wanted records, oldest first; None when there are no more for now."""
        with self._reading() as open_:
            scanned = 0
            while open_ and scanned < SCAN_BYTES:
                chunk = self._next()
                if not chunk:
                    return None
                scanned += len(chunk)
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                if len(self._rest) > RECORD_BYTES_MAX:
                    self._rest = b""
                found = [line for line in lines if wanted(line, self._options)]
                if found:
                    return found
            return [] if open_ else None

    def grown(self) -> bool:
        """Whether there may be more than was read. Quick: two questions to the kernel."""
        if self._file is None:
            return True
        mine = os.fstat(self._file)
        try:
            newest = (self._directory / "log.0").stat().st_ino
        except OSError:
            return True
        return mine.st_size > self._at or newest != mine.st_ino

    # ---------------------------------------------------------------- backwards, for the tail

    def _to_end(self, file: int) -> None:
        self._at, self._rest, self._whole = os.fstat(file).st_size, b"", False

    def _back(self, file: int) -> bool:
        """One chunk further back; True when that is where the tail begins."""
        if self._at == 0:
            older = self._neighbour(file, newer=False)
            if older is None:
                return self._found(0)
            os.close(file)
            self._file = older
            self._to_end(older)
            return False
        size = min(CHUNK_BYTES, self._at)
        chunk = os.pread(file, size, self._at - size)
        if not chunk:  # cut off under our hands
            self._at = 0
            return False
        self._at -= size
        self._left += size
        data, position = chunk + self._rest, self._at
        first, *lines = data.split(b"\n")
        whole, self._whole = self._whole, self._whole or bool(lines)
        begins = [position + len(first) + 1]
        for line in lines:
            begins.append(begins[-1] + len(line) + 1)
        if not whole and lines:
            lines.pop()  # the end of the file: a record that is being written
            if self._missing == 0:
                return self._found(begins[len(lines)])
        for begin, line in zip(reversed(begins[: len(lines)]), reversed(lines), strict=True):
            if self._counted(line):
                return self._found(begin)
        self._rest = first if len(first) <= RECORD_BYTES_MAX else b""
        return self._at == 0 and self._whole and self._counted(first) and self._found(0)

    def _counted(self, record: bytes) -> bool:
        self._missing -= wanted(record, self._options)
        return self._missing == 0

    def _found(self, position: int) -> bool:
        self._left -= position - self._at
        self._at, self._rest = position, b""
        return True

    # ---------------------------------------------------------------- forwards

    def _next(self) -> bytes:
        """The next bytes; the record that they may begin with ends what `_rest` holds. Empty at the end."""
        if self._file is None:
            files = self._files()
            self._file = self._open(files[-1]) if files else None
        while self._file is not None:
            chunk = self._take(self._file)
            if chunk:
                return chunk
            newer = self._neighbour(self._file, newer=True)
            if newer is None:
                break
            chunk = self._take(self._file)  # written after the look before, and before the newer file was begun
            if chunk:
                os.close(newer)
                return chunk
            os.close(self._file)
            self._file, self._at, self._rest = newer, 0, b""
        return b""

    def _take(self, file: int) -> bytes:
        size = CHUNK_BYTES if self._options.follow else min(CHUNK_BYTES, self._left)
        chunk = os.pread(file, size, self._at)
        self._at += len(chunk)
        self._left -= len(chunk)
        return chunk

    # ---------------------------------------------------------------- files

    def _files(self) -> list[tuple[int, int]]:
        """(number, inode) of the files, newest first. Files only ever move up, so none is missed."""
        found: dict[int, int] = {}
        gap = False
        for number in range(FILES_MAX):
            try:
                found[os.stat(f"{self._directory}/log.{number}").st_ino] = number  # moved meanwhile: as seen last
                gap = False
            except OSError:
                if gap:
                    break
                gap = True  # a rotation under way leaves one number empty
        return [(number, inode) for inode, number in found.items()]

    def _open(self, wanted_file: tuple[int, int]) -> int | None:
        number, inode = wanted_file
        try:
            file = os.open(self._directory / f"log.{number}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(file).st_ino != inode:
            os.close(file)
            return None
        return file

    def _neighbour(self, file: int, *, newer: bool) -> int | None:
        """The file before or after the open one; None when there is none."""
        mine = os.fstat(file).st_ino
        for _ in range(SEARCHES_MAX):
            files = self._files()
            index = next((index for index, (_, inode) in enumerate(files) if inode == mine), None)
            if index is None:  # ours was dropped: on with the oldest that is left
                index = len(files)
            index += -1 if newer else 1
            if not 0 <= index < len(files):
                return None
            found = self._open(files[index])
            if found is not None:
                return found
        return None

    def _size(self, number: int) -> int:
        try:
            return os.stat(f"{self._directory}/log.{number}").st_size
        except OSError:
            return 0

    @contextlib.contextmanager
    def _reading(self) -> Iterator[bool]:
        with self._guard:
            self._busy = not self._closed
            begun = self._busy
        try:
            yield begun
        finally:
            with self._guard:
                self._busy = False
                closed = self._closed
            if closed:
                self._let_go()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


async def read(
    directory: pathlib.Path, options: base.LogOptions, *, ended: Callable[[], bool]
) -> AsyncIterator[pb.LogEntry]:
    """The entries asked for; follows until `ended` says that nothing will be written any more."""
    reader = Reader(directory, options)
    try:
        while not await asyncio.to_thread(reader.seek):
            pass
        while True:
            final = ended()
            if final or reader.grown():
                while (records := await asyncio.to_thread(reader.read)) is not None:
                    for entry in map(parse, records):
                        if entry is not None:
                            yield entry
            if final or not options.follow:
                return
            await asyncio.sleep(POLL_S)
    finally:
        reader.close()
