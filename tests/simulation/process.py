"""A process in the simulation: all asyncio tasks that were started within it, so that it can be killed at any moment.

Belonging is inherited through the context, as a child's is from its parent; nobody registers anything.
"""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.simulation import alarm, memory_disk, shadow

T = TypeVar("T")

CANCELS_MAX = 50  # code that goes on after so many cancellations would survive a daemon's stop as well
_current: "contextvars.ContextVar[Process | None]" = contextvars.ContextVar("process", default=None)


def current() -> "Process | None":
    """The process that is running; None for the simulation itself."""
    return _current.get()


def owner(context: contextvars.Context) -> "Process | None":
    """The process that whatever runs in this context belongs to."""
    return context.get(_current)


class Process:
    """One run of a program."""

    def __init__(self, name: str, *, rate: float = 1.0) -> None:
        self.name = name
        self.rate = rate  # how fast its machine's clocks run
        self.dead = False
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` in this process; nobody waits for its end."""
        self.spawn(work).add_done_callback(_ended, context=contextvars.Context())

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Runs `work` in this process."""
        context = contextvars.copy_context()
        context.run(_current.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """A task was started by one of ours."""
        if self.dead:
            task.cancel()
        self._tasks[task] = None
        # In nobody's context: whoever started it may be on a machine that stands still.
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None), context=contextvars.Context())

    def kill(self) -> None:
        """Nothing of it goes on. What it could do while it is cancelled, disk and network do not let through."""
        self.dead = True
        for task in list(self._tasks):
            task.cancel()

    async def gone(self) -> None:
        """Waits until all its tasks have ended."""
        for _ in range(CANCELS_MAX):
            if not self._tasks:
                return
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0.001)
        names = ", ".join(task.get_name() for task in self._tasks)
        raise shadow.Violation(f"{self.name}: these tasks do not let themselves be cancelled: {names}")


def _ended(task: "asyncio.Task[None]") -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, memory_disk.Crashed):
        alarm.ring(f"{task.get_name()} ended: {error!r}")


def create_task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, Any],
    *,
    context: contextvars.Context | None = None,
) -> "asyncio.Task[Any]":
    """The loop's task factory: knows whose the task is."""
    task = asyncio.Task(work, loop=loop, context=context)
    owner = (context or contextvars.copy_context()).get(_current)
    if owner is not None:
        owner.adopt(task)
    return task
