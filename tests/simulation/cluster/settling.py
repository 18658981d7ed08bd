"""The end of a simulation: everything is mended, and every wish must come true within a bound."""

import asyncio
import random

from manager import loops
from manager.orchestrator import tasks
from skep import pb
from tests.simulation import shadow
from tests.simulation.cluster import clients, ledger, linearizable, machine, wishes

SETTLE_S = 150.0  # until every wish has come true
QUIET_S = 1.0  # nothing changes any more


async def last_wishes(site: machine.Site, users: clients.Clients, rng: random.Random) -> None:
    """Every service gets a specification that can come true, and at least one node may take tasks.

    Half of those that have one already are left alone: an update would replace whatever was forgotten.
    """
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    for name in users.wishes.names:
        while True:
            shadow.require(asyncio.get_running_loop().time() < deadline, f"{name} cannot be changed: {state(site)}")
            found = any(service.name == name for service in site.ledger.rows("service"))
            seen = await users.read(name)
            if seen is None and not found:
                break
            if seen is not None and wishes.comes_true(name, seen.spec) and _calm(site, name) and rng.random() < 0.5:
                break
            if seen is not None and await users.change(name, seen, users.wishes.spec(name, good=True)):
                break
            await asyncio.sleep(0.1)
    there = [
        name for name, each in site.machines.items() if not each.lost and site.ledger.get("node", name) is not None
    ]
    spared = rng.randrange(len(there))
    for number, name in enumerate(there):
        while number == spared or rng.random() < 0.5:
            shadow.require(asyncio.get_running_loop().time() < deadline, f"{name} cannot be changed: {state(site)}")
            seen = await users.read(name, kind="nodes")
            if seen is not None and await users.change(
                name, seen, {**seen.spec, "Availability": "active"}, kind="nodes"
            ):
                break
            await asyncio.sleep(0.1)


def _calm(site: machine.Site, name: str) -> bool:
    """Whether no update of the service is under way, or was broken off."""
    states = {service.update_status.state for service in site.ledger.rows("service") if service.name == name}
    return states <= {
        pb.UPDATE_STATE_UNKNOWN, pb.UPDATE_STATE_COMPLETED, pb.UPDATE_STATE_ROLLBACK_COMPLETED,
    }  # fmt: skip


async def settle(site: machine.Site) -> None:
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
            loop.time() < deadline, f"{why or 'it never rests'}, {SETTLE_S} s after the last fault: {state(site)}"
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
        if node.status.state != pb.NODE_STATE_READY and not site.machines[node.id].lost:
            return f"node {node.id} is {pb.NodeState.Name(node.status.state)}"
    runs = site.running.tasks()
    for service in site.ledger.rows("service"):
        if why := _service_unfulfilled(site, service, runs):
            return f"service {service.name}: {why}"
    wished = {
        task.id: task.node_id
        for task in site.ledger.rows("task")
        if task.status.state == pb.TASK_STATE_RUNNING and not site.machines[task.node_id].lost
    }
    if wished != runs:
        return f"engines run {sorted(runs.items())}, on record are {sorted(wished.items())}"
    return _restless(leader)


def _service_unfulfilled(site: machine.Site, service: pb.Service, runs: dict[str, str]) -> str:
    spec = site.ledger.get("revision", service.revision_id).spec
    if service.update_status.state in {pb.UPDATE_STATE_UPDATING, pb.UPDATE_STATE_ROLLBACK_STARTED}:
        return "its update goes on"
    own = [task for task in site.ledger.rows("task") if task.service_id == service.id]
    iteration = service.job_status.job_iteration.index
    if spec.mode.HasField("replicated_job"):
        # By slot: what was on a node that was lost, and replaced, may have come to its end all the same.
        done = {task.slot for task in own if task.job_iteration.index == iteration and _completed(task)}
        return "" if len(done) == spec.mode.replicated_job.total_completions else f"{len(done)} completions"
    if spec.mode.HasField("global_job"):
        return _none_on(site, [task for task in own if task.job_iteration.index == iteration and _completed(task)])
    alive = [task for task in own if task.id in runs]
    for task in alive:
        ran = site.ledger.get("revision", task.revision_id).spec.task
        node = site.ledger.get("node", task.node_id)
        if node is None:
            return f"task {task.id} runs on a node that was removed"
        paused = node.spec.availability == pb.NODE_AVAILABILITY_PAUSE
        passed_by = spec.mode.HasField("global") and paused  # by updates, until the node is active again
        if ran != spec.task and not passed_by:
            return f"task {task.id} runs an old specification"
        if tasks.invalid(node):
            return f"task {task.id} runs on a drained node"
    if spec.mode.HasField("global"):
        return _none_on(site, alive)
    slots = sorted(task.slot for task in alive)
    wanted = spec.mode.replicated.replicas
    return "" if len(slots) == len(set(slots)) == wanted else f"slots {slots} run, {wanted} are wished"


def _completed(task: pb.Task) -> bool:
    return task.status.state == pb.TASK_STATE_COMPLETE


def _none_on(site: machine.Site, found: list[pb.Task]) -> str:
    """On which nodes that take tasks there is none of these."""
    active = [
        node.id
        for node in site.ledger.rows("node")
        if node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE and not site.machines[node.id].lost
    ]
    missing = [name for name in active if name not in [task.node_id for task in found]]
    return f"none on {missing}" if missing else ""


def _restless(leader: machine.Machine) -> str:
    """Which decider would change something; every plan is empty on its own result."""
    assert leader.part is not None
    view = leader.part.store.view()
    for decider in loops.default_deciders():
        result = decider.decide(view, leader.clock.now(), random.Random(0), None)
        if result.ops:
            return f"{decider.name} wants {len(result.ops)} changes: {'; '.join(result.reasons)}"
    return ""


def check_histories(site: machine.Site, users: clients.Clients) -> None:
    """What users saw of each object can be explained."""
    for key, history in users.histories.items():
        founded = None
        if key in site.machines:
            joined_at = site.machines[key].joined_at
            if joined_at is None:
                founded = linearizable.Held(machine.FOUNDED)
            else:
                joining = linearizable.Event("create", machine.FOUNDED)
                history.append(linearizable.Operation(joined_at, linearizable.UNKNOWN, joining))
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


def state(site: machine.Site) -> str:
    """The cluster in a line, for whoever has to find out."""
    parts: list[str] = []
    for name, each in site.machines.items():
        if each.part is None:
            parts.append(f"{name} {'up' if each.alive else 'down'}")
        else:
            raft = each.part.raft
            parts.append(f"{name} term {raft.term} leader {raft.leader_id or '-'} applied {raft.applied_index}")
    parts += [
        f"{task.service_name}.{task.slot} {task.id[:6]} on {task.node_id or '-'} {ledger.states(task)}"
        for task in site.ledger.rows("task")
        if task.status.state <= pb.TASK_STATE_RUNNING or task.desired_state <= pb.TASK_STATE_RUNNING
    ]
    return "; ".join(parts)
