"""Handing over leadership: the request must get through to a busy successor, at once, and be repeated."""

import asyncio
from collections.abc import Callable

from manager.raft import config, memory_transport, node
from skep import pb
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory
from tests.simulation import managers

TIMES = config.RaftConfig()
TIMEOUT_NOW = pb.RAFT_FRAME_KIND_TIMEOUT_NOW


async def hand_over(old: node.RaftNode) -> float:
    """How long it takes."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await old.transfer_leadership()
    assert not old.is_leader
    return loop.time() - began


async def settled(world: managers.World) -> tuple[managers.Manager, node.RaftNode]:
    """The leader, once nothing is under way any more."""
    manager, leader = raft_memory.leader(world)
    await leader.commit([raft_cluster.create("a")])
    await asyncio.sleep(1)
    return manager, leader


async def settled_behind(
    receiving: Callable[[raft_memory.Receive], raft_memory.Receive], world: managers.World
) -> node.RaftNode:
    """The same; what the others receive goes through `receiving` from then on."""
    manager, leader = await settled(world)
    for other in world.managers.values():
        if other is not manager:
            raft_memory.intercept(other, receiving)
    return leader


def test_a_busy_successor_gets_the_request_and_a_heartbeat_in_one_round_and_stands_all_the_same() -> None:
    busy_s = 1.5 * TIMES.heartbeat_s

    def busy(receive: raft_memory.Receive) -> raft_memory.Receive:
        held: list[tuple[str, pb.RaftFrame]] = []

        def release() -> None:
            together, held[:] = list(held), []
            for peer, frame in together:
                receive(peer, frame)

        def received(peer: str, frame: pb.RaftFrame) -> None:
            held.append((peer, frame))
            if len(held) == 1:
                asyncio.get_running_loop().call_later(busy_s, release)

        return received

    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            old = await settled_behind(busy, world)
            assert await hand_over(old) < 4 * busy_s

    virtual_time.run(main)


def test_the_request_leaves_at_once() -> None:
    sent: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def watch(_source: str, _target: str, frame: pb.RaftFrame) -> None:
            if frame.kind == TIMEOUT_NOW:
                sent.append(loop.time())

        async with raft_memory.running(memory_transport.MemoryNetwork(watch=watch), TIMES) as world:
            _, old = await settled(world)
            await asyncio.sleep(TIMES.heartbeat_s / 3)  # between two heartbeats
            began = loop.time()
            assert await hand_over(old) < TIMES.heartbeat_s / 2
            assert sent == [began]

    virtual_time.run(main)


def test_a_request_that_is_lost_is_repeated_with_the_next_heartbeats() -> None:
    lost: list[pb.RaftFrame] = []

    def losing(receive: raft_memory.Receive) -> raft_memory.Receive:
        def received(peer: str, frame: pb.RaftFrame) -> None:
            if frame.kind == TIMEOUT_NOW and len(lost) < 2:
                lost.append(frame)
            else:
                receive(peer, frame)

        return received

    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            old = await settled_behind(losing, world)
            assert await hand_over(old) < 4 * TIMES.heartbeat_s
            assert len(lost) == 2

    virtual_time.run(main)
