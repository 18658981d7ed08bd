"""Engines that fail, hang and lie; and tell the truth to the checkers.

What a lying engine may say: that something failed which has happened, that something has happened which has not, that a
task has ended or is gone which runs, that one runs which has ended; and nothing at all, where an event was due. It
does not keep a lie up for ever: asked often enough it says what is.
"""

import builtins
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

from typing_extensions import override

from agent.runtime import base, memory
from tests.simulation.cluster import running

LIE_S = 3.0  # for which an answer about a task stays wrong, at most


class Engine(memory.MemoryRuntime):
    """The memory runtime of one machine, through all runs of its agent."""

    def __init__(
        self, watcher: running.Running, *, moods: random.Random, now: Callable[[], float], **more: Any
    ) -> None:
        """`now` is true time."""
        super().__init__(**more)
        self._watcher = watcher
        self._moods = moods
        self._true_time = now
        self.unreliable = 0.0  # how likely a call fails, or is not true
        self._wrong: dict[str, tuple[float, base.Observation]] = {}  # by task: until when it is said, and what
        watcher.engines[self._node_id] = self

    def calm_down(self) -> None:
        """From now on it works, and says what is."""
        self.unreliable = 0.0
        self._wrong.clear()
        self.resume()

    def _strikes(self) -> bool:
        return self.unreliable > 0 and self._moods.random() < self.unreliable

    @override
    async def prepare(self, workload: base.Workload, progress: Callable[[str], None]) -> None:
        if self._strikes():
            raise base.TaskTemporary("the engine is out of sorts")
        await super().prepare(workload, progress)
        if self._strikes():
            raise base.TaskTemporary("the engine did it and says it did not")

    @override
    async def start(self, workload: base.Workload) -> None:
        if self._strikes():
            if self._moods.random() < 0.5:
                return  # it says that it has started it
            raise base.TaskTemporary("the engine cannot start it just now")
        await super().start(workload)
        if self._strikes():
            raise base.TaskTemporary("the engine started it and says it did not")

    @override
    async def stop(self, workload: base.Workload) -> None:
        if self._strikes():
            self._lied_about(workload.task.id)
            if self._moods.random() < 0.5:
                return  # it says that it has stopped it
            raise base.TaskTemporary("the engine cannot stop it just now")
        await super().stop(workload)

    @override
    async def remove(self, task_id: str) -> None:
        if self._strikes():
            raise base.TaskTemporary("the engine cannot remove it just now")
        await super().remove(task_id)
        self._watcher.ended()

    @override
    async def events(self) -> AsyncIterator[str]:
        async for task_id in super().events():
            if not self._strikes():
                yield task_id

    @override
    async def observe(self, task_id: str) -> base.Observation:
        true = await super().observe(task_id)
        now = self._true_time()
        wrong = self._wrong.get(task_id)
        if wrong is not None and now < wrong[0]:
            return wrong[1]
        if self.unreliable and true.phase is base.Phase.RUNNING and self._moods.random() < self.unreliable / 4:
            ended = base.Observation(
                base.Phase.EXITED, container_id=true.container_id, exit_code=self._moods.choice((0, 1))
            )
            said = self._moods.choice((base.ABSENT, ended))
            self._wrong[task_id] = now + self._moods.uniform(0, LIE_S), said
            self._lied_about(task_id)
            return said
        return true

    @override
    async def list(self) -> "list[str]":
        if self._strikes():
            raise base.TaskTemporary("the engine does not list anything just now")
        return await super().list()

    def known(self) -> "builtins.list[str]":
        """All tasks that it has, also those that it is about to start."""
        return builtins.list(self._entries)

    def _lied_about(self, task_id: str) -> None:
        self._watcher.lied_about[task_id] = None

    # ---------------------------------------------------------------- what the checkers see

    @override
    def _run(self, task_id: str, entry: memory._Entry) -> None:
        super()._run(task_id, entry)
        self._watcher.started(self._node_id, task_id)

    @override
    def _exit(self, task_id: str, entry: memory._Entry, *, exit_code: int, error: str) -> None:
        super()._exit(task_id, entry, exit_code=exit_code, error=error)
        self._watcher.ended()
