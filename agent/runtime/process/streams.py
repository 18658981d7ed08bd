"""The standard streams of a command that the agent starts: pipes or a terminal, read no faster than they are taken.

Unlike asyncio's own pipes they do not keep the command's end from being seen while others still hold its output open.
"""

import asyncio
import contextlib
import os
import types
from collections.abc import Awaitable, Callable

from agent.runtime import access
from skep import channel, pb

KILLED_BASE = 128  # killed by signal N is 128+N, as in a shell
ERROR_BYTES_MAX = 4096

Take = Callable[[bytes, pb.ChannelStream.ValueType], Awaitable[None]]


class Streams:
    """Our ends and, until it is started, the command's. A context manager."""

    def __init__(self, *, tty: bool, stdin: bool) -> None:
        """With `tty` there is one stream both ways. Without `stdin` the input is empty."""
        self.terminal: int | None = None
        self._input: int | None = None
        self._outputs: dict[int, pb.ChannelStream.ValueType] = {}
        self._theirs: list[int] = []
        self._is_tty, self._has_input = tty, stdin
        self._exited = False
        self._moved: list[asyncio.Event] = []

    def __enter__(self) -> "Streams":
        if self._is_tty:
            ours, theirs = os.openpty()
            self.terminal = self._input = ours
            self._outputs = {ours: pb.CHANNEL_STREAM_MAIN}
            self._theirs = [theirs] * 3
        else:
            in_r, in_w = os.pipe()
            out_r, out_w = os.pipe()
            err_r, err_w = os.pipe()
            self._input = in_w
            self._outputs = {out_r: pb.CHANNEL_STREAM_MAIN, err_r: pb.CHANNEL_STREAM_ERROR}
            self._theirs = [in_r, out_w, err_w]
        for fd in {self._input, *self._outputs}:
            os.set_blocking(fd, False)
        if not self._is_tty and not self._has_input:
            self.close_input()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close_theirs()
        for fd in self._outputs:
            os.close(fd)
        if self.terminal is None:
            self.close_input()

    def theirs(self) -> list[int]:
        """Standard input, output and error of the command."""
        return self._theirs

    def close_theirs(self) -> None:
        """Once the command has them."""
        for fd in dict.fromkeys(self._theirs):
            os.close(fd)
        self._theirs = []

    def close_input(self) -> None:
        """The command's input ends."""
        if self._input is not None:
            os.close(self._input)
            self._input = None

    async def write(self, data: bytes) -> None:
        """To the command's input; dropped when it takes none any more."""
        loop = asyncio.get_running_loop()
        while data and self._input is not None:
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                await self._until(loop.add_writer, loop.remove_writer, self._input)
            except OSError:
                return

    async def copy_until_exit(self, process: asyncio.subprocess.Process, pipe: channel.Channel) -> int:
        """Sends all output; returns the exit code once the command has ended and what it has written is sent."""

        async def take(data: bytes, stream: pb.ChannelStream.ValueType) -> None:
            await pipe.send(data, stream=stream)

        await self._copy(process, take)
        code = process.returncode or 0
        return code if code >= 0 else KILLED_BASE - code

    async def copy_main_until_exit(self, process: asyncio.subprocess.Process, pipe: channel.Channel) -> bytes:
        """Sends standard output, which says `ready` with its first byte; returns the end of standard error."""
        complaint = b""

        async def take(data: bytes, stream: pb.ChannelStream.ValueType) -> None:
            nonlocal complaint
            if stream == pb.CHANNEL_STREAM_ERROR:
                complaint = (complaint + data)[-ERROR_BYTES_MAX:]
                return
            pipe.say_ready()
            await pipe.send(data)

        await self._copy(process, take)
        return complaint

    async def _copy(self, process: asyncio.subprocess.Process, take: Take) -> None:
        copying = [asyncio.ensure_future(self._copy_one(fd, stream, take)) for fd, stream in self._outputs.items()]
        waiting = asyncio.ensure_future(self._wait(process))
        try:
            await asyncio.gather(waiting, *copying)
        finally:
            for future in (waiting, *copying):
                future.cancel()
            await asyncio.gather(waiting, *copying, return_exceptions=True)

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self._exited = True
        for event in self._moved:
            event.set()

    async def _copy_one(self, fd: int, stream: pb.ChannelStream.ValueType, take: Take) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = os.read(fd, access.COPY_BYTES)
            except BlockingIOError:
                if self._exited:
                    return  # others may hold it open; what the command itself has written was read
                await self._until(loop.add_reader, loop.remove_reader, fd)
                continue
            except OSError:  # the terminal's other side is closed
                return
            if not data:
                return
            await take(data, stream)

    async def _until(
        self, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool], fd: int
    ) -> None:
        """Returns when the descriptor can be used, or the command has ended."""
        event = asyncio.Event()
        self._moved.append(event)
        add(fd, event.set)
        try:
            if not self._exited:
                await event.wait()
        finally:
            self._moved.remove(event)
            with contextlib.suppress(OSError, ValueError):
                remove(fd)
