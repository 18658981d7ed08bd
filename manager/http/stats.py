"""Handlers for what tasks use of their machines: one JSON object a line, of one task or of many at the same time.

Following many includes tasks that start later. A task whose node does not answer costs its own line, not the stream.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import structlog

from manager.control import lookup
from manager.http import backend, messages, routing
from manager.store import views, watching
from skep import errors, jsonmap, pb, tasknames

log = structlog.get_logger(__name__)

TASKS_MAX = 1000  # at the same time in one answer
QUEUE_LINES_MAX = 100  # between the agents and one client that reads slowly; then the agents wait
AGAIN_S = 3.0
PREFIX_BYTES = 4
CONTENT_TYPE = "application/x-ndjson"

Line = bytes


async def task_stats(call: messages.Call) -> messages.Response:
    """GET tasks/{id}/stats: with stream=1 a line about once a second until the task ends, else one."""
    task = lookup.entered_task(call.context.manager.store.view(), call.params["id"])
    return _response(_Gatherer(call.context.manager, [task.id], None, follow=call.flag("stream")))


async def many_stats(call: messages.Call) -> messages.Response:
    """GET stats: the same for all running tasks, or those of the services in ?service=."""
    manager = call.context.manager
    view = manager.store.view()
    wanted = [lookup.service(view, reference).id for reference in call.query.get("service", [])]
    services = dict.fromkeys(wanted) if wanted else {}
    return _response(_Gatherer(manager, None, services, follow=call.flag("stream")))


def _response(gatherer: "_Gatherer") -> messages.Response:
    return messages.Response(headers={"Content-Type": CONTENT_TYPE}, stream=gatherer.lines())


class _Gatherer:
    """Reads the figures of each task as long as it runs."""

    def __init__(
        self, manager: backend.Manager, task_ids: list[str] | None, services: dict[str, None] | None, *, follow: bool
    ) -> None:
        """Either `task_ids`, or the running tasks of `services` (all when that is empty) including those to come."""
        self._manager = manager
        self._task_ids = task_ids
        self._services = services
        self._follow = follow
        self._queue: asyncio.Queue[Line] = asyncio.Queue(QUEUE_LINES_MAX)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Until there is nothing to read. Raises Unavailable when this manager does not lead any more."""
        watch = self._manager.store.watch(("task",), self._changed.set)
        getting: asyncio.Task[Line] | None = None
        changing: asyncio.Task[bool] | None = None
        first = True
        try:
            while True:
                if first or self._follow:
                    self._look()
                first = False
                if not self._readers and self._queue.empty() and (self._task_ids is not None or not self._follow):
                    return
                getting = getting or asyncio.create_task(self._queue.get())
                changing = changing or asyncio.create_task(self._changed.wait())
                await asyncio.wait((getting, changing), return_when=asyncio.FIRST_COMPLETED)
                if changing.done():
                    changing = None
                    self._changed.clear()
                    with contextlib.suppress(watching.Lagged):
                        watch.take()
                    if not self._manager.committer.is_leader:
                        raise errors.Unavailable("this manager does not lead any more")
                if getting.done():
                    line, getting = getting.result(), None
                    yield line
        finally:
            watch.close()
            leftovers = [task for task in (getting, changing, *self._readers.values()) if task is not None]
            for task in leftovers:
                task.cancel()
            await asyncio.gather(*leftovers, return_exceptions=True)

    def _look(self) -> None:
        view = self._manager.store.view()
        for task in self._wanted(view):
            if task.id not in self._readers and len(self._readers) < TASKS_MAX:
                reader = asyncio.create_task(self._read(task))
                self._readers[task.id] = reader
                reader.add_done_callback(lambda _, task_id=task.id: self._ended(task_id))  # type: ignore[misc]
        if self._task_ids is not None:
            self._task_ids = []  # each only once

    def _wanted(self, view: views.View) -> list[pb.Task]:
        if self._task_ids is not None:
            found = (view.tasks.get(task_id) for task_id in self._task_ids)
            return [task for task in found if task is not None]
        rows = view.tasks if not self._services else (
            row for service_id in self._services for row in view.tasks.where("service", service_id)
        )  # fmt: skip
        return [row for row in rows if row.status.state == pb.TASK_STATE_RUNNING]

    def _ended(self, task_id: str) -> None:
        self._readers.pop(task_id, None)
        self._changed.set()

    async def _read(self, task: pb.Task) -> None:
        try:
            what = pb.ChannelOpen(stats=pb.StatsStart(follow=self._follow))
            async with self._manager.channels.open(task.id, what) as pipe:
                buffer = bytearray()
                while (piece := await pipe.receive()) is not None:
                    if isinstance(piece, pb.ChannelData):
                        buffer += piece.data
                        for stats in _messages(buffer):
                            await self._queue.put(_line(task, stats))
        except errors.SkepError as problem:
            await self._queue.put(_encoded({**_names(task), "Error": problem.message}))
        if self._task_ids is None and self._follow:
            await asyncio.sleep(AGAIN_S)  # it has just ended, or its node is away: then it is asked again


def _messages(buffer: bytearray) -> list[pb.TaskStats]:
    """Takes the whole messages off the buffer's front."""
    found: list[pb.TaskStats] = []
    while len(buffer) >= PREFIX_BYTES:
        end = PREFIX_BYTES + int.from_bytes(buffer[:PREFIX_BYTES], "big")
        if len(buffer) < end:
            break
        found.append(pb.TaskStats.FromString(bytes(buffer[PREFIX_BYTES:end])))
        del buffer[:end]
    return found


def _names(task: pb.Task) -> dict[str, Any]:
    name = f"{task.service_name}.{tasknames.place(task)}"
    return {"TaskID": task.id, "Name": name, "ServiceID": task.service_id, "NodeID": task.node_id}


def _line(task: pb.Task, stats: pb.TaskStats) -> bytes:
    return _encoded({
        **_names(task),
        "Time": jsonmap.format_time(stats.at),
        "NanoCPUs": stats.nano_cpus,
        "MemoryBytes": stats.memory_bytes,
        "MemoryLimitBytes": stats.memory_limit_bytes,
        "Pids": stats.pids,
        "ReceivedBytes": stats.received_bytes,
        "SentBytes": stats.sent_bytes,
        "ReadBytes": stats.read_bytes,
        "WrittenBytes": stats.written_bytes,
    })  # fmt: skip


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


ROUTES = (
    routing.Route("GET", "/skep/v1/tasks/{id}/stats", routing.Scope.READ, task_stats),
    routing.Route("GET", "/skep/v1/stats", routing.Scope.READ, many_stats),
)
