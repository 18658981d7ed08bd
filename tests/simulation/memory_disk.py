"""A disk that forgets what was not synced, tears what was being written, and brings removed files back."""

import dataclasses
import random

SECTOR_BYTES = 512


class Crashed(OSError):
    """The machine stopped in the middle of an operation."""


@dataclasses.dataclass
class _Content:
    data: bytearray
    synced_bytes: int = 0
    named: bool = False  # under its name for good


class MemoryDisk:
    """The platter: survives crashes. Each run of a process gets a `handle`."""

    def __init__(self, rng: random.Random) -> None:
        self.files: dict[str, _Content] = {}
        self._removed: dict[str, _Content] = {}
        self._rng = rng
        self.syncs = 0
        self.marked = False  # elsewhere on the same machine: see disk.Mark

    def handle(self) -> "Handle":
        """A disk as a process sees it, until it is killed."""
        return Handle(self)

    def lose_power(self) -> None:
        """Of what was not synced anything between nothing and everything stays, sector by sector."""
        rng = self._rng
        for name, content in list(self.files.items()):
            if not content.named and rng.random() < 0.5:
                del self.files[name]
                continue
            end = rng.randint(content.synced_bytes, len(content.data))
            del content.data[end:]
            for sector in range(content.synced_bytes // SECTOR_BYTES + 1, len(content.data) // SECTOR_BYTES + 1):
                if rng.random() < 0.3:
                    start = sector * SECTOR_BYTES
                    stop = min(start + SECTOR_BYTES, len(content.data))
                    content.data[start:stop] = bytes(stop - start)
            content.synced_bytes = len(content.data)
        for name, content in self._removed.items():
            if name not in self.files and rng.random() < 0.5:
                self.files[name] = content
        self._removed.clear()

    def settle(self) -> None:
        """The process was killed and the machine lives: everything written stays."""
        self._removed.clear()

    def remember_removed(self, name: str, content: _Content) -> None:
        self._removed[name] = content


class Handle:
    """The Disk of one run."""

    def __init__(self, platter: MemoryDisk) -> None:
        self._platter = platter
        self.dead = False
        self.crash_in: int | None = None  # operations until the machine stops
        self.crashed = False

    def step(self) -> None:
        """Every operation passes here; any of them can be the last."""
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crashed = self.dead = True
        if self.dead:
            raise Crashed("the machine stopped")

    def _get(self, name: str) -> _Content:
        try:
            return self._platter.files[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def names(self) -> list[str]:
        self.step()
        return sorted(self._platter.files)

    def size(self, name: str) -> int:
        self.step()
        return len(self._get(name).data)

    def open(self, name: str) -> "_Reader":
        self.step()
        return _Reader(self._get(name))

    def create(self, name: str) -> "_File":
        self.step()
        content = self._platter.files[name] = _Content(bytearray())
        return _File(self, content)

    def append(self, name: str) -> "_File":
        self.step()
        return _File(self, self._get(name))

    def truncate(self, name: str, size_bytes: int) -> None:
        self.step()
        content = self._get(name)
        del content.data[size_bytes:]
        content.synced_bytes = size_bytes

    def rename(self, old: str, new: str) -> None:
        self.step()
        content = self._get(old)
        if content.synced_bytes < len(content.data):
            raise AssertionError(f"{old} was renamed before it was synced")
        del self._platter.files[old]
        content.named = True
        self._platter.files[new] = content

    def sync_names(self) -> None:
        self.step()

    def remove(self, name: str) -> None:
        self.step()
        content = self._platter.files.pop(name, None)
        if content is not None:
            self._platter.remember_removed(name, content)

    def where(self, name: str) -> str:
        return name

    def mark(self) -> "_Mark":
        return _Mark(self, self._platter)

    def count_sync(self) -> None:
        self._platter.syncs += 1


class _File:
    def __init__(self, handle: Handle, content: _Content) -> None:
        self._handle = handle
        self._content = content

    def write(self, data: bytes) -> None:
        if self._handle.crash_in == 0 and not self._handle.dead:  # the machine stops while it writes: a part is there
            self._content.data += data[: len(data) // 2]
        self._handle.step()
        self._content.data += data

    def sync(self) -> None:
        self._handle.step()
        self._handle.count_sync()
        self._content.synced_bytes = len(self._content.data)

    def close(self) -> None:
        pass


class _Mark:
    def __init__(self, handle: Handle, platter: MemoryDisk) -> None:
        self._handle = handle
        self._platter = platter

    def is_set(self) -> bool:
        self._handle.step()
        return self._platter.marked

    def set(self) -> None:
        self._handle.step()
        self._platter.marked = True
        self._handle.step()  # it may be there although `set` never returned

    def where(self) -> str:
        return "the mark"


class _Reader:
    def __init__(self, content: _Content) -> None:
        self._content = content

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        return bytes(self._content.data[offset : offset + size_bytes])

    def close(self) -> None:
        pass
