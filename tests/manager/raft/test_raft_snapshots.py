"""Large things in small steps: received snapshots and long logs must not hold up the event loop."""

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

from manager.raft import config, memory_transport, node, offload, snapshot
from manager.store import store
from skep import pb
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory
from tests.simulation import managers, shadow

T = TypeVar("T")
DECODING_S = 5.0
ENTRIES = 1000
TIMES = config.RaftConfig(snapshot_entries=20, keep_entries=5)


class SlowSnapshots(managers.SlowDisk):
    """Whatever concerns snapshots takes long."""

    def __init__(self) -> None:
        super().__init__(random.Random(7))
        self.begun = self.ended = 0

    async def run(self, lane: str, call: Callable[[], T]) -> T:  # type: ignore[explicit-override]  # as in managers
        if lane == offload.SNAPSHOT:
            self.begun += 1
            await asyncio.sleep(DECODING_S)
        result = await super().run(lane, call)
        self.ended += lane == offload.SNAPSHOT
        return result


async def behind(world: managers.World) -> tuple[node.RaftNode, managers.Manager]:
    """The leader, and a follower that was away for so long that it needs a snapshot; it is not yet back."""
    leader = world.leader()
    assert leader is not None
    away = next(manager for manager in world.managers.values() if manager.node is not leader)
    await away.kill(power=False)
    for number in range(60):
        await leader.commit([raft_cluster.create(f"t{number}")])
    return leader, away


def test_while_a_snapshot_is_decoded_the_manager_takes_part_and_nothing_is_sent_in_vain() -> None:
    sent: list[pb.RaftFrame] = []

    async def main() -> None:
        network = memory_transport.MemoryNetwork()
        async with raft_memory.running(network, TIMES) as world:
            leader, away = await behind(world)
            away.offload = slow = SlowSnapshots()
            await away.start()
            await virtual_time.until(lambda: slow.begun > 0)
            network.watch = lambda source, target, frame: sent.append(frame) if target == away.name else None
            loop = asyncio.get_running_loop()
            began, term = loop.time(), leader.term
            number = 0
            while not slow.ended:
                number += 1
                await leader.commit([raft_cluster.create(f"meanwhile{number}")])
                assert away.node is not None
                assert away.node.leader_id == leader.node_id
                assert len(away.store.view().tasks) == 0 or away.store.view().tasks.get("t59"), "all of it or nothing"
                await asyncio.sleep(0.2)
            heartbeats = (loop.time() - began) / TIMES.heartbeat_s
            assert loop.time() - began > DECODING_S / 2
            assert len(sent) < 2.5 * heartbeats, "a follower that waits is not talked to death"
            again = [frame for frame in sent if frame.kind == pb.RAFT_FRAME_KIND_SNAPSHOT]
            assert len(again) <= 1, "once more when the first acknowledgement is lost, for want of a way back"
            assert leader.term == term
            index = leader.applied_index
            await virtual_time.until(lambda: away.store.index >= index, within_s=1.0)
            assert len(away.store.view().tasks) == 60 + number

    virtual_time.run(main)


def test_a_manager_that_dies_over_a_snapshot_begins_anew() -> None:
    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            leader, away = await behind(world)
            normal = away.offload
            away.offload = slow = SlowSnapshots()
            await away.start()
            await virtual_time.until(lambda: slow.begun > 0)
            await away.kill(power=True)
            away.offload = normal
            await away.start()
            await virtual_time.until(lambda: away.store.index >= leader.applied_index, within_s=5.0)
            assert len(away.store.view().tasks) == 60

    virtual_time.run(main)


def test_a_snapshot_that_comes_too_late_is_dropped() -> None:
    """The log itself has got further while the snapshot was being decoded."""

    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            leader = world.leader()
            assert leader is not None
            late = next(manager for manager in world.managers.values() if manager.node is not leader)
            index = await leader.commit([raft_cluster.create("early")])
            await virtual_time.until(lambda: late.store.index == index)
            content = store.thaw(late.store.freeze().records())
            after = await leader.commit([raft_cluster.create("later")])
            await virtual_time.until(lambda: late.store.index == after)
            assert late.core is not None
            taken = snapshot.Snapshot(index=index, term=leader.term, members={}, members_index=2, blocks=1)
            late.core.snapshot_received(asyncio.get_running_loop().time(), taken, content)
            assert late.store.index == after
            assert {task.id for task in late.store.view().tasks} == {"early", "later"}
            await virtual_time.until(lambda: not content.tables["task"].rows)  # freed outside of the event loop

    virtual_time.run(main)


def test_a_snapshot_that_was_damaged_on_the_way_is_sent_once_more() -> None:
    damaged: list[int] = []
    numbers: list[int] = []

    def damaging(receive: raft_memory.Receive) -> raft_memory.Receive:
        def received(peer: str, frame: pb.RaftFrame) -> None:
            if frame.kind == pb.RAFT_FRAME_KIND_SNAPSHOT:
                numbers.append(frame.block.number)
                if frame.block.number == frame.block.snapshot.blocks - 1 and not damaged:  # all the others are there
                    damaged.append(len(numbers))
                    data = bytearray(frame.block.data)
                    data[1000] ^= 1
                    frame.block.data = bytes(data)
            receive(peer, frame)

        return received

    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            leader = world.leader()
            assert leader is not None
            for number in range(3):  # several blocks
                large = raft_cluster.create(f"large{number}")
                large.object.task.status.message = "x" * 400_000
                await leader.commit([large])
            _, away = await behind(world)
            await away.start()
            raft_memory.intercept(away, damaging)
            await virtual_time.until(lambda: away.store.index >= leader.applied_index, within_s=5.0)
            assert len(away.store.view().tasks) == 63
            assert damaged, "or this shows nothing"
            blocks = max(numbers) + 1
            assert blocks > 4
            assert set(numbers[damaged[0] :]) == set(range(blocks)), "all of it once more"
            assert len(numbers) < 4 * blocks, "and not for ever"
            assert away.node is not None
            assert not away.node.failure.done()

    virtual_time.run(main)


def test_a_long_log_is_applied_in_slices() -> None:
    steps: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, managers.Stopwatch)
        world = managers.World(
            1, random.Random(1), memory_transport.MemoryNetwork(), shadow.Checker(), config.RaftConfig()
        )
        only = world.new_manager()
        await only.start(bootstrap={only.name: only.addr})
        await virtual_time.until(lambda: world.leader() is not None)
        for number in range(ENTRIES):
            assert only.node is not None
            await only.node.commit([raft_cluster.create(f"t{number}")])
        await only.kill(power=False)
        await only.start()
        loop.after_turn = lambda: steps.append(only.store.index)
        await virtual_time.until(lambda: len(only.store.view().tasks) == ENTRIES)
        loop.after_turn = lambda: None
        await only.kill(power=False)
        await only.stop()

    with asyncio.Runner(loop_factory=managers.Stopwatch) as runner:
        runner.run(main())
    jumps = [after - before for before, after in zip([1, *steps], steps, strict=False)]
    assert max(jumps) <= config.APPLY_ENTRIES_MAX + 2  # entries of no concern to the store come on top
    assert sum(jump > 0 for jump in jumps) >= ENTRIES / config.APPLY_ENTRIES_MAX
