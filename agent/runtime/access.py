"""What a runtime can do in and with the tasks that it holds: commands, files, figures, connections.

Apart from `base.Runtime`, which only keeps tasks going. Every runtime has one of these as its attribute `access`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from skep import channel, errors, pb

COPY_BYTES = 64 * 1024
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Access(Protocol):
    """All methods raise NotFound for a task that is not here, FailedPrecondition for one that is not running."""

    async def exec(self, task_id: str, what: pb.ExecStart, pipe: channel.Channel) -> int:
        """Runs a command in the task, its streams over `pipe`, and returns its exit code.

        Says `ready` once it is started. Cancelled when nobody waits for it any more: the command is then ended where
        the runtime can do so.
        """
        ...

    async def archive_out(self, task_id: str, path: str, pipe: channel.Channel) -> None:
        """Sends what is at `path` as a tar stream. Says `ready` once it is found; NotFound when it is not."""
        ...

    async def archive_in(self, task_id: str, path: str, pipe: channel.Channel) -> None:
        """Unpacks the tar stream that comes below the directory `path`, which must be there."""
        ...

    def stats(self, task_id: str) -> AsyncIterator[pb.TaskStats]:
        """The task's use of the machine, about once a second, until the task has ended."""
        ...

    async def connect(self, task_id: str, port: int) -> Connection:
        """A connection to a TCP port that the task listens on. Raises FailedPrecondition when nothing does."""
        ...


class NoAccess:
    """The access of a runtime whose tasks are nothing that could be entered."""

    async def exec(self, task_id: str, what: pb.ExecStart, pipe: channel.Channel) -> int:
        """Raises Unimplemented, as all methods here."""
        raise _nothing(task_id)

    async def archive_out(self, task_id: str, path: str, pipe: channel.Channel) -> None:
        """See exec."""
        raise _nothing(task_id)

    async def archive_in(self, task_id: str, path: str, pipe: channel.Channel) -> None:
        """See exec."""
        raise _nothing(task_id)

    async def stats(self, task_id: str) -> AsyncIterator[pb.TaskStats]:
        """See exec."""
        raise _nothing(task_id)
        yield pb.TaskStats()  # makes it a generator

    async def connect(self, task_id: str, port: int) -> Connection:
        """See exec."""
        raise _nothing(task_id)


def _nothing(task_id: str) -> errors.Unimplemented:
    return errors.Unimplemented(f"task {task_id} only exists in memory: there is nothing to enter")


async def to_channel(
    reader: asyncio.StreamReader,
    pipe: channel.Channel,
    *,
    stream: pb.ChannelStream.ValueType = pb.CHANNEL_STREAM_MAIN,
) -> None:
    """Copies until the reader ends; a connection that breaks ends it too."""
    while data := await _read(reader):
        await pipe.send(data, stream=stream)


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(COPY_BYTES)
    except OSError:
        return b""


async def from_channel(pipe: channel.Channel, writer: asyncio.StreamWriter) -> None:
    """Copies data until the sender has said all, and passes that on. What is at the other end may have gone before."""
    try:
        while (piece := await pipe.receive()) is not None:
            if isinstance(piece, pb.ChannelData):
                writer.write(piece.data)
                await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        while await pipe.receive() is not None:  # nobody takes it; it must not stall what comes the other way
            continue
