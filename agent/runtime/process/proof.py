"""Proves that a PID still is the process that was written down, and signals it without a race.

Owns the reading of /proc and pidfds. A PID alone proves nothing: numbers are used again. The boot ID and the start
time (field 22 of /proc/PID/stat) make it unique.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
from collections.abc import Callable, Iterator

PROC = pathlib.Path("/proc")
DEAD_STATES = {"Z", "X", "x"}


@dataclasses.dataclass(frozen=True)
class Status:
    """What /proc/PID/stat says."""

    state: str
    session: int
    start: int  # clock ticks since boot


def boot_id() -> str:
    """Differs after every boot of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def status(pid: int) -> Status | None:
    """None when there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()  # the name before it may hold spaces and brackets
    return Status(state=fields[0].decode(), session=int(fields[3]), start=int(fields[19]))


def alive(pid: int, *, start: int, boot: str) -> bool:
    """Whether `pid` is the very process that was started at `start` in boot `boot`, and has not ended."""
    if pid <= 0 or boot != boot_id():
        return False
    found = status(pid)
    return found is not None and found.start == start and found.state not in DEAD_STATES


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int | None]:
    """A pidfd: while it is open, a signal through it cannot reach another process. None where there are none."""
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def signal_if(pid: int, number: int, *, proven: Callable[[], bool]) -> bool:
    """Sends the signal if `proven` still holds once the process is pinned down. Returns whether it was sent."""
    with _held(pid) as fd:
        if not proven():
            return False
        try:
            if fd is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(fd, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def environ_holds(pid: int, entries: list[str]) -> bool:
    """Whether the process was started with all of `entries` ("NAME=value") in its environment."""
    try:
        found = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(entry.encode() in found for entry in entries)


def pids() -> list[int]:
    """Every process of the machine."""
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]
