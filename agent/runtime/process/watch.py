"""Notices the end of processes that are not our children.

Owns one pidfd per watched process, readable when it ends; where the kernel has none, a slow look at /proc instead.
"""

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable

from agent.runtime.process import files, proof

LOOK_S = 0.25  # between looks, only without pidfds (Linux before 5.3)


@dataclasses.dataclass
class _Watched:
    run: files.Run
    ended: asyncio.Event
    fd: int | None = None
    looker: "asyncio.Task[None] | None" = None


class Watcher:
    """Calls back once when a supervisor has ended."""

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._callback = ended
        self._watched: dict[str, _Watched] = {}

    def add(self, task_id: str, run: files.Run) -> bool:
        """Watches the task's supervisor; False when it has ended already or was never ours."""
        if task_id in self._watched:
            return True
        watched = _Watched(run, asyncio.Event())
        try:
            watched.fd = os.pidfd_open(run.shim_pid)
        except ProcessLookupError:
            return False
        except (AttributeError, OSError):
            watched.fd = None
        # Looked at only now: while the pidfd is open the PID cannot come to mean another process unnoticed.
        if not self._alive(run):
            self._let_go(watched)
            return False
        if watched.fd is not None:
            asyncio.get_running_loop().add_reader(watched.fd, self._end, task_id)
        else:
            watched.looker = asyncio.create_task(self._look(task_id, run), name=f"watch {task_id}")
        self._watched[task_id] = watched
        return True

    def signal(self, task_id: str, number: int) -> None:
        """Signals the supervisor if it still lives."""
        watched = self._watched.get(task_id)
        if watched is None:
            return
        try:
            if watched.fd is not None:
                signal.pidfd_send_signal(watched.fd, number)
            elif self._alive(watched.run):
                os.kill(watched.run.shim_pid, number)
        except ProcessLookupError:
            return

    async def wait(self, task_id: str) -> None:
        """Returns once the supervisor has ended; at once when it is not watched."""
        watched = self._watched.get(task_id)
        if watched is not None:
            await watched.ended.wait()

    def close(self) -> None:
        """Forgets all; signals nobody."""
        for watched in self._watched.values():
            self._let_go(watched)
        self._watched.clear()

    def _alive(self, run: files.Run) -> bool:
        return proof.alive(run.shim_pid, start=run.shim_start, boot=run.boot_id)

    def _end(self, task_id: str) -> None:
        watched = self._watched.pop(task_id)
        self._let_go(watched)
        self._callback(task_id)

    async def _look(self, task_id: str, run: files.Run) -> None:
        while self._alive(run):  # noqa: ASYNC110 - another process cannot set an asyncio.Event
            await asyncio.sleep(LOOK_S)
        self._watched[task_id].looker = None
        self._end(task_id)

    def _let_go(self, watched: _Watched) -> None:
        if watched.fd is not None:
            asyncio.get_running_loop().remove_reader(watched.fd)
            os.close(watched.fd)
        if watched.looker is not None:
            watched.looker.cancel()
        watched.ended.set()
