"""A manager whose log was emptied must not come back as the same voter: others count on what it had acknowledged."""

import contextlib

import pytest

from manager.raft import config, memory_transport, sealing
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory
from tests.simulation import managers, memory_disk, shadow

LARGE = "x" * 400_000


class MarkedLog(managers.WatchedLog):
    """With the mark that lies elsewhere on the machine."""

    def __init__(self, name: str, handle: memory_disk.Handle, checker: shadow.Checker) -> None:
        super().__init__(name, handle, checker)
        self._mark = handle.mark()


async def put(leader: managers.Manager, number: int) -> None:
    op = raft_cluster.create(f"t{number}")
    op.object.task.status.message = LARGE
    assert leader.node is not None
    await leader.node.commit([op])


def test_an_emptied_manager_is_refused_and_nothing_acknowledged_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the refusal it would help to elect the follower that was cut off, and thirty acknowledged writes go."""
    monkeypatch.setattr(managers, "WatchedLog", MarkedLog)

    async def main() -> None:
        network = memory_transport.MemoryNetwork(delay_s=lambda _source, _target: 0.02)
        async with raft_memory.running(network, config.RaftConfig()) as world:
            leader, node = raft_memory.leader(world)
            behind, emptied = (manager for manager in world.managers.values() if manager is not leader)
            for number in range(10):
                await put(leader, number)
            await virtual_time.until(lambda: behind.store.index == leader.store.index)
            for other in (leader, emptied):
                network.cut(behind.name, other.name)
                network.cut(other.name, behind.name)
            for number in range(10, 40):
                await put(leader, number)
            members = node.members()
            await emptied.kill(power=False)
            emptied.disk.files.clear()
            with pytest.raises(sealing.Damaged, match="the log is missing"):
                await emptied.start(join={name: addr for name, addr in members.items() if name != emptied.name})
            await emptied.kill(power=False)

            await leader.kill(power=False)
            network.heal()
            with contextlib.suppress(AssertionError):
                await virtual_time.until(lambda: world.leader() is not None, within_s=20)
                raise RuntimeError("a minority has elected a leader")
            await leader.start()
            await virtual_time.until(lambda: world.leader() is not None)
            await virtual_time.until(lambda: behind.store.index == leader.store.index)
            kept = {task.id for task in behind.store.view().tasks}
            assert kept == {f"t{number}" for number in range(40)}

    virtual_time.run(main)
