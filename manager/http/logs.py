"""Handlers for the output of tasks, in Docker's framing.

A frame is one stream byte, three zero bytes, the length, and the bytes of one entry. Output of a service with a
terminal is sent without frames. Following a service includes tasks that start later.
"""

import asyncio
import contextlib
import math
import struct
from collections.abc import AsyncGenerator, AsyncIterator

import structlog

from manager.control import lookup
from manager.http import backend, messages, routing
from manager.store import watching
from skep import errors, jsonmap, pb

log = structlog.get_logger(__name__)

QUEUE_ENTRIES_MAX = 1000  # between the agents and one client that reads slowly; then the agents wait
SYSTEM_ERROR = 3  # the stream on which Docker's clients expect what went wrong on the way
CONTENT_TYPE = "application/vnd.docker.raw-stream"
# A detail that says which lines a task did not print just so: clients that go on after a break must know.
ORIGINS = {
    pb.LOG_ORIGIN_TASK: b"",
    pb.LOG_ORIGIN_KEPT: b",io.skep.origin=kept",
    pb.LOG_ORIGIN_SKEP: b",io.skep.origin=skep",
}

Entry = tuple[str, pb.LogEntry]


async def service_logs(call: messages.Call) -> messages.Response:
    manager = call.context.manager
    view = manager.store.view()
    service = lookup.service(view, call.params["id"])
    query = _query(call, [task.id for task in view.tasks.where("service", service.id) if _has_output(task)])
    tty = view.spec(service).task.container.tty
    entries = _follow_service(manager, service.id, query) if query.follow else _read(manager, query)
    return _response(call, entries, tty=tty)


async def task_logs(call: messages.Call) -> messages.Response:
    manager = call.context.manager
    view = manager.store.view()
    task = lookup.task(view, call.params["id"])
    tty = view.revision(task.revision_id).spec.task.container.tty
    return _response(call, _read(manager, _query(call, [task.id])), tty=tty)


def _has_output(task: pb.Task) -> bool:
    """Whether the task has been started on a node that may still know of it."""
    if task.status.state == pb.TASK_STATE_REJECTED:
        return task.HasField("running_at")  # its node did not suit it any more; others are rejected before they run
    state = task.status.state
    return bool(task.node_id) and state >= pb.TASK_STATE_STARTING and state != pb.TASK_STATE_ORPHANED


def _query(call: messages.Call, task_ids: list[str]) -> backend.LogQuery:
    stdout, stderr = call.flag("stdout"), call.flag("stderr")
    if not stdout and not stderr:
        raise errors.Invalid("Bad parameters: you must choose at least one stream")
    return backend.LogQuery(
        task_ids=task_ids,
        follow=call.flag("follow"),
        stdout=stdout,
        stderr=stderr,
        tail=_tail(call.text("tail")),
        since=_since(call.text("since")),
    )


def _tail(text: str) -> int:
    if text in ("", "all"):
        return -1
    try:
        return max(int(text), -1)
    except ValueError:
        raise errors.Invalid(f"tail: expected a number of lines or all, got {text!r}") from None


def _since(text: str) -> float:
    if not text:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise errors.Invalid(f"since: expected seconds since the epoch, got {text!r}")
    return max(seconds, 0.0)


def _response(call: messages.Call, entries: AsyncGenerator[Entry, None], *, tty: bool) -> messages.Response:
    stream = _frames(call, entries, tty=tty)
    return messages.Response(headers={"Content-Type": CONTENT_TYPE}, stream=stream)


async def _frames(
    call: messages.Call, entries: AsyncGenerator[Entry, None], *, tty: bool
) -> AsyncGenerator[bytes, None]:
    timestamps, details = call.flag("timestamps"), call.flag("details")
    prefixes: dict[str, bytes] = {}
    try:
        async with contextlib.aclosing(entries):
            async for task_id, entry in entries:
                payload = entry.data
                if details:
                    if task_id not in prefixes:
                        prefixes[task_id] = _details(call.context.manager, task_id)
                    payload = prefixes[task_id] + ORIGINS[entry.origin] + b" " + payload
                if timestamps:
                    payload = jsonmap.format_time(entry.timestamp).encode() + b" " + payload
                stream = 2 if entry.stream == pb.LOG_STREAM_STDERR else 1
                yield payload if tty else _frame(stream, payload)
    except errors.SkepError as problem:
        if not call.context.manager.committer.is_leader:
            raise  # breaks the answer off: whoever asks again gets the rest from the new leader
        # The status line is long gone: the client learns it from the stream, and fails as it should.
        text = (problem.message + "\n").encode()
        yield text if tty else _frame(SYSTEM_ERROR, text)


