"""The few operations on files that the log needs, so that tests can put a disk underneath that loses, tears and fails.

Knows no format. All calls block; they run in a worker thread.
"""

import os
import pathlib
from typing import Protocol


class File(Protocol):
    """A file being written, at its end only."""

    def write(self, data: bytes) -> None:
        """Adds `data`; not durable before `sync`. Raises OSError."""
        ...

    def sync(self) -> None:
        """Returns once everything written is on stable storage. Raises OSError, after which nothing is certain."""
        ...

    def close(self) -> None: ...


class Reader(Protocol):
    """An open file; stays readable when the file is removed meanwhile."""

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` bytes from `offset`. Raises OSError."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """One directory, without subdirectories."""

    def names(self) -> list[str]:
        """All files, sorted."""
        ...

    def size(self, name: str) -> int: ...

    def open(self, name: str) -> Reader: ...

    def create(self, name: str) -> File:
        """A new, empty file; an old one of that name is lost. Durable by name only after `rename`."""
        ...

    def append(self, name: str) -> File:
        """An existing file, to be written at its end."""
        ...

    def truncate(self, name: str, size_bytes: int) -> None:
        """Cuts a file, durably."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Gives a synced file its name, durably and at once: after a crash either name holds the whole file."""
        ...

    def sync_names(self) -> None:
        """Returns once every file has its name for good. Raises OSError."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        ...

    def where(self, name: str) -> str:
        """The file's name for an error message."""
        ...


class Mark(Protocol):
    """Says, outside of the log's directory, that there was a log: an emptied directory must not look like a new one."""

    def is_set(self) -> bool:
        """Whether `set` was called in this run or an earlier one. Raises OSError."""
        ...

    def set(self) -> None:
        """Returns once it is durable. Raises OSError."""
        ...

    def where(self) -> str:
        """The mark's name for an error message."""
        ...


class OsMark:
    """A file in a directory that exists already."""

    TEXT = b"This node has a manager's log. Without it the manager must not start; skepd removes both together.\n"

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def is_set(self) -> bool:
        return self._path.exists()

    def set(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, self.TEXT)  # for people: that the file is there is what counts
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_directory(self._path.parent)

    def clear(self) -> None:
        """The log is about to be removed for good reasons. Durable when it returns."""
        if self.is_set():
            self._path.unlink()
            _sync_directory(self._path.parent)

    def where(self) -> str:
        return str(self._path)


class OsDisk:
    """A directory of the machine, for the owner's eyes only."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Creates the directory (0700) when it is missing."""
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)

    def names(self) -> list[str]:
        return sorted(path.name for path in self._directory.iterdir() if path.is_file())

    def size(self, name: str) -> int:
        return (self._directory / name).stat().st_size

    def open(self, name: str) -> "_OsReader":
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
        if hasattr(os, "posix_fadvise"):
            # After a sync that failed, Linux calls what it could not write clean and keeps it. A process that starts
            # then would read, and promise to others, what is on no disk: whatever is clean has to be read again.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return _OsReader(descriptor)

    def create(self, name: str) -> "_OsFile":
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return _OsFile(os.open(self._directory / name, flags, 0o600))

    def append(self, name: str) -> "_OsFile":
        return _OsFile(os.open(self._directory / name, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))

    def truncate(self, name: str, size_bytes: int) -> None:
        descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        (self._directory / old).replace(self._directory / new)
        self.sync_names()

    def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def where(self, name: str) -> str:
        return str(self._directory / name)

    def sync_names(self) -> None:
        _sync_directory(self._directory)


def _sync_directory(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _OsFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class _OsReader:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        parts: list[bytes] = []
        while size_bytes > 0 and (part := os.pread(self._descriptor, size_bytes, offset)):
            parts.append(part)
            offset += len(part)
            size_bytes -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self._descriptor)
