"""Changes of the members that are refused, and in which words."""

import asyncio

import pytest

from manager.raft import config, memory_transport
from skep import errors
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory

TIMES = config.RaftConfig(catch_up_timeout_s=5.0)


def test_one_change_at_a_time() -> None:
    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            manager, leader = raft_memory.leader(world)
            newcomer = world.new_manager()
            adding = asyncio.get_running_loop().create_task(leader.add_member(newcomer.name, newcomer.addr))
            await asyncio.sleep(0)
            other = next(name for name in world.managers if name not in (manager.name, newcomer.name))
            for change in (leader.remove_member(other), leader.add_member("n9", "n9:1")):
                with pytest.raises(errors.FailedPrecondition, match=f"has to wait: adding manager {newcomer.name} is"):
                    await change
            await newcomer.start(join=leader.members())
            await adding
            await leader.remove_member(other)
            assert sorted(leader.members()) == sorted(name for name in world.managers if name != other)

    virtual_time.run(main)


def test_a_newcomer_that_does_not_answer_is_named_and_forgotten() -> None:
    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            _, leader = raft_memory.leader(world)
            with pytest.raises(errors.Unavailable, match=r"manager n9 at nowhere:1 did not answer.*within 5 s"):
                await leader.add_member("n9", "nowhere:1")
            assert "n9" not in leader.members()
            await leader.commit([raft_cluster.create("goes on")])

    virtual_time.run(main)


def test_a_removal_that_would_leave_no_quorum_is_refused_with_the_numbers() -> None:
    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            manager, leader = raft_memory.leader(world)
            dead, alive = (other for other in world.managers.values() if other is not manager)
            await dead.kill(power=False)
            await asyncio.sleep(2 * TIMES.election_max_s)
            with pytest.raises(
                errors.FailedPrecondition, match="leave 1 of 2 managers reachable, which is no majority"
            ):
                await leader.remove_member(alive.name)
            await leader.remove_member(dead.name)  # the dead one may go
            with pytest.raises(errors.NotFound, match=f"manager {dead.name} is not in the cluster"):
                await leader.remove_member(dead.name)
            await leader.remove_member(alive.name)
            with pytest.raises(errors.FailedPrecondition, match="the last manager cannot be removed"):
                await leader.remove_member(manager.name)

    virtual_time.run(main)
