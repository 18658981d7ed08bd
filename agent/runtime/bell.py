"""Tells the readers of `events` which tasks to look at again.

Owns a bounded note per reader (a task stands in it once, however often it changed); must not know what changed.
"""

import asyncio
from collections.abc import AsyncIterator


class Bell:
    """Fans task IDs out to any number of readers. Use from one event loop only."""

    def __init__(self) -> None:
        self._readers: list[tuple[dict[str, None], asyncio.Event]] = []
        self._closed = False

    def ring(self, task_id: str) -> None:
        """Every reader is given `task_id`; "" means: look at all."""
        for pending, wake in self._readers:
            pending[task_id] = None
            wake.set()

    def close(self) -> None:
        """Ends all readers, also later ones."""
        self._closed = True
        for _, wake in self._readers:
            wake.set()

    async def listen(self) -> AsyncIterator[str]:
        """Task IDs from now on, oldest first; begins with "", since nobody listened before."""
        reader: tuple[dict[str, None], asyncio.Event] = ({"": None}, asyncio.Event())
        pending, wake = reader
        self._readers.append(reader)
        try:
            while not self._closed:
                while pending:
                    task_id = next(iter(pending))
                    del pending[task_id]
                    yield task_id
                wake.clear()
                if not self._closed:
                    await wake.wait()
        finally:
            self._readers.remove(reader)
