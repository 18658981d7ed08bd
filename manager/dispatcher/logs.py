"""Fetches tasks' output from their agents, over the sessions that are there anyway, in the order of its time stamps.

Memory is bounded by credit: an agent sends as many chunks of a task as its reader has taken, plus a few. So a slow
reader slows down its own request and no session.
"""

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import AsyncGenerator, Callable

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from manager.dispatcher import merging, session
from manager.http import backend
from manager.store import store
from skep import clock, errors, pb, stamps

log = structlog.get_logger(__name__)

AT_ONCE_MAX = 256  # tasks of one query that are read at the same time, and so put into order
FOLLOWED_MAX = 1024  # tasks of one query that can be followed
HOLD_S, HOLD_FOLLOWED_S = 1.0, 0.2  # how long a line waits for older ones of other tasks
LOST_LOOK_S = 0.5  # between two looks whether a lost task's node is back
PATIENCE_S = 3.0  # a session that broke, or did so with the last leader, is back by then; before, nothing is said
AGAIN_BEFORE_NS = 1000  # reading begins anew so long before the last entry: some runtimes count time in floats

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
    away_at: float | None = None  # since when its node is away, by the loop's time
    told: bool = False  # that it is

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

    def again(self) -> Timestamp:
        """Reading begins anew, from the moment that is returned."""
        self.skip = self.count
        total = max(0, self.at[0] * stamps.NANOS + self.at[1] - AGAIN_BEFORE_NS)
        return Timestamp(seconds=total // stamps.NANOS, nanos=total % stamps.NANOS)


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
            request.since.CopyFrom(place.again())
        return _Open(node_session, node_session.open_log(request, deliver))

    def _node_of(self, task_id: str) -> pb.Node | None:
        view = self._store.view()
        task = view.tasks.get(task_id)
        return view.nodes.get(task.node_id) if task is not None else None

    def _may_come_back(self, task_id: str) -> bool:
        """Whether it is worth waiting for the node of a followed task."""
        task, node = self._store.view().tasks.get(task_id), self._node_of(task_id)
        if task is None or node is None:
            return False
        return task.status.state <= pb.TASK_STATE_RUNNING or node.status.state != pb.NODE_STATE_DOWN

    def _is_expected(self, task_id: str) -> bool:
        """Whether the task's node ought to have a session."""
        node = self._node_of(task_id)
        return node is not None and node.status.state in {pb.NODE_STATE_UNKNOWN, pb.NODE_STATE_READY}

    def _note(self, text: str) -> pb.LogEntry:
        """A sentence of ours among the task's output."""
        return pb.LogEntry(
            timestamp=stamps.stamp(self._clock.now()),
            stream=pb.LOG_STREAM_STDERR,
            data=f"skep: {text}\n".encode(),
            origin=pb.LOG_ORIGIN_SKEP,
        )

    def _last_output(self, task_id: str, query: backend.LogQuery) -> list[pb.LogEntry]:
        """What the task's record kept of its output, for when its node cannot be asked."""
        task = self._store.view().tasks.get(task_id)
        if task is None or stamps.seconds(task.status.timestamp) < query.since or not query.tail:
            return []
        lines = task.status.last_output.splitlines(keepends=True)
        return [
            pb.LogEntry(
                timestamp=task.status.timestamp,
                stream=pb.LOG_STREAM_STDERR,
                data=line.encode(),
                origin=pb.LOG_ORIGIN_KEPT,
            )
            for line in (lines if query.tail < 0 else lines[-query.tail :])
        ]


class _Reading:
    """One query: several tasks at the same time, each request with credit of its own."""

    def __init__(self, logs: Logs, query: backend.LogQuery) -> None:
        self._logs = logs
        self._query = query
        self._waiting = deque(dict.fromkeys(query.task_ids))
        self._inbox: asyncio.Queue[tuple[str, pb.LogChunk]] = asyncio.Queue()  # bounded by the credit of what is open
        self._merge = merging.Merge(hold_s=HOLD_FOLLOWED_S if query.follow else HOLD_S)
        self._opened: dict[str, _Open] = {}
        self._places: dict[str, _Place] = {}
        self._lost: dict[str, None] = {}  # tasks whose nodes are away and may come back

    def close(self) -> None:
        """Cancels what is open."""
        for each in self._opened.values():
            each.session.cancel_log(each.id)

    async def entries(self) -> AsyncGenerator[Entry, None]:
        loop = asyncio.get_running_loop()
        while self._waiting or self._opened or self._lost:
            for entry in self._begin_waiting():
                yield entry
            while not self._inbox.empty():
                task_id, chunk = self._inbox.get_nowait()
                self._merge.put(task_id, chunk, now=loop.time())
            due = self._merge.next(now=loop.time(), wall=self._logs._clock.now())
            if due is None:
                await self._arrival()
                continue
            task_id, what = due
            if isinstance(what, pb.LogEntry):
                if self._places[task_id].take(what):
                    yield task_id, what
                continue
            for said in self._ended(task_id, what):
                yield task_id, said

    def _begin_waiting(self) -> list[Entry]:
        """Asks for as many tasks as may be read at the same time; returns what is to be said about them."""
        said: list[Entry] = []
        at_once = FOLLOWED_MAX if self._query.follow else AT_ONCE_MAX
        while self._waiting and len(self._opened) + len(self._lost) < at_once:
            task_id = self._waiting.popleft()
            said += [(task_id, entry) for entry in self._begin(task_id)]
        if self._query.follow and self._waiting:
            text = f"only {FOLLOWED_MAX} tasks can be followed at the same time"
            said += [(task_id, self._logs._note(text)) for task_id in self._waiting]
            self._waiting.clear()
        return said

    async def _arrival(self) -> None:
        """Returns when a chunk has come, when a line has waited long enough, or to look for lost nodes."""
        if not self._opened and not self._lost:
            return
        wait_s = self._merge.wait_s(now=asyncio.get_running_loop().time(), wall=self._logs._clock.now())
        if self._lost:
            wait_s = LOST_LOOK_S if wait_s is None else min(wait_s, LOST_LOOK_S)
        try:
            async with asyncio.timeout(wait_s):
                task_id, chunk = await self._inbox.get()
        except TimeoutError:
            lost, self._lost = self._lost, {}
            self._waiting.extendleft(lost)
            return
        self._merge.put(task_id, chunk, now=asyncio.get_running_loop().time())

    def _begin(self, task_id: str) -> list[pb.LogEntry]:
        place = self._places.setdefault(task_id, _Place())
        try:
            self._opened[task_id] = self._logs._open(
                task_id, self._query, place, lambda chunk: self._inbox.put_nowait((task_id, chunk))
            )
        except errors.SkepError as error:
            return self._away(task_id, error.message, wait=isinstance(error, errors.Unavailable))
        self._merge.open(task_id, now=asyncio.get_running_loop().time())
        place.away_at, place.told = None, False
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
        now = asyncio.get_running_loop().time()
        place.away_at = now if place.away_at is None else place.away_at
        if wait and now - place.away_at < PATIENCE_S and self._logs._is_expected(task_id):
            self._lost[task_id] = None
            return []
        said = [] if place.told else [self._logs._note(reason)]
        place.told = True
        if self._query.follow and wait and self._logs._may_come_back(task_id):
            self._lost[task_id] = None
            return said
        return said if place.count else [*self._logs._last_output(task_id, self._query), *said]
