"""Where blocking work runs: threads in life, virtual time in the simulator."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

LOG = "log"  # writes of the log, one after the other
SNAPSHOT = "snapshot"  # encoding and storing a snapshot


class Offload(Protocol):
    """Runs blocking calls outside the event loop, in order within a lane."""

    async def run(self, lane: str, call: Callable[[], T]) -> T:
        """The result of `call`, or what it raised."""
        ...

    def close(self) -> None:
        """Waits for what is running."""
        ...


class ThreadOffload:
    """One thread a lane."""

    def __init__(self) -> None:
        self._threads: dict[str, concurrent.futures.ThreadPoolExecutor] = {}

    async def run(self, lane: str, call: Callable[[], T]) -> T:
        if lane not in self._threads:
            self._threads[lane] = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=f"raft-{lane}")
        return await asyncio.get_running_loop().run_in_executor(self._threads[lane], call)

    def close(self) -> None:
        for thread in self._threads.values():
            thread.shutdown(wait=True)
