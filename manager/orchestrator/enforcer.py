"""The constraint enforcer: a task whose node does not suit it any more is evicted, and its mode stops and replaces it.

What is true of the task says its agent alone: it runs until it has stopped, and is on record as rejected then
(`in_swarm_words`), so that nothing starts in its place before.

It acts on what nodes become (labels, role, address, resources). What a service changes about itself is the updater's
business, which goes step by step; so it leaves alone every task whose constraints are not those of its service now.
"""

from collections.abc import Iterable

from manager import plan
from manager.orchestrator import healing, tasks
from manager.scheduler import constraints, needs
from manager.store import ops, views, watching
from skep import ids, pb

NOT_MET = "assigned node no longer meets constraints"
NO_ROOM = "assigned node no longer has the resources that are reserved"


class Enforcer:
    """Decider: nodes -> evicted tasks. Keys are node IDs."""

    name = "enforcer"
    kinds = frozenset({"node", "service", "task"})

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        old, new = change.old, change.new
        if isinstance(new, pb.Node):
            return (new.id,) if not isinstance(old, pb.Node) or _matters(old, new) else ()
        if isinstance(old, pb.Task) and isinstance(new, pb.Task) and new.status.state == pb.TASK_STATE_ASSIGNED:
            # The scheduler may have looked at the node before it changed.
            node = state.nodes.get(new.node_id)
            late = node is not None and node.version.index > old.version.index
            return (new.node_id,) if late and old.status.state < pb.TASK_STATE_ASSIGNED else ()
        if isinstance(old, pb.Service) and isinstance(new, pb.Service) and old.revision_id != new.revision_id:
            return dict.fromkeys(task.node_id for task in state.tasks.where("service", new.id) if task.node_id)
        return ()

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        result = plan.Plan()
        known = _Needs(state)
        keys = [node.id for node in state.nodes] if dirty is None else sorted(dirty)
        for node_id in keys:
            node = state.nodes.get(node_id)
            if node is not None and node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE:
                _enforce(state, result, node, known)
        return result


class _Needs:
    """What tasks ask of a node, read once for each revision; None where it is nothing, or none of our business."""

    def __init__(self, state: views.View) -> None:
        self._state = state
        self._known: dict[str, needs.Needs | None] = {}

    def of(self, task: pb.Task) -> needs.Needs | None:
        if task.revision_id not in self._known:
            self._known[task.revision_id] = self._read(task)
        return self._known[task.revision_id]

    def _read(self, task: pb.Task) -> needs.Needs | None:
        revision = self._state.revisions.get(task.revision_id)
        service = self._state.services.get(task.service_id)
        if revision is None or service is None:
            return None
        current = self._state.revisions.get(service.revision_id)
        need = needs.of(revision.spec)
        if current is None or not (need.wanted or need.nano_cpus or need.memory_bytes or need.generic):
            return None
        if current.spec.task.placement.constraints != revision.spec.task.placement.constraints:
            return needs.Needs(nano_cpus=need.nano_cpus, memory_bytes=need.memory_bytes, generic=need.generic)
        return need


def _enforce(state: views.View, result: plan.Plan, node: pb.Node, known: _Needs) -> None:
    """Walks the node's tasks, oldest first, and evicts those that it does not suit or has no room for."""
    told = node.HasField("description") and node.description.HasField("resources")
    cpus = memory = 0
    generic: dict[str, int] = {}
    room = needs.counted(node.description.resources)
    for task in state.tasks.where("node", node.id):
        if not (pb.TASK_STATE_ASSIGNED <= task.status.state < pb.TASK_STATE_COMPLETE and tasks.runnable(task)):
            continue
        if task.evicted:
            continue
        need = known.of(task)
        if need is None:
            continue
        if not constraints.matches(need.wanted, node):
            _evict(result, task, NOT_MET)
            continue
        resources = node.description.resources
        over = told and (
            (need.nano_cpus and cpus + need.nano_cpus > resources.nano_cpus)
            or (need.memory_bytes and memory + need.memory_bytes > resources.memory_bytes)
            or any(generic.get(kind, 0) + count > room.get(kind, 0) for kind, count in need.generic)
        )
        if over:
            _evict(result, task, NO_ROOM)
            continue
        cpus += need.nano_cpus
        memory += need.memory_bytes
        for kind, count in need.generic:
            generic[kind] = generic.get(kind, 0) + count


def in_swarm_words(task: pb.Task) -> None:
    """The end of an evicted task, which its agent reports as a shutdown like others, as swarm mode shows it."""
    if task.evicted and task.status.state == pb.TASK_STATE_SHUTDOWN:
        task.status.state = pb.TASK_STATE_REJECTED
        task.status.message = healing.ENFORCED
        task.status.err = task.evicted


def _evict(result: plan.Plan, task: pb.Task, why: str) -> None:
    changed = pb.Task()
    changed.CopyFrom(task)
    changed.evicted = why
    result.ops.append(ops.update(changed))
    result.reasons.append(f"task {task.id}: {why} ({task.node_id})")


def _matters(old: pb.Node, new: pb.Node) -> bool:
    """Whether tasks on the node may no longer suit it."""
    return (
        old.spec != new.spec
        or old.role != new.role
        or old.status.addr != new.status.addr
        or old.description != new.description
    )
