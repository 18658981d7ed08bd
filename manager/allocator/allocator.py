"""Moves tasks from NEW to PENDING once everything but a node is known.

No resource of the network is handed out yet, so every wished task moves at once. Addresses, virtual IPs and ingress
ports will be decided in `_requirements`, before the move. It must never choose a node.
"""

from collections.abc import Iterable

from manager import plan
from manager.store import ops, views, watching
from skep import ids, pb, stamps

_NEW = str(pb.TASK_STATE_NEW)


class Allocator:
    """Decider: NEW -> PENDING. Keys are task IDs."""

    name = "allocator"
    kinds = frozenset({"task"})

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        task = change.new
        if isinstance(task, pb.Task) and task.status.state == pb.TASK_STATE_NEW:
            return (task.id,)
        return ()

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        result = plan.Plan()
        at = stamps.stamp(now)
        for task in state.tasks.where("state", _NEW):
            if dirty is not None and task.id not in dirty:
                continue
            if task.desired_state > pb.TASK_STATE_COMPLETE or _requirements(state, task):
                continue
            ready = pb.Task()
            ready.CopyFrom(task)
            ready.status.state = pb.TASK_STATE_PENDING
            ready.status.message = "pending task scheduling"
            ready.status.timestamp.CopyFrom(at)
            result.ops.append(ops.update(ready))
        return result


def _requirements(state: views.View, task: pb.Task) -> tuple[str, ...]:
    """What the task still lacks before a node may be chosen: nothing, as long as there are no overlay networks."""
    del state, task
    return ()
