"""The log's size: bytes alone bring a snapshot about, and a peer that takes none cannot hold the log for ever."""

import asyncio
import pathlib
import random

import pytest

from manager.raft import config, disk, memory_transport, node, sealing, snapshot, transfers
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory
from tests.simulation import managers, shadow

LARGE = "x" * 20_000
SMALL_LOG = config.RaftConfig(snapshot_bytes=config.MIB)
IMPATIENT = config.RaftConfig(snapshot_entries=20, keep_entries=5, transfer_stalled_s=2.0)


async def put(leader: node.RaftNode, number: int, message: str = "") -> None:
    op = raft_cluster.create(f"t{number}")
    op.object.task.status.message = message
    await leader.commit([op])


def on_disk(manager: managers.Manager) -> int:
    return sum(len(content.data) for name, content in manager.disk.files.items() if name.startswith("log-"))


def test_large_entries_do_not_wait_for_their_number() -> None:
    async def main() -> None:
        world = managers.World(1, random.Random(1), memory_transport.MemoryNetwork(), shadow.Checker(), SMALL_LOG)
        only = world.new_manager()
        await only.start(bootstrap={only.name: only.addr})
        await virtual_time.until(lambda: world.leader() is not None)
        assert only.node is not None
        assert only.core is not None
        memory = file = 0
        taken = set()
        for number in range(300):  # six times as much as the log may hold, and fewer entries than are kept behind one
            await put(only.node, number, LARGE)
            memory = max(memory, only.core.journal.size_bytes)
            file = max(file, on_disk(only))
            taken.add(only.core.journal.snapshot.index)
        assert memory <= 1.1 * SMALL_LOG.snapshot_bytes
        assert file <= 2.5 * SMALL_LOG.snapshot_bytes  # two while one is replaced by the next
        assert 6 <= len(taken) <= 12, "and not one snapshot after the other"
        await only.kill(power=False)
        await only.start()
        await virtual_time.until(lambda: len(only.store.view().tasks) == 300)
        await only.kill(power=False)
        await only.stop()

    with asyncio.Runner(loop_factory=managers.Stopwatch) as runner:
        runner.run(main())


def test_a_peer_that_hears_and_does_not_answer_does_not_hold_the_log_for_ever() -> None:
    async def main() -> None:
        network = memory_transport.MemoryNetwork()
        async with raft_memory.running(network, IMPATIENT) as world:
            manager, leader = raft_memory.leader(world)
            assert manager.core is not None
            journal = manager.core.journal
            away = next(other for other in world.managers.values() if other is not manager)
            await away.kill(power=False)
            for number in range(60):
                await put(leader, number)
            network.cut(away.name, manager.name)
            await away.start()
            transfers = manager.core._transfers
            await virtual_time.until(lambda: transfers.floor() is not None)
            pinned = transfers.floor()
            assert pinned is not None
            loop = asyncio.get_running_loop()
            began = loop.time()
            longest = 0
            while loop.time() < began + 10 * IMPATIENT.transfer_stalled_s:
                number += 1
                await put(leader, number)
                longest = max(longest, journal.last_index - journal.first_index)
                if loop.time() < began + IMPATIENT.transfer_stalled_s / 2:
                    assert journal.first_index <= pinned, "what comes after the snapshot is needed"
                await asyncio.sleep(0.05)
            # What is written while one transfer is given up, and what is kept anyway.
            assert journal.first_index > pinned
            assert longest < 1.5 * IMPATIENT.transfer_stalled_s / 0.05 + 2 * IMPATIENT.snapshot_entries
            assert number > 3 * longest, "or this shows nothing"
            network.heal()  # and it gets what it lacks soon after it can answer again
            await virtual_time.until(
                lambda: away.store.index >= leader.applied_index, within_s=2 * IMPATIENT.transfer_stalled_s + 1
            )

    virtual_time.run(main)


@pytest.mark.parametrize(("acknowledged", "given_up"), [(1, 11.0), (3, 101.0)])
def test_a_transfer_is_given_up_when_it_does_not_advance_and_begins_anew(
    tmp_path: pathlib.Path, acknowledged: int, given_up: float
) -> None:
    """A follower that has everything gets longer: it stores and decodes. One that starts over does not advance."""
    target = disk.OsDisk(tmp_path)
    first, second = (
        snapshot.write(
            target,
            sealing.Plain(),
            snapshot.Snapshot(index=index, term=1, members={}, members_index=1),
            [bytes(config.SNAPSHOT_BLOCK_BYTES)] * 3,
        )
        for index in (5, 9)
    )
    running = transfers.Transfers(
        lambda taken: snapshot.BlockReader(target, sealing.Plain(), taken), patience_s=1, stalled_s=10, storing_s=100
    )
    assert running.next_block("f", first, 0.0) is not None
    assert running.next_block("f", first, 0.0) is not None
    assert running.next_block("f", first, 0.0) is not None
    running.acknowledge("f", 5, acknowledged, 1.0)
    running.acknowledge("f", 5, 0 if acknowledged < 3 else 3, 5.0)
    running.expire(given_up)
    assert running.floor() == 5
    running.expire(given_up + 0.1)
    assert running.floor() is None
    assert running.next_block("f", second, given_up + 10) is None, "not at once"
    running.acknowledge("f", 5, 3, given_up + 10)  # late, and of no use
    part = running.next_block("f", second, given_up + 10.2)
    assert part is not None
    assert part[0].index == running.floor() == 9
    running.clear()
