"""A manager that cannot keep its promises stops making any: no quorum, no disk, too much to do."""

import asyncio
import errno

import pytest

from manager.raft import config, memory_transport, node
from manager.store import commit
from skep import errors
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory
from tests.simulation import managers

TIMES = config.RaftConfig(snapshot_entries=20, keep_entries=5)


def test_a_leader_without_a_quorum_steps_down_within_an_election_timeout_and_everybody_gets_an_answer() -> None:
    async def main() -> None:
        network = memory_transport.MemoryNetwork()
        async with raft_memory.running(network, TIMES) as world:
            manager, old = raft_memory.leader(world)
            for name in world.managers:
                network.cut(name, manager.name)
                network.cut(manager.name, name)
            loop = asyncio.get_running_loop()
            began = loop.time()
            large = "x" * 500_000
            writes = []
            for number in range(200):
                operation = raft_cluster.create(f"t{number}")
                operation.object.task.status.message = large
                writes.append(loop.create_task(old.commit([operation])))
            reads = [loop.create_task(old.barrier()) for _ in range(50)]
            outcomes = await asyncio.gather(*writes, *reads, return_exceptions=True)
            assert loop.time() - began < TIMES.election_max_s + 2 * TIMES.heartbeat_s
            assert not old.is_leader
            assert all(isinstance(outcome, errors.Unavailable) for outcome in outcomes)
            told = {str(outcome) for outcome in outcomes}
            assert "too many changes are waiting to be committed; try again later" in told  # not without a bound
            assert any("whether it took effect is unknown" in each for each in told)
            refused = [outcome for outcome in outcomes if isinstance(outcome, commit.NotProposed)]
            assert len(refused) > 100, "what was not in the log yet may safely be repeated"
            await virtual_time.until(lambda: world.leader() not in (None, old))

    virtual_time.run(main)


@pytest.mark.parametrize("what", ["the log", "a snapshot"])
def test_a_manager_whose_disk_fails_stops_and_the_others_go_on(what: str) -> None:
    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            manager, old = raft_memory.leader(world)
            await old.commit([raft_cluster.create("kept")])
            told: list[bool] = []
            old.subscribe(lambda: told.append(old.failure.done()))
            (_full if what == "the log" else _full_for_snapshots)(manager)
            with pytest.raises(errors.Unavailable):
                await _write_many(old)
            failure = await old.failure
            assert isinstance(failure, OSError)
            assert failure.errno == errno.ENOSPC
            assert told[-1]
            assert not old.is_leader
            with pytest.raises(errors.Unavailable):
                await old.commit([raft_cluster.create("more")])
            await manager.stop()  # what the daemon does then
            await virtual_time.until(lambda: world.leader() not in (None, old))
            successor, consensus = raft_memory.leader(world)
            await consensus.commit([raft_cluster.create("after")])
            names = {task.id for task in successor.store.view().tasks}
            assert {"kept", "after"} <= names
            assert "more" not in names

    virtual_time.run(main)


async def _write_many(consensus: node.RaftNode) -> None:
    for number in range(60):
        await consensus.commit([raft_cluster.create(f"t{number}")])


def _full(manager: managers.Manager) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    manager.handle.step = fail  # type: ignore[method-assign]


def _full_for_snapshots(manager: managers.Manager) -> None:
    create = manager.handle.create

    def fail(name: str) -> object:
        if name.startswith("snapshot-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(name)

    manager.handle.create = fail  # type: ignore[method-assign,assignment]
