"""Serves the channels that managers open over one session: runs what each asks for on the runtime's access.

Memory is bounded by the windows of `skep.channel`; when a channel or the session ends, so does what was begun for it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from agent.runtime import access
from skep import channel, errors, pb

log = structlog.get_logger(__name__)

Send = Callable[[pb.AgentMessage], Awaitable[None]]
STATS_PREFIX_BYTES = 4


class ChannelServer:
    """The channels of one session."""

    def __init__(self, *, access: access.Access, send: Send) -> None:
        self._access = access
        self._send = send
        self._due = asyncio.Event()
        self._mux = channel.Mux(self._due.set)
        self._serving: dict[asyncio.Task[None], None] = {}

    def take(self, frame: pb.ChannelFrame) -> None:
        """A frame from the manager. Never waits."""
        opened = self._mux.take(frame)
        if opened is not None:
            task = asyncio.create_task(self._serve(opened), name=f"channel.{opened.id}")
            self._serving[task] = None
            task.add_done_callback(lambda done: self._serving.pop(done, None))

    async def run(self) -> None:
        """Sends frames until cancelled. Raises Unavailable when the session is over."""
        while True:
            await self._due.wait()
            self._due.clear()
            while (frame := self._mux.next()) is not None:
                await self._send(pb.AgentMessage(channel=frame))

    async def close(self) -> None:
        """Ends all that is under way."""
        self._mux.close(errors.Unavailable("the session with the manager is over"))
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, pipe: channel.Channel) -> None:
        """Does what the channel was opened for, as long as the manager wants it."""
        working = asyncio.ensure_future(self._do(pipe))
        over = asyncio.ensure_future(pipe.ended())
        try:
            await asyncio.wait((working, over), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                pipe.end(exit_code=working.result())
        except errors.SkepError as error:
            pipe.end(error)
        except OSError as error:
            pipe.end(errors.FailedPrecondition(str(error)))
        except Exception as error:
            log.exception("channel.crashed", task=pipe.opened.task_id, what=pipe.opened.WhichOneof("what"))
            pipe.end(errors.Bug(f"the agent failed ({type(error).__name__}); its log says more"))
        finally:
            working.cancel()
            over.cancel()
            await asyncio.gather(working, over, return_exceptions=True)

    async def _do(self, pipe: channel.Channel) -> int:
        opened = pipe.opened
        task_id, what = opened.task_id, opened.WhichOneof("what")
        log.debug("channel.opened", task=task_id, what=what)
        match what:
            case "exec":
                if not opened.exec.command:
                    raise errors.Invalid("no command was given")
                return await self._access.exec(task_id, opened.exec, pipe)
            case "archive_out":
                await self._access.archive_out(task_id, opened.archive_out.path, pipe)
            case "archive_in":
                await self._access.archive_in(task_id, opened.archive_in.path, pipe)
            case "stats":
                await self._stats(task_id, pipe, follow=opened.stats.follow)
            case "connect":
                await self._connect(task_id, opened.connect.port, pipe)
            case _:
                raise errors.Unimplemented("this node's agent is too old for what was asked of it")
        return 0

    async def _stats(self, task_id: str, pipe: channel.Channel, *, follow: bool) -> None:
        async for stats in self._access.stats(task_id):
            pipe.say_ready()
            message = stats.SerializeToString()
            await pipe.send(len(message).to_bytes(STATS_PREFIX_BYTES, "big") + message)
            if not follow:
                return

    async def _connect(self, task_id: str, port: int, pipe: channel.Channel) -> None:
        reader, writer = await self._access.connect(task_id, port)
        try:
            pipe.say_ready()
            sending = asyncio.ensure_future(access.from_channel(pipe, writer))
            try:
                await access.to_channel(reader, pipe)
                pipe.eof()
                await sending  # the other direction may go on after this one has ended
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
