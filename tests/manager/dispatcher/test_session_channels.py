"""Channels to tasks through real sessions: what the agent does, who leaves, and a node that is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from typing_extensions import override

from agent.runtime import access
from manager.dispatcher import channels
from skep import channel, errors, pb
from tests import virtual_time
from tests.agent import joined

EXEC = pb.ChannelOpen(exec=pb.ExecStart(command=["sh"]))


class Shell(access.NoAccess):
    """Echoes; counts what was ended before its time."""

    def __init__(self) -> None:
        self.running = 0
        self.sent = 0

    @override
    async def exec(self, task_id: str, what: pb.ExecStart, pipe: channel.Channel) -> int:
        self.running += 1
        try:
            pipe.say_ready()
            if what.command[0] == "flood":
                while True:
                    await pipe.send(b"x" * 10_000)
                    self.sent += 10_000
            while isinstance(piece := await pipe.receive(), pb.ChannelData):
                await pipe.send(piece.data)
            return 5
        finally:
            self.running -= 1

    @override
    async def stats(self, task_id: str) -> AsyncIterator[pb.TaskStats]:
        yield pb.TaskStats(pids=1)
        yield pb.TaskStats(pids=2)


@contextlib.asynccontextmanager
async def shells() -> AsyncIterator[tuple[joined.Network, joined.Cluster, joined.Agent, Shell]]:
    """One node with task t1, whose agent has been given a Shell."""
    async with joined.joined("n1") as (network, cluster, (agent,)):
        shell = Shell()
        await agent.stop()
        agent.access = shell
        await agent.start()
        await cluster.create(joined.task("t1", "n1"))
        await virtual_time.until(lambda: cluster.state("t1") == joined.RUN and bool(agent.session.manager))
        yield network, cluster, agent, shell


def source_of(cluster: joined.Cluster) -> channels.Channels:
    return channels.Channels(store=cluster.store, session_of=cluster.dispatcher.session_of)


def test_a_command_talks_and_ends() -> None:
    async def main() -> None:
        async with shells() as (_, cluster, _agent, _shell), source_of(cluster).open("t1", EXEC) as pipe:
            await pipe.send(b"hello")
            assert await pipe.receive() == pb.ChannelData(data=b"hello")
            pipe.eof()
            assert await pipe.receive() is None
            assert pipe.exit_code == 5

    virtual_time.run(main)


def test_figures_arrive_with_their_lengths() -> None:
    async def main() -> None:
        async with shells() as (_, cluster, _agent, _shell):
            wanted = pb.ChannelOpen(stats=pb.StatsStart(follow=True))
            got = bytearray()
            async with source_of(cluster).open("t1", wanted) as pipe:
                while isinstance(piece := await pipe.receive(), pb.ChannelData):
                    got += piece.data
            first = int.from_bytes(got[:4], "big")
            assert pb.TaskStats.FromString(bytes(got[4 : 4 + first])).pids == 1
            assert got.endswith(pb.TaskStats(pids=2).SerializeToString())

    virtual_time.run(main)


def test_who_leaves_ends_the_command_and_a_flood_stays_bounded() -> None:
    async def main() -> None:
        async with shells() as (_, cluster, _agent, shell):
            flood = pb.ChannelOpen(exec=pb.ExecStart(command=["flood"]))
            async with source_of(cluster).open("t1", flood):
                await asyncio.sleep(60)  # nobody reads; heartbeats go on all the while
                assert shell.running == 1
                assert shell.sent <= channel.WINDOW_BYTES
                assert cluster.node("n1").status.state == pb.NODE_STATE_READY
            await virtual_time.until(lambda: shell.running == 0)

    virtual_time.run(main)


def test_a_node_that_is_lost_ends_the_channel_and_the_command() -> None:
    async def main() -> None:
        async with shells() as (network, cluster, agent, shell), source_of(cluster).open("t1", EXEC) as pipe:
            network.cut["n1"] = None
            await network.open["n1"].close()
            with pytest.raises(errors.Unavailable, match="n1 disconnected unexpectedly"):
                await pipe.receive()
            await virtual_time.until(lambda: shell.running == 0)
            with pytest.raises(errors.FailedPrecondition, match="node n1 is not available"):
                async with source_of(cluster).open("t1", EXEC):
                    pass
            assert agent.session.error

    virtual_time.run(main)


def test_what_cannot_be_entered_is_said() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, _agents):
            await cluster.create(joined.task("t1", "n1"), joined.task("t2", "", state=pb.TASK_STATE_PENDING))
            await virtual_time.until(lambda: cluster.state("t1") == joined.RUN)
            for task_id, kind, text in (
                ("t1", errors.Unimplemented, "only exists in memory"),
                ("t2", errors.FailedPrecondition, "has not been scheduled"),
                ("t3", errors.NotFound, "not there any more"),
            ):
                with pytest.raises(kind, match=text):
                    async with source_of(cluster).open(task_id, EXEC):
                        pass

    virtual_time.run(main)
