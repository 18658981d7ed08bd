"""Wall-clock time, from one place.

Monotonic time comes from the running event loop (`loop.time()`), so that the simulator can own it.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Something that knows the wall-clock time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()
