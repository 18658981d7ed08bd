"""Between core and disk: one sync a batch, outside the event loop; and how much may wait for an answer."""

import asyncio
import pathlib
import random
import threading

import pytest
from typing_extensions import override

from manager.raft import config, disk, log, memory_transport, node, offload
from manager.store import store
from skep import errors, ids
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory
from tests.simulation import managers, memory_disk, shadow

TIMES = config.RaftConfig()
SYNC_S = 0.5
PATIENCE_S = 20.0


# ---------------------------------------------------------------- one sync a batch


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many syncs each write of a log took, from now on. Batches that begin a log or trim it take more."""
    taken: list[int] = []
    write = managers.WatchedLog.write

    def counted(self: managers.WatchedLog, batch: object) -> None:
        assert isinstance(self._disk, memory_disk.Handle)
        before = self._disk._platter.syncs
        write(self, batch)  # type: ignore[arg-type]
        taken.append(self._disk._platter.syncs - before)

    monkeypatch.setattr(managers.WatchedLog, "write", counted)
    return taken


def test_every_batch_is_synced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), TIMES) as world:
            manager, leader = raft_memory.leader(world)
            await leader.commit([raft_cluster.create("first")])
            await asyncio.sleep(1)
            syncs = counting(monkeypatch)
            before = {each.name: each.disk.syncs for each in world.managers.values()}
            for number in range(50):
                await leader.commit([raft_cluster.create(f"t{number}")])
            assert manager.disk.syncs - before[manager.name] == 50, "one after the other: one each"
            await asyncio.sleep(1)
            assert set(syncs) == {1}
            assert len(syncs) == sum(each.disk.syncs - before[each.name] for each in world.managers.values())
            syncs.clear()
            before_many = manager.disk.syncs
            await asyncio.gather(*(leader.commit([raft_cluster.create(f"u{number}")]) for number in range(500)))
            assert manager.disk.syncs - before_many < 5, "those that wait at the same moment share an entry and a sync"
            assert set(syncs) == {1}

    virtual_time.run(main)


# ---------------------------------------------------------------- outside the event loop


class HeldDisk(disk.OsDisk):
    """A disk on which a sync takes as long as the test wants."""

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__(directory)
        self.hold = False
        self.entered = threading.Event()
        self.release = threading.Event()

    @override
    def append(self, name: str) -> "_HeldFile":  # type: ignore[override]
        return _HeldFile(super().append(name), self)


class _HeldFile:
    def __init__(self, inner: disk.File, owner: HeldDisk) -> None:
        self._inner = inner
        self._owner = owner
        self.write = inner.write
        self.close = inner.close

    def sync(self) -> None:
        if self._owner.hold:
            self._owner.entered.set()
            # Only the event loop lets it go on: were the loop waiting for us, this would end as an I/O error.
            if not self._owner.release.wait(PATIENCE_S):
                raise OSError("the event loop stood still while the disk synced")
        self._inner.sync()


async def slow_sync(tmp_path: pathlib.Path) -> None:
    loop = asyncio.get_running_loop()
    held = HeldDisk(tmp_path / "raft")
    network = memory_transport.MemoryNetwork()
    only = node.RaftNode(
        node_id="a", store=store.Store(), log=log.DurableLog(held),
        transport=memory_transport.MemoryTransport(node_id="a", network=network), clock=virtual_time.LoopClock(),
        rng=ids.seeded_rng(1), config=raft_cluster.FAST, bootstrap={"a": "a:1"}, worker=offload.ThreadOffload(),
    )  # fmt: skip
    await only.start()
    try:
        await raft_cluster.eventually(lambda: only.is_leader)
        await only.commit([raft_cluster.create("before")])
        held.hold = True
        writing = loop.create_task(only.commit([raft_cluster.create("slow")]))
        await raft_cluster.eventually(held.entered.is_set)
        began, turns = loop.time(), 0
        while loop.time() < began + SYNC_S:
            await only.barrier()  # a round, with everything in it, beside the sync
            turns += 1
            await asyncio.sleep(0.001)
        assert turns > 5
        assert not writing.done(), "nothing is acknowledged that is not on the disk"
        held.hold = False
        held.release.set()
        await writing
        assert not only.failure.done()
    finally:
        held.release.set()
        await only.abort()


def test_a_slow_sync_does_not_stop_the_event_loop(tmp_path: pathlib.Path) -> None:
    asyncio.run(slow_sync(tmp_path))


# ---------------------------------------------------------------- readers


async def many_reads(cut: bool) -> tuple[int, list[BaseException | None]]:
    """How many of 30,000 reads were turned away at once, and how the others ended; one round after the other."""
    world = managers.World(1, random.Random(1), memory_transport.MemoryNetwork(), shadow.Checker(), TIMES)
    members = {each.name: each.addr for each in (world.new_manager() for _ in range(3))}
    for each in world.managers.values():
        await each.start(bootstrap=members)
    await virtual_time.until(lambda: world.leader() is not None)
    manager, leader = raft_memory.leader(world)
    driver = leader._driver
    assert driver is not None
    if cut:
        for name in members:
            world.network.cut(name, manager.name)
    refused, waiting = 0, []
    for _ in range(6):
        for _ in range(config.READERS_MAX // 4):
            try:
                waiting.append(driver.read())
            except errors.Unavailable:
                refused += 1
        await asyncio.sleep(0.0001)  # a round, and no time for an answer
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    if not cut:
        await leader.barrier()  # and there is room again
    for each in world.managers.values():
        await each.kill(power=False)
        await each.stop()
    return refused, ends


@pytest.mark.parametrize("cut", [False, True], ids=["with a quorum", "without"])
def test_no_more_readers_wait_than_the_limit_also_over_several_rounds(cut: bool) -> None:
    async def main() -> None:
        refused, ends = await many_reads(cut)
        assert refused == config.READERS_MAX // 2
        assert len(ends) == config.READERS_MAX
        wanted = errors.Unavailable if cut else type(None)
        assert all(isinstance(end, wanted) for end in ends)

    virtual_time.run(main)
