"""One simulated cluster from beginning to end: a pure function of its seed (and of PYTHONHASHSEED)."""

import asyncio
import dataclasses
import random
from unittest import mock

from manager import loops
from manager.ca import authority
from manager.orchestrator import tasks
from manager.raft import config
from manager.store import ops
from skep import pb, stamps
from tests import virtual_time
from tests.simulation import alarm, managers, memory_disk, shadow
from tests.simulation.cluster import clients, faults, ledger, linearizable, machine, network, process, running

FAULTS_S = 40.0  # virtual
SETTLE_S = 150.0  # until every wish has come true
CLIENTS = 3
QUIET_S = 1.0  # nothing changes any more


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
    loop = managers.Stopwatch()
    loop.set_exception_handler(_unretrieved)
    loop.set_task_factory(process.create_task)  # type: ignore[arg-type]  # stubs ask for more than is ever passed
    with alarm.armed(), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(_simulate(seed, loop, faults_s))


async def _simulate(seed: int, loop: managers.Stopwatch, faults_s: float) -> Report:
    rng = random.Random(f"{seed} cluster")
    site = _build(seed, rng)
    harm = faults.Faults(site)
    users = clients.Clients(site, random.Random(f"{seed} clients"))
    with mock.patch.object(loops, "default_deciders", machine.watched_deciders(site.ledger)):
        for each in site.machines.values():
            each.start()
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
                await _last_wishes(site, users, rng)
                await _settle(site)
                settled_s = loop.time() - mended_at
                watching.cancel()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from group_error
        finally:
            loop.after_turn = lambda: None
        _check_histories(site, users)
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


