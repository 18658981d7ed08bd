"""Every machine's clocks run at a speed of their own.

The loop's time is the true one for everybody but the code of a machine's processes: what these read is stretched by the
machine's rate, and what they wait for is, too.
"""

import asyncio
import contextvars
from collections.abc import Callable

from typing_extensions import TypeVarTuple, Unpack, override

from tests.simulation import managers, process

ROUNDING_S = 5e-9  # beyond a loop's resolution: nobody is woken a hair too early, and waits for no time at all for ever

Arguments = TypeVarTuple("Arguments")


class DriftingLoop(managers.Stopwatch):
    """Virtual time, seen through the clock of whoever asks."""

    @override
    def time(self) -> float:
        owner = process.current()
        true = super().time()
        return true if owner is None else true * owner.rate

    def true_time(self) -> float:
        """Whoever asks."""
        return super().time()

    @override
    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Arguments]], object],
        *args: *Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        owner = process.current()
        true = when if owner is None else when / owner.rate + ROUNDING_S
        return super().call_at(true, callback, *args, context=context)

    def call_truly_at(self, when: float, callback: Callable[[Unpack[Arguments]], object], *args: *Arguments) -> None:
        """At a moment of true time."""
        # In nobody's context: what is on its way arrives whatever becomes of the sender.
        super().call_at(when, callback, *args, context=contextvars.Context())


def loop() -> DriftingLoop:
    """The running one."""
    found = asyncio.get_running_loop()
    assert isinstance(found, DriftingLoop)
    return found
