"""The restart policy: whether a task that ended gets a successor in its slot, and from when on.

The history is derived from the stored tasks: every task of a slot and revision but the first is a restart. So a new
leader knows what the old one knew; the reaper keeps as many tasks as that takes.
"""

from collections.abc import Sequence

from manager.orchestrator import tasks
from skep import pb, stamps

DELAY_DEFAULT_S = 5.0


def allowed(task: pb.Task, policy: pb.RestartPolicy, slot: Sequence[pb.Task]) -> bool:
    """Whether `task`, which ended or must leave its node, is to be replaced. `slot` is every task of its slot."""
    if policy.condition == pb.RESTART_CONDITION_NONE:
        return False
    if policy.condition == pb.RESTART_CONDITION_ON_FAILURE and task.status.state == pb.TASK_STATE_COMPLETE:
        return False
    if not policy.max_attempts:
        return True
    alike = [other for other in slot if other.revision_id == task.revision_id]
    restarts = [tasks.created_at(other) for other in alike[1:]]
    if policy.window:
        until = tasks.status_at(task)
        since = until - stamps.from_nanos(policy.window)
        restarts = [at for at in restarts if since < at < until]
    return len(restarts) < policy.max_attempts


def not_before(task: pb.Task, policy: pb.RestartPolicy, now: float) -> float:
    """When the successor of a task that ended by itself may start, seconds since the epoch.

    Counted from the end of the task, but never from a clock that is ahead of ours.
    """
    delay_s = stamps.from_nanos(policy.delay) if policy.HasField("delay") else DELAY_DEFAULT_S
    return min(now, tasks.status_at(task) or now) + delay_s
