"""The log on disk: one file, one checksummed record a batch, each synced before `write` returns.

A file is called by its generation. Whenever entries are dropped because a snapshot covers them, everything that still
counts is written as the first record of the next generation, which is synced and then named; so at every moment one
whole file holds the truth. A batch that was being written when the machine stopped leaves a torn tail, which is cut:
nothing of it was ever promised to anyone. Any other damage is refused, also a log that is gone altogether: a mark in
another place says that there was one. Blocking; the node calls it in a worker thread.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog

from manager.raft import disk, ops, sealing, snapshot

log = structlog.get_logger(__name__)

PREFIX = "log-"
PARTIAL = ".partial"
MAGIC = b"SKEPLOG1"
RECORD_BYTES_MAX = 1 << 31
SECTOR_BYTES = 512  # what a disk writes as a whole
_FILE_HEADER = struct.Struct("<8sQ")  # magic, generation
_RECORD_MARK = b"\xabREC"
_RECORD_HEADER = struct.Struct("<4sIQII")  # mark, length, number, CRC-32 of the content, CRC-32 of the fields before


class Log(Protocol):
    """Where a manager's log is kept. Every call blocks and may raise OSError or Damaged."""

    def load(self) -> ops.State | None:
        """What was durable at the end of the last run; None when there never was one."""
        ...

    def write(self, batch: Sequence[ops.Op]) -> None:
        """Carries out a batch; when it returns, all of it is durable. After an error nothing more may be written."""
        ...

    def save_snapshot(self, taken: snapshot.Snapshot, blocks: Iterable[bytes]) -> snapshot.Snapshot:
        """Stores a snapshot's body, durably, and returns it with blocks and digest. It counts only once `Taken`."""
        ...

    def open_snapshot(self, taken: snapshot.Snapshot) -> snapshot.BlockReader:
        """The stored body of a snapshot."""
        ...

    def close(self) -> None: ...


