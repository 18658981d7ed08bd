"""Opens channels to tasks over the sessions of their agents. Works on the leader.

What travels over a channel, and how users see it, is the API's business.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from manager.dispatcher import session
from manager.store import store
from skep import channel, errors, pb

SESSION_PATIENCE_S = 5.0  # agents register with a new leader within a second or two
SESSION_LOOK_S = 0.1
READY_TIMEOUT_S = 30.0  # an engine that starts a command; an archive of a volume on a slow disk


class Channels:
    """The ChannelSource of the leader."""

    def __init__(self, *, store: store.Store, session_of: Callable[[str], session.Session | None]) -> None:
        """`session_of` gives the open session of a node, as Dispatcher.session_of does."""
        self._store = store
        self._session_of = session_of

    @contextlib.asynccontextmanager
    async def open(self, task_id: str, what: pb.ChannelOpen) -> AsyncGenerator[channel.Channel, None]:
        """As backend.ChannelSource says."""
        wanted = pb.ChannelOpen()
        wanted.CopyFrom(what)
        wanted.task_id = task_id
        opened = (await self._session(task_id)).channels.open(wanted)
        try:
            try:
                async with asyncio.timeout(READY_TIMEOUT_S):
                    await opened.ready()
            except TimeoutError:
                raise errors.FailedPrecondition(f"the node of task {task_id} does not answer in time") from None
            yield opened
        finally:
            opened.end()

    async def _session(self, task_id: str) -> session.Session:
        """The session of the task's node, waited for a moment. What is wrong is not worth another try by then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SESSION_PATIENCE_S
        while True:
            task = self._store.view().tasks.get(task_id)
            if task is None:
                raise errors.NotFound(f"task {task_id} is not there any more")
            if not task.node_id:
                raise errors.FailedPrecondition(f"task {task_id} has not been scheduled")
            found = self._session_of(task.node_id)
            if found is not None:
                return found
            if loop.time() >= deadline:
                raise errors.FailedPrecondition(f"node {task.node_id} is not available")
            await asyncio.sleep(SESSION_LOOK_S)
