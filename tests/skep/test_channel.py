"""Flow control of channels: bounded, fair, and never waiting for a reader that does not read."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep import channel, errors, pb
from tests import virtual_time


class Ends:
    """Two muxes joined by a carrier that tests can hold up."""

    def __init__(self) -> None:
        self._due = asyncio.Event()
        self.near, self.far = channel.Mux(self._due.set), channel.Mux(self._due.set)
        self.opened: list[channel.Channel] = []
        self.carried: list[pb.ChannelFrame] = []

    def open(self, task_id: str = "t") -> channel.Channel:
        return self.near.open(pb.ChannelOpen(task_id=task_id))

    def carry(self) -> None:
        """Everything that is due, both ways."""
        moved = True
        while moved:
            moved = False
            for source, target in ((self.near, self.far), (self.far, self.near)):
                while (frame := source.next()) is not None:
                    moved = True
                    self.carried.append(frame)
                    made = target.take(pb.ChannelFrame.FromString(frame.SerializeToString()))
                    if made is not None:
                        self.opened.append(made)

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self.carry()


def run(work: Callable[[Ends], Awaitable[None]]) -> None:
    async def main() -> None:
        ends = Ends()
        carrying = asyncio.create_task(ends.run())
        try:
            await work(ends)
        finally:
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)

    virtual_time.run(main)


async def pair(ends: Ends) -> tuple[channel.Channel, channel.Channel]:
    """A ready channel: the manager's end and the agent's."""
    manager = ends.open()
    ends.carry()
    agent = ends.opened[-1]
    agent.say_ready()
    await manager.ready()
    return manager, agent


async def all_of(end: channel.Channel) -> bytes:
    got = bytearray()
    while isinstance(piece := await end.receive(), pb.ChannelData):
        got += piece.data
    return bytes(got)


@given(st.lists(st.binary(max_size=100_000), max_size=12))
def test_everything_arrives_in_order_both_ways(pieces: list[bytes]) -> None:
    async def work(ends: Ends) -> None:
        manager, agent = await pair(ends)

        async def say(end: channel.Channel) -> None:
            for piece in pieces:
                await end.send(piece)
            end.eof()

        both = (say(manager), say(agent), all_of(manager), all_of(agent))
        _, _, one, other = await asyncio.gather(*both)
        assert one == other == b"".join(pieces)
        assert all(len(frame.data.data) <= channel.CHUNK_BYTES_MAX for frame in ends.carried)

    run(work)


def test_a_reader_that_does_not_read_costs_one_window_and_stalls_nobody_else() -> None:
    async def work(ends: Ends) -> None:
        slow, slow_agent = await pair(ends)
        quick, quick_agent = await pair(ends)
        flooding = asyncio.create_task(slow_agent.send(b"x" * (4 * channel.WINDOW_BYTES)))
        await quick_agent.send(b"y")
        piece = await quick.receive()
        assert isinstance(piece, pb.ChannelData)
        assert piece.data == b"y"
        await asyncio.sleep(1)
        assert not flooding.done()
        arrived = sum(len(frame.data.data) for frame in ends.carried if frame.id == slow.id)
        assert arrived == channel.WINDOW_BYTES
        got = 0
        while got < 4 * channel.WINDOW_BYTES:
            piece = await slow.receive()
            assert isinstance(piece, pb.ChannelData)
            got += len(piece.data)
        await flooding

    run(work)


def test_channels_take_turns() -> None:
    async def work(ends: Ends) -> None:
        pairs = [await pair(ends) for _ in range(3)]
        ends.carried.clear()
        sending = [asyncio.create_task(agent.send(b"x" * channel.WINDOW_BYTES)) for _, agent in pairs]
        await asyncio.gather(*sending)
        await asyncio.sleep(1)
        order = [frame.id for frame in ends.carried if frame.HasField("data")]
        assert len(order) == 3 * channel.WINDOW_BYTES // channel.CHUNK_BYTES_MAX
        assert set(order[:3]) == set(order[3:6]) == {1, 2, 3}

    run(work)


def test_the_end_comes_after_the_data_and_says_why() -> None:
    async def work(ends: Ends) -> None:
        manager, agent = await pair(ends)
        await agent.send(b"last words")
        agent.end(errors.NotFound("gone"))
        await manager.ended()
        assert (await manager.receive()) == pb.ChannelData(data=b"last words")
        with pytest.raises(errors.NotFound, match="gone"):
            await manager.receive()
        with pytest.raises(errors.NotFound):
            await manager.send(b"x")
        assert (len(ends.near), len(ends.far)) == (0, 0)
        manager, agent = await pair(ends)
        agent.end(exit_code=3)
        assert await manager.receive() is None
        assert manager.exit_code == 3

    run(work)


def test_a_refused_channel_raises_what_the_agent_says() -> None:
    async def work(ends: Ends) -> None:
        manager = ends.open()
        await asyncio.sleep(0.1)
        ends.opened[-1].end(errors.FailedPrecondition("task t is not running"))
        with pytest.raises(errors.FailedPrecondition, match="not running"):
            await manager.ready()

    run(work)


def test_who_leaves_frees_a_sender_that_waits() -> None:
    async def work(ends: Ends) -> None:
        manager, agent = await pair(ends)
        flooding = asyncio.create_task(agent.send(b"x" * (2 * channel.WINDOW_BYTES)))
        await asyncio.sleep(1)
        manager.end()
        with pytest.raises(errors.Unavailable):
            await flooding
        assert (len(ends.near), len(ends.far)) == (0, 0)

    run(work)


def test_a_session_that_ends_ends_its_channels() -> None:
    async def work(ends: Ends) -> None:
        manager, agent = await pair(ends)
        await agent.send(b"so far")
        await asyncio.sleep(0.1)
        ends.near.close(errors.Unavailable("node n1 disconnected unexpectedly"))
        assert await manager.receive() == pb.ChannelData(data=b"so far")
        with pytest.raises(errors.Unavailable, match="n1 disconnected"):
            await manager.receive()
        with pytest.raises(errors.Unavailable, match="n1 disconnected"):
            ends.open()

    run(work)


def test_only_the_latest_size_counts() -> None:
    async def work(ends: Ends) -> None:
        manager, agent = await pair(ends)
        for number in range(1000):
            manager.resize(pb.TerminalSize(rows=number, columns=1))
        await manager.send(b"x")
        await asyncio.sleep(0.1)
        pieces = [await agent.receive(), await agent.receive()]
        sizes = [piece.rows for piece in pieces if isinstance(piece, pb.TerminalSize)]
        assert sizes == [999]
        for number in range(1000):
            manager.resize(pb.TerminalSize(rows=number, columns=2))
            ends.carry()
        assert len(agent._inbox) == 1

    run(work)


def test_more_than_was_allowed_ends_the_channel() -> None:
    async def work(ends: Ends) -> None:
        manager, _agent = await pair(ends)
        data = pb.ChannelData(data=b"x" * (channel.WINDOW_BYTES + 1))
        ends.near.take(pb.ChannelFrame(id=manager.id, data=data))
        assert await manager.receive() is None
        assert manager.is_over

    run(work)


def test_there_are_only_so_many() -> None:
    async def work(ends: Ends) -> None:
        for _ in range(channel.CHANNELS_MAX):
            ends.open()
        with pytest.raises(errors.Unavailable, match="open on this node"):
            ends.open()

    run(work)
