"""How much is said: messages cost more than anything else in a commit."""

import asyncio

from manager.raft import config, memory_transport
from skep import pb
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory

COMMITS = 50


def test_one_message_tells_of_a_commit_and_brings_the_next_entry() -> None:
    appends: list[tuple[str, str]] = []

    def watch(source: str, target: str, frame: pb.RaftFrame) -> None:
        if frame.kind == pb.RAFT_FRAME_KIND_APPEND:
            appends.append((source, target))

    async def main() -> None:
        network = memory_transport.MemoryNetwork(watch=watch)
        async with raft_memory.running(network, config.RaftConfig()) as world:
            _, leader = raft_memory.leader(world)
            loop = asyncio.get_running_loop()
            began = loop.time()
            appends.clear()
            for number in range(COMMITS):  # as one caller does it: the next when the one before is acknowledged
                await leader.commit([raft_cluster.create(f"t{number}")])
            heartbeats = (loop.time() - began) / config.RaftConfig().heartbeat_s + 1
            for follower in world.managers:
                if follower != leader.node_id:
                    assert COMMITS <= appends.count((leader.node_id, follower)) <= COMMITS + heartbeats
            index = leader.applied_index  # and the last commit becomes known, without another entry and at once
            stores = [manager.store for manager in world.managers.values()]
            await virtual_time.until(lambda: all(each.index == index for each in stores), within_s=0.05)

    virtual_time.run(main)
