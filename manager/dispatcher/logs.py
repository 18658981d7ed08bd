"""Fetches tasks' output from their agents, over the sessions that are there anyway.

Memory is bounded by credit: an agent sends as many chunks of a task as its reader has taken, plus a few. So a slow
reader slows down its own request and no session.
"""

import asyncio
import dataclasses
from collections import deque
from collections.abc import AsyncGenerator, Callable

import structlog

from manager.dispatcher import session
from manager.http import backend
from manager.store import store
from skep import clock, errors, pb, stamps

log = structlog.get_logger(__name__)

AT_ONCE_MAX = 64  # tasks of one query that are read at the same time
FOLLOWED_MAX = 1024  # tasks of one query that can be followed

Entry = tuple[str, pb.LogEntry]


@dataclasses.dataclass
class _Open:
    """A request that an agent is answering."""

    session: session.Session
    id: int = 0


class Logs:
    """The LogSource of the leader."""

    def __init__(
        self, *, store: store.Store, session_of: Callable[[str], session.Session | None], clock: clock.Clock
    ) -> None:
        """`session_of` gives the open session of a node, as Dispatcher.session_of does."""
        self._store = store
        self._session_of = session_of
        self._clock = clock

    async def read(self, query: backend.LogQuery) -> AsyncGenerator[Entry, None]:
        """As backend.LogSource says. Close the generator to stop reading."""
        waiting = deque(dict.fromkeys(query.task_ids))
        at_once = FOLLOWED_MAX if query.follow else AT_ONCE_MAX
        inbox: asyncio.Queue[tuple[str, pb.LogChunk]] = asyncio.Queue()  # bounded by the credit of what is open
        opened: dict[str, _Open] = {}
        try:
            while waiting or opened:
                while waiting and len(opened) < at_once:
                    task_id = waiting.popleft()
                    try:
                        opened[task_id] = self._open(task_id, query, inbox)
                    except errors.SkepError as error:
                        yield task_id, self._note(error.message)
                if query.follow and waiting:
                    for task_id in waiting:
                        yield task_id, self._note(f"only {FOLLOWED_MAX} tasks can be followed at the same time")
                    waiting.clear()
                if not opened:
                    continue
                task_id, chunk = await inbox.get()
                for entry in chunk.entries:
                    yield task_id, entry
                if chunk.error:
                    yield task_id, self._note(chunk.error)
                if chunk.end:
                    del opened[task_id]
                else:
                    opened[task_id].session.credit_log(opened[task_id].id)
        finally:
            for each in opened.values():
                each.session.cancel_log(each.id)

    def _open(self, task_id: str, query: backend.LogQuery, inbox: "asyncio.Queue[tuple[str, pb.LogChunk]]") -> _Open:
        task = self._store.view().tasks.get(task_id)
        if task is None:
            raise errors.NotFound(f"task {task_id} is not there any more")
        if not task.node_id:
            raise errors.FailedPrecondition(f"task {task_id} has not been scheduled")
        node_session = self._session_of(task.node_id)
        if node_session is None:
            raise errors.Unavailable(f"node {task.node_id} is not available")
        request = pb.LogRequest(
            task_id=task_id,
            follow=query.follow,
            stdout=query.stdout,
            stderr=query.stderr,
            tail=query.tail,
            since=stamps.stamp(query.since),
        )
        request_id = node_session.open_log(request, lambda chunk: inbox.put_nowait((task_id, chunk)))
        return _Open(node_session, request_id)

    def _note(self, text: str) -> pb.LogEntry:
        """A sentence of ours among the task's output."""
        return pb.LogEntry(
            timestamp=stamps.stamp(self._clock.now()),
            stream=pb.LOG_STREAM_STDERR,
            data=f"skep: {text}\n".encode(),
        )
