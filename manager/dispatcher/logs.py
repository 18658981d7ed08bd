"""Fetches tasks' output from their agents, over the sessions that are there anyway.

Memory is bounded by credit: an agent sends as many chunks of a task as its reader has taken, plus a few. So a slow
reader slows down its own request and no session.
"""

import asyncio
import contextlib
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
LOST_LOOK_S = 0.5  # between two looks whether a followed task's node is back

Entry = tuple[str, pb.LogEntry]


@dataclasses.dataclass
class _Open:
    """A request that an agent is answering."""

    session: session.Session
    id: int = 0


@dataclasses.dataclass
class _Place:
    """How far a task's output was delivered: when its session breaks, reading goes on from here."""

    at: tuple[int, int] = (0, 0)  # seconds and nanoseconds of the last entry
    count: int = 0  # entries delivered with that very stamp
    skip: int = 0  # of those, still to be skipped after a new beginning
    told: bool = False  # that its node is away

    def take(self, entry: pb.LogEntry) -> bool:
        """Whether the entry is a new one."""
        at = (entry.timestamp.seconds, entry.timestamp.nanos)
        if at < self.at:
            return self.skip == 0  # clocks jump; only what is read again is left out
        if at == self.at and self.skip:
            self.skip -= 1
            return False
        self.count = self.count + 1 if at == self.at else 1
        self.at, self.skip = at, 0
        return True

    def again(self) -> None:
        """Reading begins anew."""
        self.skip = self.count


class Logs:
    """The LogSource of the leader."""

    def __init__(
        self,
        *,
        store: store.Store,
        session_of: Callable[[str], session.Session | None],
        clock: clock.Clock,
        leading: Callable[[], bool] = lambda: True,
    ) -> None:
        """`session_of` gives the open session of a node, as Dispatcher.session_of does."""
        self._store = store
        self._session_of = session_of
        self._clock = clock
        self._leading = leading

    async def read(self, query: backend.LogQuery) -> AsyncGenerator[Entry, None]:
        """As backend.LogSource says. Close the generator to stop reading.

        A followed task whose node is lost is read on from where it was once the node is back. Raises Unavailable when
        this manager does not lead any more: the new leader knows the rest.
        """
        reading = _Reading(self, query)
        try:
            async with contextlib.aclosing(reading.entries()) as entries:
                async for entry in entries:
                    yield entry
        finally:
            reading.close()

    def _open(self, task_id: str, query: backend.LogQuery, place: _Place, deliver: session.Deliver) -> _Open:
        task = self._store.view().tasks.get(task_id)
        if task is None:
            raise errors.NotFound(f"task {task_id} is not there any more")
        if not task.node_id:
            raise errors.FailedPrecondition(f"task {task_id} has not been scheduled")
        node_session = self._session_of(task.node_id)
        if node_session is None:
            raise errors.Unavailable(f"node {task.node_id} is not available")
        request = pb.LogRequest(
            task_id=task_id, follow=query.follow, stdout=query.stdout, stderr=query.stderr, tail=query.tail,
            since=stamps.stamp(query.since),
        )  # fmt: skip
        if place.count:
            request.tail = -1
            request.since.seconds, request.since.nanos = place.at
            place.again()
        return _Open(node_session, node_session.open_log(request, deliver))

    def _may_come_back(self, task_id: str) -> bool:
        """Whether it is worth waiting for the node of a followed task."""
        view = self._store.view()
        task = view.tasks.get(task_id)
        node = view.nodes.get(task.node_id) if task is not None else None
        if task is None or node is None:
            return False
        return task.status.state <= pb.TASK_STATE_RUNNING or node.status.state != pb.NODE_STATE_DOWN

    def _note(self, text: str) -> pb.LogEntry:
        """A sentence of ours among the task's output."""
        return pb.LogEntry(
            timestamp=stamps.stamp(self._clock.now()),
            stream=pb.LOG_STREAM_STDERR,
            data=f"skep: {text}\n".encode(),
        )

    def _last_output(self, task_id: str, query: backend.LogQuery) -> list[pb.LogEntry]:
        """What the task's record kept of its output, for when its node cannot be asked."""
        task = self._store.view().tasks.get(task_id)
        if task is None or stamps.seconds(task.status.timestamp) < query.since or not query.tail:
            return []
        lines = task.status.last_output.splitlines(keepends=True)
        return [
            pb.LogEntry(timestamp=task.status.timestamp, stream=pb.LOG_STREAM_STDERR, data=line.encode())
            for line in (lines if query.tail < 0 else lines[-query.tail :])
        ]