class DurableLog:
    """The Log on a Disk. `mark` outlives the loss of everything on it."""

    def __init__(self, target: disk.Disk, seal: sealing.Seal | None = None, *, mark: disk.Mark | None = None) -> None:
        self._disk = target
        self._mark = mark
        self._marked = False
        self._seal = seal or sealing.Plain()
        self._state = ops.State()
        self._generation = 0
        self._file: disk.File | None = None
        self._number = 0  # of the last record in the file
        self.torn_bytes = 0  # cut off by the last `load`

    def load(self) -> ops.State | None:
        names = self._disk.names()
        logs = [name for name in names if name.startswith(PREFIX) and not name.endswith(PARTIAL)]
        bodies = [name for name in names if name.startswith(snapshot.PREFIX) and not name.endswith(PARTIAL)]
        if not logs:
            if bodies:
                raise sealing.missing(self._disk.where(PREFIX + "*"), "there are snapshots")
            self._refuse_if_marked()
            return None
        name = logs[-1]
        self._read(name)
        self._file = self._disk.append(name)
        # What a killed process had written and not synced is read like anything else, and would be promised to others
        # from now on. It has to be durable first, and its name before what came before it is removed.
        self._file.sync()
        self._disk.sync_names()
        for leftover in names:
            if leftover.startswith((PREFIX, snapshot.PREFIX)) and leftover not in {name, self._state.snapshot.name}:
                self._disk.remove(leftover)
        if self._state.head.index == 0:
            self._refuse_if_marked()
            return None  # it ended before the first batch
        self._set_mark()
        copy = ops.State()
        for op in self._state.operations():
            copy.apply(op)
        return copy

    def write(self, batch: Sequence[ops.Op]) -> None:
        file = self._file
        if file is None:
            file = self._next_generation()  # from here on a missing log is a damage, and not a beginning
        taken = False
        trimmed = False
        for op in batch:
            taken = taken or isinstance(op, ops.Taken)
            trimmed = trimmed or isinstance(op, ops.Head)
            self._state.apply(op)
        if trimmed:
            self._next_generation()
        else:
            file.write(self._record(ops.encode(batch)))
            file.sync()
        self._set_mark()  # with the first batch: nothing was answered before it, and from now on others rely on us
        if taken or trimmed:
            self._sweep()

    def save_snapshot(self, taken: snapshot.Snapshot, blocks: Iterable[bytes]) -> snapshot.Snapshot:
        return snapshot.write(self._disk, self._seal, taken, blocks)

    def open_snapshot(self, taken: snapshot.Snapshot) -> snapshot.BlockReader:
        return snapshot.BlockReader(self._disk, self._seal, taken)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---------------------------------------------------------------- the mark

    def _set_mark(self) -> None:
        if self._mark is not None and not self._marked:
            self._marked = True
            if not self._mark.is_set():
                self._mark.set()

    def _refuse_if_marked(self) -> None:
        if self._mark is not None and self._mark.is_set():
            where = self._disk.where(PREFIX + "*")
            raise sealing.missing(where, f"this node was a manager ({self._mark.where()} says so)")

    # ---------------------------------------------------------------- writing

    def _record(self, content: bytes) -> bytes:
        self._number += 1
        sealed = self._seal.seal(content, context=self._context(self._number))
        if len(sealed) > RECORD_BYTES_MAX:
            raise OSError(f"a log record of {len(sealed)} bytes is too large")
        return _header(len(sealed), self._number, zlib.crc32(sealed)) + sealed

    def _next_generation(self) -> disk.File:
        self._generation += 1
        self._number = 0
        name = f"{PREFIX}{self._generation:016x}"
        file = self._disk.create(name + PARTIAL)
        try:
            file.write(_FILE_HEADER.pack(MAGIC, self._generation))
            file.write(self._record(ops.encode(self._state.operations())))
            file.sync()
        finally:
            file.close()
        self._disk.rename(name + PARTIAL, name)
        if self._file is not None:
            self._file.close()
        self._file = self._disk.append(name)
        return self._file

    def _sweep(self) -> None:
        """Removes what no longer counts. Snapshots newer than ours may be in the making and stay."""
        current = f"{PREFIX}{self._generation:016x}"
        for name in self._disk.names():
            old_log = name.startswith(PREFIX) and name < current
            old_snapshot = name.startswith(snapshot.PREFIX) and name < self._state.snapshot.name
            if (old_log or old_snapshot) and not name.endswith(PARTIAL):
                self._disk.remove(name)

    # ---------------------------------------------------------------- reading

    def _read(self, name: str) -> None:
        where = self._disk.where(name)
        size = self._disk.size(name)
        reader = self._disk.open(name)
        try:
            data = reader.read_at(0, size)
        finally:
            reader.close()
        if len(data) < _FILE_HEADER.size or data[: len(MAGIC)] != MAGIC:
            raise sealing.damaged(where, 0, "not a log of skep")
        self._generation = _FILE_HEADER.unpack_from(data)[1]
        if name != f"{PREFIX}{self._generation:016x}":
            raise sealing.damaged(where, 8, "a log under a false name")
        position = _FILE_HEADER.size
        while position < len(data):
            end = self._end_of_record(data, position)
            if end is None:
                self._cut_tail(name, data, position)
                return
            self._replay(data[position + _RECORD_HEADER.size : end], where, position)
            position = end
        if self._number == 0:
            raise sealing.damaged(where, position, "the log is empty")

    def _end_of_record(self, data: bytes, position: int) -> int | None:
        """Where the record at `position` ends; None when it is not whole."""
        header = data[position : position + _RECORD_HEADER.size]
        if len(header) < _RECORD_HEADER.size:
            return None
        _, length, number, checksum, _ = _RECORD_HEADER.unpack(header)
        end = position + _RECORD_HEADER.size + int(length)
        if header != _header(length, number, checksum) or number != self._number + 1 or end > len(data):
            return None
        return end if zlib.crc32(data[position + _RECORD_HEADER.size : end]) == checksum else None

    def _replay(self, sealed: bytes, where: str, position: int) -> None:
        self._number += 1
        try:
            content = self._seal.open(sealed, context=self._context(self._number))
        except ValueError:
            raise sealing.damaged(where, position, "record sealed with another key") from None
        try:
            for op in ops.decode(content):
                self._state.apply(op)
        except ValueError as error:
            raise sealing.damaged(where, position, f"unreadable record ({error})") from None

    def _cut_tail(self, name: str, data: bytes, position: int) -> None:
        """Cuts a record that was being written when the machine stopped; refuses any other damage.

        An unfinished write leaves sectors out: the file ends early, or holds zeros. A flipped bit does neither. And
        it is the last thing in the file, for the next record is only begun once the one before is durable.
        """
        where = self._disk.where(name)
        if self._number == 0 or not _looks_torn(data, position) or self._later_record(data, position):
            raise sealing.damaged(where, position, "damaged record")
        self.torn_bytes = len(data) - position
        log.warning("raft.torn_tail_cut", file=where, position=position, size_bytes=self.torn_bytes)
        self._disk.truncate(name, position)

    def _later_record(self, data: bytes, position: int) -> bool:
        while (position := data.find(_RECORD_MARK, position + 1)) >= 0:
            header = data[position : position + _RECORD_HEADER.size]
            if len(header) == _RECORD_HEADER.size:
                _, length, number, checksum, _ = _RECORD_HEADER.unpack(header)
                if header == _header(length, number, checksum) and number > self._number + 1:
                    return True
        return False

    def _context(self, number: int) -> bytes:
        return f"log {self._generation} record {number}".encode()


def _header(length: int, number: int, checksum: int) -> bytes:
    fields = _RECORD_HEADER.pack(_RECORD_MARK, length, number, checksum, 0)[:-4]
    return fields + zlib.crc32(fields).to_bytes(4, "little")


def _looks_torn(data: bytes, position: int) -> bool:
    header = data[position : position + _RECORD_HEADER.size]
    if len(header) < _RECORD_HEADER.size:
        return True
    _, length, number, checksum, _ = _RECORD_HEADER.unpack(header)
    if header == _header(length, number, checksum) and position + _RECORD_HEADER.size + length > len(data):
        return True
    while position < len(data):
        boundary = (position // SECTOR_BYTES + 1) * SECTOR_BYTES
        if not any(data[position:boundary]):
            return True
        position = boundary
    return False
