"""An event loop whose time jumps to the next timer as soon as everything waits: hours of heartbeats in milliseconds.

For code that takes its time from the loop and does no real input or output.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Jump(selectors.SelectSelector):
    """Where a loop would wait for its next timer, time jumps there."""

    now = 0.0
    watches_files = True  # False: nothing but timers ever ends a wait, so there is no need to ask the system

    def select(  # type: ignore[explicit-override]  # typing.override came with Python 3.12
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits, and no timer will ever end it")
        self.now += max(timeout, 0.0)
        return super().select(0) if self.watches_files else []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at 0.0 and never waits."""

    def __init__(self, *, watches_files: bool = True) -> None:
        self._jump = _Jump()
        self._jump.watches_files = watches_files
        super().__init__(self._jump)

    def time(self) -> float:  # type: ignore[explicit-override]  # typing.override came with Python 3.12
        return self._jump.now

    def pass_by(self, seconds: float) -> None:
        """Lets time pass without running anything."""
        self._jump.now += seconds


class LoopClock:
    """Wall-clock time that goes with the running loop."""

    def now(self) -> float:
        return 1_700_000_000.0 + asyncio.get_running_loop().time()


class LoopUptime:
    """A machine's uptime that goes with the running loop."""

    def __init__(self) -> None:
        self.boot = "first"

    def now(self) -> float:
        return asyncio.get_running_loop().time()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test's coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work())


def stall(seconds: float) -> None:
    """The whole process does not run for a while: when it does again, time has passed at once."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.pass_by(seconds)


async def until(condition: Callable[[], bool], *, within_s: float = 60.0, every_s: float = 0.01) -> None:
    """Waits until the condition holds; AssertionError when it does not within the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, "the condition did not come true in time"
        await asyncio.sleep(every_s)


async def holds(condition: Callable[[], bool], *, for_s: float, every_s: float = 0.1) -> None:
    """Checks that the condition holds all the time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + for_s
    while loop.time() < deadline:
        assert condition(), "the condition ceased to hold"
        await asyncio.sleep(every_s)