class _Reading:
    """One query: several tasks at the same time, each request with credit of its own."""

    def __init__(self, logs: Logs, query: backend.LogQuery) -> None:
        self._logs = logs
        self._query = query
        self._waiting = deque(dict.fromkeys(query.task_ids))
        self._inbox: asyncio.Queue[tuple[str, pb.LogChunk]] = asyncio.Queue()  # bounded by the credit of what is open
        self._opened: dict[str, _Open] = {}
        self._places: dict[str, _Place] = {}
        self._lost: dict[str, None] = {}  # followed tasks whose nodes are away

    def close(self) -> None:
        """Cancels what is open."""
        for each in self._opened.values():
            each.session.cancel_log(each.id)

    async def entries(self) -> AsyncGenerator[Entry, None]:
        at_once = FOLLOWED_MAX if self._query.follow else AT_ONCE_MAX
        while self._waiting or self._opened or self._lost:
            while self._waiting and len(self._opened) + len(self._lost) < at_once:
                task_id = self._waiting.popleft()
                for entry in self._begin(task_id):
                    yield task_id, entry
            if self._query.follow and self._waiting:
                for task_id in self._waiting:
                    text = f"only {FOLLOWED_MAX} tasks can be followed at the same time"
                    yield task_id, self._logs._note(text)
                self._waiting.clear()
            if not self._opened and not self._lost:
                continue
            arrived = await self._next()
            if arrived is None:
                self._look_for_lost()
                continue
            task_id, chunk = arrived
            place = self._places[task_id]
            for entry in chunk.entries:
                if place.take(entry):
                    yield task_id, entry
            for entry in self._ended(task_id, chunk):
                yield task_id, entry

    async def _next(self) -> tuple[str, pb.LogChunk] | None:
        """The next chunk; None when it is time to look for lost nodes."""
        if not self._lost:
            return await self._inbox.get()
        try:
            async with asyncio.timeout(LOST_LOOK_S):
                return await self._inbox.get()
        except TimeoutError:
            return None

    def _begin(self, task_id: str) -> list[pb.LogEntry]:
        place = self._places.setdefault(task_id, _Place())
        try:
            self._opened[task_id] = self._logs._open(
                task_id, self._query, place, lambda chunk: self._inbox.put_nowait((task_id, chunk))
            )
        except errors.SkepError as error:
            return self._away(task_id, error.message, wait=isinstance(error, errors.Unavailable))
        place.told = False
        return []

    def _ended(self, task_id: str, chunk: pb.LogChunk) -> list[pb.LogEntry]:
        """What is said at the end of a chunk. Raises Unavailable when this manager does not lead any more."""
        if not chunk.end:
            opened = self._opened[task_id]
            opened.session.credit_log(opened.id)
            return []
        ended = self._opened.pop(task_id)
        if not chunk.error:
            return []
        if not self._logs._leading():
            raise errors.Unavailable("this manager does not lead any more")
        return self._away(task_id, chunk.error, wait=ended.session.is_over)

    def _away(self, task_id: str, reason: str, *, wait: bool) -> list[pb.LogEntry]:
        place = self._places[task_id]
        said = [] if place.told else [self._logs._note(reason)]
        place.told = True
        if self._query.follow and wait and self._logs._may_come_back(task_id):
            self._lost[task_id] = None
            return said
        return said if place.count else [*self._logs._last_output(task_id, self._query), *said]

    def _look_for_lost(self) -> None:
        lost, self._lost = self._lost, {}
        self._waiting.extendleft(lost)
