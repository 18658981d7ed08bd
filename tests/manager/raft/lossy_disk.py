"""A disk on which a killed process leaves what a machine leaves that lost its power: nothing that was not synced.

Wraps the real one. Data stays in memory until it is synced, and removals until a name is synced; then they are carried
out, in two halves, so that SIGKILL can also tear. To be used with processes that are killed.
"""

import pathlib

from manager.raft import disk


class LossyDisk(disk.OsDisk):
    """The Disk of one process."""

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__(directory)
        self._removed: dict[str, None] = {}
        self._unsynced: dict[str, _LossyFile] = {}

    def names(self) -> list[str]:  # type: ignore[explicit-override]  # typing.override came with Python 3.12
        return [name for name in super().names() if name not in self._removed]

    def create(self, name: str) -> "_LossyFile":  # type: ignore[explicit-override,override]
        self._removed.pop(name, None)
        self._unsynced[name] = _LossyFile(super().create(name))
        return self._unsynced[name]

    def append(self, name: str) -> "_LossyFile":  # type: ignore[explicit-override,override]
        return _LossyFile(super().append(name))

    def rename(self, old: str, new: str) -> None:  # type: ignore[explicit-override]
        if self._unsynced.pop(old).waiting:
            raise AssertionError(f"{old} was renamed before it was synced")
        for name in self._removed:
            super().remove(name)
        self._removed.clear()
        super().rename(old, new)

    def remove(self, name: str) -> None:  # type: ignore[explicit-override]
        self._removed[name] = None


class _LossyFile:
    def __init__(self, inner: disk.File) -> None:
        self.waiting = bytearray()
        self._inner = inner

    def write(self, data: bytes) -> None:
        self.waiting += data

    def sync(self) -> None:
        half = len(self.waiting) // 2
        self._inner.write(bytes(self.waiting[:half]))
        self._inner.sync()
        self._inner.write(bytes(self.waiting[half:]))
        self._inner.sync()
        self.waiting.clear()

    def close(self) -> None:
        self._inner.close()
