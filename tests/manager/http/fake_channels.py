"""Channels to an agent that is a function of the test, and the tunnel to another Api, both in memory."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from manager.http import api, tunnel
from skep import channel, errors, pb

Agent = Callable[[channel.Channel], Awaitable[None]]


async def nothing(pipe: channel.Channel) -> None:
    pipe.end(errors.FailedPrecondition("nobody said what the agent does"))


class Wire:
    """Two ends of a session's channels, joined. `agent` serves every channel that is opened."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._due = asyncio.Event()
        self.near = channel.Mux(self._due.set)
        self.far = channel.Mux(self._due.set)
        self.serving: list[asyncio.Task[None]] = []
        self.frames: list[pb.ChannelFrame] = []

    async def run(self) -> None:
        """Carries frames, as they would travel."""
        while True:
            await self._due.wait()
            self._due.clear()
            while (frame := self.near.next()) is not None:
                opened = self.far.take(pb.ChannelFrame.FromString(frame.SerializeToString()))
                if opened is not None:
                    self.serving.append(asyncio.create_task(self._serve(opened)))
            while (frame := self.far.next()) is not None:
                self.frames.append(frame)
                self.near.take(pb.ChannelFrame.FromString(frame.SerializeToString()))

    async def _serve(self, pipe: channel.Channel) -> None:
        with contextlib.suppress(errors.SkepError):
            await self.agent(pipe)


class FakeChannels:
    """A backend.ChannelSource."""

    def __init__(self) -> None:
        self.agent: Agent = nothing
        self.open_now = 0
        self.asked: list[pb.ChannelOpen] = []

    @contextlib.asynccontextmanager
    async def open(self, task_id: str, what: pb.ChannelOpen) -> AsyncGenerator[channel.Channel, None]:
        asked = pb.ChannelOpen()
        asked.CopyFrom(what)
        asked.task_id = task_id
        self.asked.append(asked)
        wire = Wire(self.agent)
        carrying = asyncio.create_task(wire.run())
        self.open_now += 1
        try:
            pipe = wire.near.open(asked)
            await pipe.ready()
            yield pipe
        finally:
            self.open_now -= 1
            for task in (carrying, *wire.serving):
                task.cancel()
            await asyncio.gather(carrying, *wire.serving, return_exceptions=True)


class _End:
    """One end of a tunnel in memory."""

    def __init__(
        self, incoming: "asyncio.Queue[pb.TunnelPart | None]", outgoing: "asyncio.Queue[pb.TunnelPart | None]"
    ) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._ended = False

    async def send(self, part: pb.TunnelPart) -> None:
        await self._outgoing.put(part)

    async def receive(self) -> pb.TunnelPart | None:
        if self._ended:
            return None
        part = await self._incoming.get()
        self._ended = part is None
        return part


class MemoryTunnel(_End):
    """A backend.Tunnel to another Api."""

    def __init__(self, leader: api.Api) -> None:
        up: asyncio.Queue[pb.TunnelPart | None] = asyncio.Queue(4)
        down: asyncio.Queue[pb.TunnelPart | None] = asyncio.Queue(4)
        super().__init__(down, up)
        self._serving = asyncio.create_task(self._serve(leader, _End(up, down), down))

    @staticmethod
    async def _serve(leader: api.Api, end: _End, down: "asyncio.Queue[pb.TunnelPart | None]") -> None:
        await tunnel.serve(leader, end)
        await down.put(None)

    async def done(self) -> None:
        await self._outgoing.put(None)

    def cancel(self) -> None:
        self._serving.cancel()
