"""Work that runs beside everything else in the daemon."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from skep import errors

log = structlog.get_logger(__name__)


class Background:
    """Tasks that nobody waits for. One that fails ends with a line in the log."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Runs `work` until it ends or `stop`."""

        async def guarded() -> None:
            try:
                await work
            except errors.SkepError as error:
                log.error("daemon.background_failed", name=name, reason=error.message)

        task = asyncio.create_task(guarded(), name=name)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def stop(self) -> None:
        """Cancels everything and waits for it, but for the caller itself."""
        own = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