def _frame(stream: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(payload)) + payload


def _details(manager: backend.Manager, task_id: str) -> bytes:
    task = manager.store.view().tasks.get(task_id) or pb.Task(id=task_id)
    return (
        f"com.docker.swarm.node.id={task.node_id},com.docker.swarm.service.id={task.service_id},"
        f"com.docker.swarm.task.id={task_id}"
    ).encode()


async def _read(manager: backend.Manager, query: backend.LogQuery) -> AsyncGenerator[Entry, None]:
    entries = manager.logs.read(query)
    try:
        async for entry in entries:
            yield entry
    finally:
        if isinstance(entries, AsyncGenerator):
            await entries.aclose()


async def _follow_service(
    manager: backend.Manager, service_id: str, query: backend.LogQuery
) -> AsyncGenerator[Entry, None]:
    """The output of all tasks of the service, also of those to come; ends when service and output are gone."""
    queue: asyncio.Queue[Entry | errors.SkepError | None] = asyncio.Queue(QUEUE_ENTRIES_MAX)
    follower = asyncio.create_task(_Follower(manager, service_id, query, queue).run())
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, errors.SkepError):
                raise item
            yield item
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)


class _Follower:
    """Starts a reader for every task that has output, as soon as it has."""

    def __init__(
        self,
        manager: backend.Manager,
        service_id: str,
        query: backend.LogQuery,
        queue: "asyncio.Queue[Entry | errors.SkepError | None]",
    ) -> None:
        self._manager = manager
        self._service_id = service_id
        self._query = query
        self._queue = queue
        self._seen = dict.fromkeys(query.task_ids)
        self._readers: dict[asyncio.Task[None], None] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until nothing can follow; the queue then ends with None, or with the error that stopped everything."""
        watch = self._manager.store.watch(("task", "service"), self._changed.set)
        try:
            if self._query.task_ids:
                self._start(self._query)
            while True:
                if not self._manager.committer.is_leader:
                    await self._queue.put(errors.Unavailable("this manager does not lead any more"))
                    return
                self._look()
                gone = self._manager.store.view().services.get(self._service_id) is None
                if gone and not self._readers:
                    await self._queue.put(None)
                    return
                await self._changed.wait()
                self._changed.clear()
                with contextlib.suppress(watching.Lagged):
                    watch.take()
        finally:
            watch.close()
            for reader in list(self._readers):
                reader.cancel()
            await asyncio.gather(*self._readers, return_exceptions=True)

    def _look(self) -> None:
        tasks = self._manager.store.view().tasks.where("service", self._service_id)
        fresh = [task.id for task in tasks if task.id not in self._seen and _has_output(task)]
        if fresh:
            self._seen.update(dict.fromkeys(fresh))
            everything = backend.LogQuery(
                task_ids=fresh, follow=True, stdout=self._query.stdout, stderr=self._query.stderr
            )
            self._start(everything)

    def _start(self, query: backend.LogQuery) -> None:
        reader = asyncio.create_task(self._pump(self._manager.logs.read(query)))
        self._readers[reader] = None
        reader.add_done_callback(self._ended)

    def _ended(self, reader: asyncio.Task[None]) -> None:
        self._readers.pop(reader, None)
        self._changed.set()
        if not reader.cancelled() and (problem := reader.exception()) is not None:
            log.error("logs.reader_failed", service=self._service_id, exc_info=problem)

    async def _pump(self, entries: AsyncIterator[Entry]) -> None:
        try:
            async for entry in entries:
                await self._queue.put(entry)
        except errors.SkepError as problem:
            await self._queue.put(problem)
        finally:
            if isinstance(entries, AsyncGenerator):
                await entries.aclose()


ROUTES = (
    routing.Route("GET", "/services/{id}/logs", routing.Scope.READ, service_logs),
    routing.Route("GET", "/tasks/{id}/logs", routing.Scope.READ, task_logs),
)
