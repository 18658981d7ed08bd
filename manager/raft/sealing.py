"""The seam for encryption at rest: log records and snapshot blocks pass through a Seal on their way to the disk."""

from typing import Protocol

from skep import errors

_WAY_OUT = (
    "Remove this manager from the cluster and let it join again; if it was the only manager, restore its state "
    "directory from a backup"
)


class Damaged(errors.FailedPrecondition):
    """A file of the log is not what was written; the message names the file, the position and the way out."""


class Seal(Protocol):
    """Turns plain bytes into what is stored, and back."""

    overhead_bytes: int  # how much longer sealed data is; the same for every length

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        """`data` as it is stored; `context` says what and where it is and must be the same when opened."""
        ...

    def open(self, data: bytes, *, context: bytes) -> bytes:
        """The plain bytes. Raises ValueError when they were not sealed with this key and context."""
        ...


class Plain:
    """No encryption: what is stored is what was given."""

    overhead_bytes = 0

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        return data

    def open(self, data: bytes, *, context: bytes) -> bytes:
        return data


def damaged(where: str, position: int, what: str) -> Damaged:
    """The error for a damaged file, with the remedy."""
    return Damaged(
        f"{where}: {what} at byte {position}. The file was damaged after it was written; skep will not guess. "
        f"{_WAY_OUT}"
    )


def missing(where: str, what: str) -> Damaged:
    """The error for a log that must be there and is not, with the remedy."""
    return Damaged(
        f"{where}: {what}, but the log is missing. Others may rely on what it had acknowledged, so this manager must "
        f"not begin anew under its old name. {_WAY_OUT}"
    )
