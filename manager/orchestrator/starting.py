"""When a prepared task may start: READY -> RUNNING as a wish.

A task waits for its moment (restart delay) and for the others of its slot that were told to stop, but not for ever:
after a minute it starts whatever they do, and it does not wait for what is on a lost node.
"""

from collections.abc import Iterable

from manager import plan
from manager.orchestrator import tasks
from manager.store import ops, views, watching
from skep import ids, pb, stamps

PATIENCE_S = 60.0  # from the creation of the waiting task

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
            due = stamps.seconds(task.not_before)
            if any(_blocks(state, other, task) for other in state.tasks.where("slot", tasks.slot_key(task))):
                due = max(due, tasks.created_at(task) + PATIENCE_S)
            if now < due:
                result.wake(due, task.service_id)
                continue
            started = pb.Task()
            started.CopyFrom(task)
            started.desired_state = tasks.started(task)
            result.ops.append(ops.update(started))
        return result


def _blocks(state: views.View, other: pb.Task, waiting: pb.Task) -> bool:
    """Whether `other` still runs, or may, and is to be gone before `waiting` starts."""
    if other.id == waiting.id or tasks.ended(other):
        return False
    if other.id != waiting.replaces and tasks.runnable(other):
        return False
    if tasks.unassigned(other):
        return other.id == waiting.replaces and tasks.runnable(other)
    return not tasks.lost(state.nodes.get(other.node_id))
