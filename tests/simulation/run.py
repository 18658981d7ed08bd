"""One simulation from beginning to end: a pure function of its seed (and of PYTHONHASHSEED)."""

import asyncio
import dataclasses
import random

from manager.raft import config, memory_transport
from skep import pb
from tests.simulation import alarm, faults, managers, shadow, workload

FAULTS_S = 20.0  # virtual
SETTLE_S = 20.0
CLIENTS = 4
TIMES = config.RaftConfig(snapshot_entries=60, keep_entries=10, catch_up_timeout_s=5.0, change_timeout_s=3.0)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run amounted to."""

    seed: int
    trace: str  # digest over everything written, sent and applied
    virtual_s: float
    acknowledged: int
    unknown: int
    reads: int
    terms: int
    faults: dict[str, int]

    def summary(self) -> str:
        """See kinds.Report."""
        return (
            f"{self.acknowledged} acknowledged, {self.unknown} unknown, {self.reads} reads, {self.terms} terms, "
            f"{sum(self.faults.values())} faults"
        )


def simulate(seed: int, *, faults_s: float = FAULTS_S) -> Report:
    """Runs one seed. Raises Violation when an invariant does not hold."""
    loop = managers.Stopwatch()
    with alarm.armed(), alarm.listening(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(_simulate(seed, loop, faults_s))


async def _simulate(seed: int, loop: managers.Stopwatch, faults_s: float) -> Report:
    rng = random.Random(f"{seed} world")
    checker = shadow.Checker()
    network = memory_transport.MemoryNetwork(watch=checker.sent)
    world = managers.World(seed, rng, network, checker, TIMES)
    harm = faults.Faults(world)
    network.delay_s = harm.delay_s
    for _ in range(rng.choice((1, 3, 3, 3, 5))):
        world.new_manager()
    members = {name: manager.addr for name, manager in world.managers.items()}
    for manager in list(world.managers.values()):
        await manager.start(bootstrap=members)
    loop.after_turn = world.look
    clients = workload.Clients(world)
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(harm.watch_failures())
            running = [group.create_task(clients.run(number)) for number in range(CLIENTS)]
            breaking = group.create_task(harm.run())
            await asyncio.sleep(faults_s)
            harm.running = False
            await breaking
            await harm.mend()
            await _settle(world, clients)
            clients.running = False
            await asyncio.gather(*running)
            await _agree(world)
            watcher.cancel()
    except BaseExceptionGroup as group_error:
        first = group_error.exceptions[0]
        raise first from group_error
    finally:
        loop.let_go()
    leader = world.leader()
    members = {} if leader is None else leader.members()
    for name in members:
        clients.check_end(world.managers[name])
    _check_equal(world, members)
    for manager in world.managers.values():
        await manager.kill(power=False)
        await manager.stop()
    return Report(
        seed=seed, trace=checker.trace.hexdigest()[:16], virtual_s=loop.time(), acknowledged=len(clients.acknowledged),
        unknown=len(clients.unknown), reads=clients.reads, terms=len(checker.leaders), faults=harm.counts,
    )  # fmt: skip


async def _settle(world: managers.World, clients: workload.Clients) -> None:
    """Within a bound after the last fault the cluster takes writes again."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    goal = len(clients.acknowledged) + 5
    while len(clients.acknowledged) < goal:
        shadow.require(loop.time() < deadline, f"no writes accepted {SETTLE_S} s after the last fault: {_state(world)}")
        await asyncio.sleep(0.05)


async def _agree(world: managers.World) -> None:
    """Within a bound all members have applied the same, and the removed know that they are."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    while not _agreed(world):
        shadow.require(loop.time() < deadline, f"the managers do not agree: {_state(world)}")
        await asyncio.sleep(0.05)


def _agreed(world: managers.World) -> bool:
    leader = world.leader()
    if leader is None:
        return False
    members = leader.members()
    for name, manager in world.managers.items():
        if manager.core is None:
            return False
        if name in members and manager.core.applied_index != leader.applied_index:
            return False
        # One that was on its way in and never let in has nothing to be told, nor one that was let in and out again
        # before it heard of it: in life its daemon asks to be let in until it is told that it is (ManagerKeeper).
        knows = name in world.checker.members and manager.core.journal.member
        if name not in members and knows and not manager.core.removed:
            return False
    return True


def _check_equal(world: managers.World, members: dict[str, str]) -> None:
    contents = {name: _content(world.managers[name]) for name in members}
    shadow.require(len(set(contents.values())) == 1, "the stores differ")


def _content(manager: managers.Manager) -> bytes:
    records = sorted(
        (record for record in manager.store.freeze().records() if record.WhichOneof("record") == "object"),
        key=_record_key,
    )
    return b"".join(record.SerializeToString(deterministic=True) for record in records)


def _record_key(record: pb.SnapshotRecord) -> str:
    return record.object.task.id


def _state(world: managers.World) -> str:
    parts: list[str] = []
    for name, manager in world.managers.items():
        core = manager.core
        if core is None:
            parts.append(f"{name} down")
        else:
            parts.append(
                f"{name} term {core.term} leader {core.leader_id or '-'} last {core.journal.last_index} "
                f"commit {core.commit_index} applied {core.applied_index} members {','.join(core.members)}"
                f"{' removed' if core.removed else ''} up {','.join(sorted(core.outbox.up))}"
            )
    return "; ".join(parts)
