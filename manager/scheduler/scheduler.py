"""The scheduler: PENDING tasks get a node, or a sentence on why they have none.

It writes only tasks that wait for a node. It never moves a task that has one.
"""

from collections.abc import Iterable

from manager import plan
from manager.scheduler import explain, filters, needs, nodes, placing
from manager.store import views, watching
from skep import ids, pb, stamps

_PENDING = str(pb.TASK_STATE_PENDING)
CAPACITY = "*"  # key: room may have appeared somewhere, so look at every waiting task


class Scheduler:
    """Decider: PENDING -> ASSIGNED. Keys are service IDs, and `CAPACITY`."""

    name = "scheduler"
    kinds = frozenset({"node", "task"})

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        if change.kind == "node":
            return (CAPACITY,) if _node_matters(change.old, change.new) else ()
        keys: list[str] = []
        new, old = change.new, change.old
        if isinstance(new, pb.Task) and new.status.state == pb.TASK_STATE_PENDING:
            keys.append(new.service_id)
        if (
            isinstance(old, pb.Task)
            and old.node_id
            and _holds(old)
            and (not isinstance(new, pb.Task) or _left(old, new))
        ):
            keys.append(CAPACITY)
        return keys

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        result = plan.Plan()
        everything = dirty is None or CAPACITY in dirty
        fixed: list[pb.Task] = []
        groups: dict[nodes.Kind, list[pb.Task]] = {}
        for task in state.tasks.where("state", _PENDING):
            if task.desired_state > pb.TASK_STATE_COMPLETE:
                continue
            if not everything and dirty is not None and task.service_id not in dirty:
                continue
            if task.node_id:
                fixed.append(task)
            else:
                groups.setdefault((task.service_id, task.revision_id), []).append(task)
        if fixed or groups:
            writer = _Writer(result, now)
            ledger = nodes.Ledger(state, now, eager=False)
            _decide_fixed(ledger, fixed, writer)
            _decide_groups(ledger, groups, writer)
        return result


def _decide_fixed(ledger: nodes.Ledger, tasks: list[pb.Task], writer: "_Writer") -> None:
    """Tasks that come with a node: filters only."""
    for task in tasks:
        load = ledger.of(task.node_id)
        if load is None:
            continue  # the orchestrator replaces it
        need = ledger.need_of(task.revision_id)
        if placing.fits(ledger, load, task.service_id, need):
            ledger.place(load, task.service_id, need)
            ledger.settle({load.node_id: load})
            writer.assign(task, load, need, "scheduler confirmed task can run on preassigned node")
        else:
            writer.explain(task, explain.unplaced([ledger.fill(load)], task.service_id, need))


def _decide_groups(ledger: nodes.Ledger, groups: dict[nodes.Kind, list[pb.Task]], writer: "_Writer") -> None:
    # Room only shrinks within one decision: what found no node once finds none later either, and for one reason.
    hopeless: dict[tuple[object, ...], str] = {}
    for kind, tasks in groups.items():
        need = ledger.need_of(kind[1])
        signature = (need, kind[0] if need.max_replicas else "")
        # A successor goes before an addition: updates wait for it, and what it replaces was running.
        tasks.sort(key=lambda task: not task.replaces)
        chosen = [] if signature in hopeless else placing.Group(ledger, kind).place(len(tasks))
        for task, load in zip(tasks, chosen, strict=False):
            writer.assign(task, load, need, "scheduler assigned task to node")
        waiting = tasks[len(chosen) :]
        if not waiting:
            continue
        if signature not in hopeless:
            hopeless[signature] = explain.unplaced(map(ledger.fill, ledger.all()), kind[0], need)
            writer.result.reasons.append(f"service {kind[0]}: {len(waiting)} tasks wait, {hopeless[signature]}")
        for task in waiting:
            writer.explain(task, hopeless[signature])


class _Writer:
    """Turns decisions into operations."""

    def __init__(self, result: plan.Plan, now: float) -> None:
        self.result = result
        self._at = stamps.stamp(now)
        # What all assignments have in common, merged into each: with thousands of tasks, most of a decision's time is
        # spent in writing it down, field by field.
        self._assignment = pb.Task()
        self._assignment.status.state = pb.TASK_STATE_ASSIGNED
        self._assignment.status.timestamp.CopyFrom(self._at)

    def _copy(self, task: pb.Task) -> pb.Task:
        op = pb.Op()
        op.kind = pb.OP_KIND_UPDATE
        op.based_on = task.version.index
        changed = op.object.task
        changed.CopyFrom(task)
        self.result.ops.append(op)
        return changed

    def assign(self, task: pb.Task, load: nodes.NodeLoad, need: needs.Needs, message: str) -> None:
        changed = self._copy(task)
        if need.generic:
            changed.assigned_generic.extend(nodes.Ledger.claim(load, need))
        assignment = self._assignment
        assignment.node_id = load.node_id
        if assignment.status.message != message:
            assignment.status.message = message
        changed.MergeFrom(assignment)
        if changed.status.err:
            changed.status.ClearField("err")

    def explain(self, task: pb.Task, sentence: str) -> None:
        """Shows why the task waits; writes only when the words have changed."""
        if task.status.err != sentence:
            status = self._copy(task).status
            status.timestamp.CopyFrom(self._at)
            status.err = sentence


def _holds(task: pb.Task) -> bool:
    return task.status.state <= pb.TASK_STATE_RUNNING


def _left(old: pb.Task, new: pb.Task) -> bool:
    """Whether the task has given something back: its resources, or its place among the service's replicas."""
    return not _holds(new) or (old.desired_state <= pb.TASK_STATE_COMPLETE < new.desired_state)


def _node_matters(old: object, new: object) -> bool:
    if not isinstance(old, pb.Node) or not isinstance(new, pb.Node):
        return True
    return (
        filters.unready(old) != filters.unready(new)
        or old.status.addr != new.status.addr
        or old.role != new.role
        or old.spec != new.spec
        or old.description != new.description
    )
