"""The two ends of a channel for tests of a runtime's access: what the manager would see, and what the runtime gets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from skep import channel, errors, pb


class Pipe:
    """A channel whose far end belongs to the runtime; the manager's end gathers what comes."""

    def __init__(self) -> None:
        self._due = asyncio.Event()
        self._near, self._far = channel.Mux(self._due.set), channel.Mux(self._due.set)
        self.manager = self._near.open(pb.ChannelOpen(task_id="t"))
        frame = self._near.next()
        assert frame is not None
        opened = self._far.take(frame)
        assert opened is not None
        self.runtime = opened
        self.out = bytearray()
        self.err = bytearray()

    async def carry(self) -> None:
        """Carries frames both ways."""
        while True:
            await self._due.wait()
            self._due.clear()
            for source, target in ((self._near, self._far), (self._far, self._near)):
                while (frame := source.next()) is not None:
                    target.take(pb.ChannelFrame.FromString(frame.SerializeToString()))

    async def gather(self) -> None:
        """Takes what the runtime sends until it sends nothing more."""
        with contextlib.suppress(errors.SkepError):
            while (piece := await self.manager.receive()) is not None:
                assert isinstance(piece, pb.ChannelData)
                (self.err if piece.stream == pb.CHANNEL_STREAM_ERROR else self.out).extend(piece.data)

    async def until(self, text: bytes) -> None:
        """Waits until the runtime has sent this."""
        async with asyncio.timeout(20):
            while text not in self.out:  # noqa: ASYNC110 - several coroutines fill it
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def piped(*, gather: bool = True) -> AsyncIterator[Pipe]:
    """A pipe that is carried, and gathered unless the test wants to read slowly."""
    pipe = Pipe()
    work = [asyncio.create_task(pipe.carry())]
    if gather:
        work.append(asyncio.create_task(pipe.gather()))
    try:
        yield pipe
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
