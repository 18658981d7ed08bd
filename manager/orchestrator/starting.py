"""When a prepared task may start: READY -> RUNNING as a wish.

A task waits for its moment (restart delay), for the one that it replaces and for the others of its slot that were told
to stop, but not for ever: a minute after they were told it starts whatever they do, and it does not wait for what is on
a lost node. Only tasks that must never run twice wait until the others have certainly ended.
"""

from collections.abc import Iterable

from manager import plan
from manager.orchestrator import leaving, tasks
from manager.store import ops, views, watching
from skep import ids, pb, stamps

PATIENCE_S = 60.0  # with what was told to stop, counted from its last change

_READY = str(pb.TASK_STATE_READY)


class Starter:
    """Decider: starts tasks whose time has come. Keys are service IDs."""

    name = "starter"
    kinds = frozenset({"node", "task"})

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        if not state.tasks.count("desired", _READY):
            return ()
        if change.kind == "node":
            return dict.fromkeys(task.service_id for task in state.tasks.where("node", change.id))
        task = change.new or change.old
        if not isinstance(task, pb.Task) or not tasks.significant(change.old, change.new):
            return ()
        return (task.service_id,)

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        result = plan.Plan()
        for task in state.tasks.where("desired", _READY):
            if (dirty is not None and task.service_id not in dirty) or tasks.ended(task):
                continue
            due: float | None = stamps.seconds(task.not_before)
            for other in state.tasks.where("slot", tasks.slot_key(task)):
                gone_at = _gone_at(state, other, task)
                due = None if due is None or gone_at is None else max(due, gone_at)
            if due is None:
                continue
            if now < due:
                result.wake(due, task.service_id)
                continue
            started = pb.Task()
            started.CopyFrom(task)
            started.desired_state = tasks.started(task)
            result.ops.append(ops.update(started))
        return result


def _gone_at(state: views.View, other: pb.Task, waiting: pb.Task) -> float | None:
    """When `waiting` need not wait for `other` any more, epoch seconds; 0.0 = now, None = when something changes."""
    if other.id == waiting.id or tasks.ended(other):
        return 0.0
    if tasks.runnable(other):
        # What it replaces runs until it is told to stop, which may well wait until this one is prepared.
        return None if other.id == waiting.replaces else 0.0
    if tasks.unassigned(other):
        return 0.0
    lease_s = leaving.lease_s(state, other)
    node = state.nodes.get(other.node_id)
    if tasks.lost(node):
        return 0.0 if leaving.certainly_stopped(state, other) else None
    return None if lease_s else max(tasks.created_at(waiting), stamps.seconds(other.updated_at)) + PATIENCE_S
