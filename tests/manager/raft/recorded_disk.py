"""What a machine may find on its disk after a power cut: the real OsDisk's system calls, recorded and replayed in part.

Every call goes to the real directory and is noted down. `after_power_cut` then builds the directory as it may be if
the power had failed after the first so many calls: whatever was synced is there; of the rest anything between nothing
and everything, data sector by sector, and names independently of data and of each other. That is less than any real
file system promises.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

from manager.raft import disk

SECTOR_BYTES = 512


@dataclasses.dataclass(frozen=True)
class Call:
    """One system call that changes something. `file` is a number that stays the same when a file is renamed."""

    kind: str  # create, write, truncate, sync, sync names, rename, remove
    file: int = 0
    name: str = ""
    offset: int = 0  # for truncate: the new size
    data: bytes = b""


@dataclasses.dataclass
class _File:
    durable: bytearray = dataclasses.field(default_factory=bytearray)
    pending: list[Call] = dataclasses.field(default_factory=list)

    def settle(self, calls: list[Call]) -> None:
        for call in calls:
            if call.kind == "truncate":
                del self.durable[call.offset :]
                continue
            gap = call.offset - len(self.durable)
            self.durable += bytes(max(gap, 0))
            self.durable[call.offset : call.offset + len(call.data)] = call.data


class Recorder:
    """Stands between OsDisk and the operating system while `recording`. Begins with what the directory holds."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.calls: list[Call] = []
        directory.mkdir(parents=True, exist_ok=True)
        self._names: dict[str, int] = {path.name: number for number, path in enumerate(sorted(directory.iterdir()), 1)}
        self._before = {number: (directory / name).read_bytes() for name, number in self._names.items()}
        self._names_before = dict(self._names)
        self._count = len(self._names)
        self._open: dict[int, tuple[int, int]] = {}  # descriptor -> file (0: the directory), position of the next write

    # ---------------------------------------------------------------- recording

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """OsDisk is watched while the context lasts."""
        calls = mock.Mock(wraps=os)
        calls.configure_mock(
            open=self._opened, write=self._wrote, fdatasync=self._synced, fsync=self._synced,
            ftruncate=self._truncated, close=self._closed,
            **{name: getattr(os, name) for name in dir(os) if name.startswith(("O_", "POSIX_FADV_"))},
        )  # fmt: skip
        with (
            mock.patch.object(disk, "os", calls),
            mock.patch.object(pathlib.Path, "replace", lambda path, to: self._renamed(path, to)),  # noqa: PLW0108 - binds
            mock.patch.object(pathlib.Path, "unlink", lambda path, **_: self._removed(path)),
        ):
            yield

    def _opened(self, path: pathlib.Path, flags: int, *mode: int) -> int:
        descriptor = os.open(path, flags, *mode)
        if flags & os.O_DIRECTORY:
            self._open[descriptor] = (0, 0)
        elif flags & os.O_WRONLY:
            if flags & os.O_TRUNC:
                self._count += 1
                self._names[path.name] = self._count
                self.calls.append(Call("create", self._count, path.name))
            position = os.fstat(descriptor).st_size if flags & os.O_APPEND else 0
            self._open[descriptor] = (self._names[path.name], position)
        return descriptor

    def _wrote(self, descriptor: int, data: Any) -> int:
        size_bytes = os.write(descriptor, data)
        file, position = self._open[descriptor]
        self.calls.append(Call("write", file, offset=position, data=bytes(data[:size_bytes])))
        self._open[descriptor] = (file, position + size_bytes)
        return size_bytes

    def _synced(self, descriptor: int) -> None:
        os.fsync(descriptor)
        file, _ = self._open[descriptor]
        self.calls.append(Call("sync", file) if file else Call("sync names"))

    def _truncated(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)
        self.calls.append(Call("truncate", self._open[descriptor][0], offset=size_bytes))

    def _closed(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def _renamed(self, path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        os.replace(path, target)
        self._names[target.name] = self._names.pop(path.name)
        self.calls.append(Call("rename", self._names[target.name], path.name + "/" + target.name))
        return target

    def _removed(self, path: pathlib.Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            self.calls.append(Call("remove", self._names.pop(path.name), path.name))

    # ---------------------------------------------------------------- replaying

    def after_power_cut(self, calls: int, target: pathlib.Path, rng: random.Random, *, kept: float) -> None:
        """The directory as it may be after so many calls. `kept`: how likely each unsynced thing is there, 0 to 1."""
        files = {number: _File(bytearray(data)) for number, data in self._before.items()}
        names, changes = dict(self._names_before), list[Call]()
        for call in self.calls[:calls]:
            match call.kind:
                case "create":
                    files[call.file] = _File()
                    changes.append(call)
                case "write" | "truncate":
                    files[call.file].pending.append(call)
                case "sync":
                    files[call.file].settle(files[call.file].pending)
                    files[call.file].pending.clear()
                case "sync names":
                    _rename(names, changes)
                    changes.clear()
                case _:
                    changes.append(call)
        _rename(names, [call for call in changes if rng.random() < kept])
        for file in files.values():
            file.settle([part for call in file.pending for part in _sectors(call) if rng.random() < kept])
        target.mkdir(parents=True)
        for name, number in names.items():
            (target / name).write_bytes(files[number].durable)


def _rename(names: dict[str, int], calls: list[Call]) -> None:
    for call in calls:
        old, _, new = call.name.partition("/")
        if call.kind != "create":
            names.pop(old, None)
        if call.kind != "remove":
            names[new or old] = call.file


def _sectors(call: Call) -> Iterator[Call]:
    """A write as the parts that a disk writes as a whole."""
    if call.kind != "write":
        yield call
        return
    position = 0
    while position < len(call.data):
        size_bytes = SECTOR_BYTES - (call.offset + position) % SECTOR_BYTES
        part = call.data[position : position + size_bytes]
        yield dataclasses.replace(call, offset=call.offset + position, data=part)
        position += size_bytes
