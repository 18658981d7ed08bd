"""Serves managers' requests for the output of tasks over one session.

Memory is bounded: a request reads the runtime only as far as the reader at the other end has given credit for.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from agent.runtime import base
from skep import errors, pb, stamps

log = structlog.get_logger(__name__)

REQUESTS_MAX = 256  # at the same time, per session
CHUNK_BYTES_MAX = 32 * 1024
CHUNK_ENTRIES_MAX = 256
GATHER_S = 0.05  # how long a line may wait for others to travel with

Send = Callable[[pb.AgentMessage], Awaitable[None]]
Read = Callable[[str, base.LogOptions], AsyncIterator[pb.LogEntry]]


class _Reading:
    """One request being served."""

    def __init__(self, credit: int) -> None:
        self.credit = max(credit, 1)
        self.granted = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def spend(self) -> None:
        while self.credit == 0:
            self.granted.clear()
            await self.granted.wait()
        self.credit -= 1


class LogServer:
    """The log requests of one session."""

    def __init__(self, *, read: Read, send: Send) -> None:
        self._read = read
        self._send = send
        self._readings: dict[int, _Reading] = {}

    async def start(self, request: pb.LogRequest) -> None:
        """Begins to answer a request, or answers that there are too many."""
        if request.id in self._readings:
            return
        if len(self._readings) >= REQUESTS_MAX:
            await self._finish(request.id, "too many log requests on this node; try again later")
            return
        reading = _Reading(request.credit)
        self._readings[request.id] = reading
        reading.task = asyncio.create_task(self._serve(request, reading), name=f"logs.{request.task_id}")
        reading.task.add_done_callback(lambda _: self._readings.pop(request.id, None))

    def grant(self, credit: pb.LogCredit) -> None:
        """The reader has taken chunks."""
        reading = self._readings.get(credit.id)
        if reading is not None:
            reading.credit += credit.chunks
            reading.granted.set()

    def cancel(self, request_id: int) -> None:
        """The reader has gone."""
        reading = self._readings.get(request_id)
        if reading is not None and reading.task is not None:
            reading.task.cancel()

    async def close(self) -> None:
        """Ends all requests."""
        tasks = [reading.task for reading in self._readings.values() if reading.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, request: pb.LogRequest, reading: _Reading) -> None:
        try:
            await self._pump(request, reading)
            problem = ""
        except errors.NotFound as error:
            problem = error.message
        except (errors.SkepError, OSError) as error:
            log.warning("logs.failed", task=request.task_id, error=str(error))
            problem = str(error)
        except Exception:
            log.exception("logs.crashed", task=request.task_id)
            problem = "the agent could not read the log"
        try:
            await self._finish(request.id, problem)
        except errors.Unavailable:
            return  # the session is over, and so is the request

    async def _finish(self, request_id: int, problem: str) -> None:
        await self._send(pb.AgentMessage(log=pb.LogChunk(request_id=request_id, end=True, error=problem)))

    async def _pump(self, request: pb.LogRequest, reading: _Reading) -> None:
        options = base.LogOptions(
            follow=request.follow,
            stdout=request.stdout,
            stderr=request.stderr,
            tail=request.tail,
            since=stamps.seconds(request.since),
        )
        entries = self._read(request.task_id, options)
        following = asyncio.ensure_future(anext(entries, None))
        try:
            chunk = pb.LogChunk(request_id=request.id)
            size = 0
            while True:
                if chunk.entries and not following.done():
                    await asyncio.wait((following,), timeout=GATHER_S)
                full = size >= CHUNK_BYTES_MAX or len(chunk.entries) >= CHUNK_ENTRIES_MAX
                if chunk.entries and (full or not following.done()):
                    await self._ship(chunk, reading)
                    chunk, size = pb.LogChunk(request_id=request.id), 0
                    continue
                try:
                    entry = await following
                except Exception:
                    if chunk.entries:
                        await self._ship(chunk, reading)  # what there was before it broke
                    raise
                if entry is None:
                    break
                chunk.entries.append(entry)
                size += len(entry.data)
                following = asyncio.ensure_future(anext(entries, None))
            if chunk.entries:
                await self._ship(chunk, reading)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            close = getattr(entries, "aclose", None)
            if close is not None:
                await close()

    async def _ship(self, chunk: pb.LogChunk, reading: _Reading) -> None:
        await reading.spend()
        await self._send(pb.AgentMessage(log=chunk))
