"""Wall-clock time and the machine's uptime, from one place.

Monotonic time comes from the running event loop (`loop.time()`), so that the simulator can own it.
"""

import functools
import pathlib
import time
from typing import Protocol

BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")  # see random(4)


class Clock(Protocol):
    """Something that knows the wall-clock time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()


class Uptime(Protocol):
    """A machine's steady time: it goes on while the machine sleeps, over restarts of a process, and never jumps."""

    @property
    def boot(self) -> str:
        """Which boot of the machine the time is counted from."""
        ...

    def now(self) -> float:
        """Seconds since then."""
        ...


class SystemUptime:
    """This machine's."""

    @functools.cached_property
    def boot(self) -> str:
        return BOOT_ID.read_text().strip()

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
