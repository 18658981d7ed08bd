"""One simulated cluster from beginning to end: a pure function of its seed (and of PYTHONHASHSEED)."""

import asyncio
import dataclasses
import random
from unittest import mock

from manager import loops
from manager.ca import authority
from manager.raft import config
from manager.store import ops
from skep import pb, stamps
from tests import virtual_time
from tests.simulation import alarm, process, shadow
from tests.simulation.cluster import (
    availability,
    clients,
    faults,
    ledger,
    machine,
    network,
    running,
    settling,
    timing,
)

FAULTS_S = 40.0  # virtual
CLIENTS = 3
CALM = 0.25  # of all seeds
DRIFT_MAX = 0.04  # of a clock, both ways: two differ by less than policies.CLOCK_DRIFT allows for


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run amounted to."""

    seed: int
    trace: str  # digest over everything written, sent, applied and answered
    virtual_s: float
    operations: int
    entries: int
    refused: int
    starts: int
    terms: int
    machines: str
    answers: dict[int, int]
    faults: dict[str, int]
    written_off: int
    settled_s: float

    def summary(self) -> str:
        """See kinds.Report."""
        return (
            f"{self.machines} machines, {self.operations} operations, {self.entries} entries, {self.starts} starts, "
            f"{self.terms} terms, {sum(self.faults.values())} faults, settled after {self.settled_s:.1f} s"
        )


def simulate(seed: int, *, faults_s: float = FAULTS_S) -> Report:
    """Runs one seed. Raises Violation when an invariant does not hold."""
    loop = timing.DriftingLoop()
    loop.set_task_factory(process.create_task)  # type: ignore[arg-type]  # stubs ask for more than is ever passed
    with alarm.armed(), alarm.listening(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(_simulate(seed, loop, faults_s))


async def _simulate(seed: int, loop: timing.DriftingLoop, faults_s: float) -> Report:
    rng = random.Random(f"{seed} cluster")
    site = _build(seed, rng)
    harm = faults.Faults(site)
    users = clients.Clients(site, random.Random(f"{seed} clients"))
    site.ledger.fell_back = lambda name, revision_id: users.fell_back(name, site.version_of(revision_id))
    if site.calm:
        watcher = availability.Availability(site.ledger, site.running)
        site.ledger.changed = site.running.changed = watcher.look
    with mock.patch.object(loops, "default_deciders", machine.watched_deciders(site.ledger)):
        for name in site.managers:
            site.machines[name].start()
        loop.after_turn = lambda: _look(site)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(harm.watch_failures())
                await _found(site, rng)
                asking = [group.create_task(users.run()) for _ in range(CLIENTS)]
                breaking = group.create_task(harm.run())
                await asyncio.sleep(faults_s)
                harm.running = users.running = False
                await breaking
                await harm.mend()
                await asyncio.gather(*asking)
                mended_at = loop.time()
                await settling.last_wishes(site, users, rng)
                await settling.settle(site)
                settled_s = loop.time() - mended_at
                watching.cancel()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from group_error
        finally:
            loop.let_go()
        settling.check_histories(site, users)
        for each in site.machines.values():
            await each.kill(power=False)
    site.checker.trace.update(repr(sorted(site.ledger.objects)).encode())
    return Report(
        seed=seed, trace=site.checker.trace.hexdigest()[:16], virtual_s=loop.time(),
        operations=sum(len(history) for history in users.histories.values()), entries=site.ledger.entries,
        refused=site.ledger.refused, starts=site.running.starts, terms=len(site.checker.leaders),
        machines=f"{len(site.managers)}+{len(site.machines) - len(site.managers)}", answers=users.answers,
        faults=harm.counts, written_off=len(site.ledger.written_off), settled_s=settled_s,
    )  # fmt: skip


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _build(seed: int, rng: random.Random) -> machine.Site:
    checker = shadow.Checker()
    kept = ledger.Ledger()
    manage = rng.choice((1, 3, 3, 3, 3, 5))
    names = [f"n{number}" for number in range(manage + rng.randrange(0, 4))]
    heartbeat_s = rng.choice((0.15, 0.3, 0.5))
    site = machine.Site(
        seed=seed,
        times=config.RaftConfig(
            heartbeat_s=heartbeat_s, election_min_s=5 * heartbeat_s, election_max_s=10 * heartbeat_s,
            snapshot_entries=rng.choice((40, 150, 10_000)), keep_entries=10, change_timeout_s=3.0,
        ),
        network=network.Network(random.Random(f"{seed} network"), watch=checker.sent),
        ledger=kept,
        checker=checker,
        running=running.Running(kept),
        managers={name: f"{name}:2377" for name in names[:manage]},
        checking=rng.random() < 0.1,
        calm=rng.random() < CALM,
        drift=rng.choice((0.0, 0.0, 0.01, DRIFT_MAX)),
    )  # fmt: skip
    for number, name in enumerate(names):
        machine.Machine(name, site, manages=number < manage)
    return site


async def _found(site: machine.Site, rng: random.Random) -> None:
    """The cluster object and the nodes, as init and join make them."""
    spec = authority.default_spec()
    spec.dispatcher.heartbeat_period = stamps.to_nanos(rng.choice((0.5, 1.0, 3.0)))
    made = [ops.create(pb.Cluster(id=machine.CLUSTER_ID, spec=spec))]
    for name in site.machines:
        role = pb.NODE_ROLE_MANAGER if name in site.managers else pb.NODE_ROLE_WORKER
        made.append(machine.node_of(name, role))
    founder = site.machines[site.founder]
    await virtual_time.until(lambda: founder.part is not None and founder.part.raft.is_leader)
    assert founder.part is not None
    raft = founder.part.raft
    await raft.commit(made)
    for each in site.machines.values():
        if not each.manages:
            each.start()
    for name, addr in site.managers.items():
        if name != site.founder:
            await raft.add_member(name, addr)


def _look(site: machine.Site) -> None:
    """After every turn of the loop."""
    alarm.check()
    for each in site.machines.values():
        part = each.part
        if part is not None and part.raft._core is not None:
            site.checker.look_at(part.raft._core, part.seen)