def _unretrieved(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """A task failed and nobody looked. That machines die in the middle of a write is what happens here."""
    del loop
    error = context.get("exception")
    if not isinstance(error, memory_disk.Crashed):
        alarm.ring(f"{context.get('message')}: {error!r}")


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
        checking=rng.random() < 0.2,
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
        wish = pb.NodeSpec(role=role, availability=pb.NODE_AVAILABILITY_ACTIVE, labels={"v": "founded"})
        made.append(ops.create(pb.Node(id=name, spec=wish, role=role)))
    founder = site.machines[site.founder]
    await virtual_time.until(lambda: founder.part is not None and founder.part.raft.is_leader)
    assert founder.part is not None
    raft = founder.part.raft
    await raft.commit(made)
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


# ------------------------------------------------------------------ the end


async def _last_wishes(site: machine.Site, users: clients.Clients, rng: random.Random) -> None:
    """Every service gets a specification that can come true, and at least one node may take tasks."""
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    for name in clients.SERVICES:
        while True:
            shadow.require(asyncio.get_running_loop().time() < deadline, f"{name} cannot be changed: {_state(site)}")
            found = any(service.name == name for service in site.ledger.rows("service"))
            seen = await users.read(name)
            if (seen is None and not found) or (
                seen is not None and await users.change(name, seen, users.spec(name, good=True))
            ):
                break
            await asyncio.sleep(0.1)
    spared = rng.randrange(len(site.machines))
    for number, name in enumerate(site.machines):
        while number == spared or rng.random() < 0.5:
            shadow.require(asyncio.get_running_loop().time() < deadline, f"{name} cannot be changed: {_state(site)}")
            seen = await users.read(name, kind="nodes")
            if seen is not None and await users.change(
                name, seen, {**seen.spec, "Availability": "active"}, kind="nodes"
            ):
                break
            await asyncio.sleep(0.1)


async def _settle(site: machine.Site) -> None:
    """Within a bound every wish has come true, all managers agree, and nobody wants to change anything."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    quiet_at, quiet_since = site.ledger.index, loop.time()
    why = ""
    while True:
        await asyncio.sleep(0.2)
        if site.ledger.index != quiet_at:
            quiet_at, quiet_since = site.ledger.index, loop.time()
        why = _unfulfilled(site)
        if not why and loop.time() - quiet_since >= QUIET_S:
            return
        shadow.require(
            loop.time() < deadline, f"{why or 'it never rests'}, {SETTLE_S} s after the last fault: {_state(site)}"
        )


def _unfulfilled(site: machine.Site) -> str:
    """The first wish that has not come true, in words; empty when all have."""
    leader = None
    for each in site.machines.values():
        if each.manages and (each.part is None or each.part.raft.applied_index < site.ledger.index):
            return f"{each.name} is behind"
        if each.part is not None and each.part.raft.is_leader:
            leader = each
    if leader is None or leader.part is None:
        return "there is no leader"
    for node in site.ledger.rows("node"):
        if node.status.state != pb.NODE_STATE_READY:
            return f"node {node.id} is {pb.NodeState.Name(node.status.state)}"
    runs = site.running.tasks()
    for service in site.ledger.rows("service"):
        if why := _service_unfulfilled(site, service, runs):
            return f"service {service.name}: {why}"
    wished = {task.id: task.node_id for task in site.ledger.rows("task") if task.status.state == pb.TASK_STATE_RUNNING}
    if wished != runs:
        return f"engines run {sorted(runs.items())}, on record are {sorted(wished.items())}"
    return _restless(leader)


def _service_unfulfilled(site: machine.Site, service: pb.Service, runs: dict[str, str]) -> str:
    spec = site.ledger.get("revision", service.revision_id).spec
    if service.update_status.state in {pb.UPDATE_STATE_UPDATING, pb.UPDATE_STATE_ROLLBACK_STARTED}:
        return "its update goes on"
    own = [task for task in site.ledger.rows("task") if task.service_id == service.id]
    if spec.mode.HasField("replicated_job"):
        iteration = service.job_status.job_iteration.index
        states = [task.status.state for task in own if task.job_iteration.index == iteration]
        done = states.count(pb.TASK_STATE_COMPLETE)
        return "" if done == spec.mode.replicated_job.total_completions else f"{done} completions"
    alive = [task for task in own if task.id in runs]
    for task in alive:
        ran = site.ledger.get("revision", task.revision_id).spec.task
        paused = site.ledger.get("node", task.node_id).spec.availability == pb.NODE_AVAILABILITY_PAUSE
        passed_by = spec.mode.HasField("global") and paused  # by updates, until the node is active again
        if ran != spec.task and not passed_by:
            return f"task {task.id} runs an old specification"
        if tasks.invalid(site.ledger.get("node", task.node_id)):
            return f"task {task.id} runs on a drained node"
    if spec.mode.HasField("global"):
        active = [node.id for node in site.ledger.rows("node") if node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE]
        missing = [name for name in active if name not in [task.node_id for task in alive]]
        return f"none on {missing}" if missing else ""
    slots = sorted(task.slot for task in alive)
    wanted = spec.mode.replicated.replicas
    return "" if len(slots) == len(set(slots)) == wanted else f"slots {slots} run, {wanted} are wished"


def _restless(leader: machine.Machine) -> str:
    """Which decider would change something; every plan is empty on its own result."""
    assert leader.part is not None
    view = leader.part.store.view()
    for decider in loops.default_deciders():
        result = decider.decide(view, leader.clock.now(), random.Random(0), None)
        if result.ops:
            return f"{decider.name} wants {len(result.ops)} changes: {'; '.join(result.reasons)}"
    return ""


def _check_histories(site: machine.Site, users: clients.Clients) -> None:
    for key, history in users.histories.items():
        founded = linearizable.Held("founded") if key in site.machines else None
        explained = linearizable.check(history, founded, linearizable.register)
        if explained is not None:
            rest = [each for each in sorted(history, key=lambda each: each.called_at) if each not in explained]
            raise shadow.Violation(
                f"the history of {key} is not linearizable. "
                f"Explained: {_words(explained[-6:])}. Then: {_words(rest[:6])}"
            )


def _words(history: list[linearizable.Operation[linearizable.Event]]) -> str:
    return "; ".join(
        f"{each.called_at:.3f}-{each.answered_at:.3f} {each.event.kind} {each.event.value} {each.event.expected or ''}"
        for each in history
    )


def _state(site: machine.Site) -> str:
    parts: list[str] = []
    for name, each in site.machines.items():
        if each.part is None:
            parts.append(f"{name} {'up' if each.alive else 'down'}")
        else:
            raft = each.part.raft
            parts.append(f"{name} term {raft.term} leader {raft.leader_id or '-'} applied {raft.applied_index}")
    parts += [
        f"{task.service_name}.{task.slot} {task.id[:6]} on {task.node_id or '-'} {ledger._states(task)}"
        for task in site.ledger.rows("task")
        if task.status.state <= pb.TASK_STATE_RUNNING or task.desired_state <= pb.TASK_STATE_RUNNING
    ]
    return "; ".join(parts)
