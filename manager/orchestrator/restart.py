"""The restart policy: whether a task that ended gets a successor in its slot, and from when on.

The history is derived from the stored tasks: every task of a slot and revision but the first is a restart. So a new
leader knows what the old one knew; the reaper keeps as many tasks as that takes. How often in a row they failed is
counted on the tasks themselves.
"""

from collections.abc import Sequence

from manager.orchestrator import tasks
from skep import ids, pb, stamps

DELAY_DEFAULT_S = 5.0
PATIENT_FAILURES = 3  # in a row; up to here the delay is the policy's, as in Docker's swarm mode
BACKOFF_MIN_S = 1.0  # what is doubled when the policy's delay is shorter
BACKOFF_MAX_S = 300.0
DOUBLINGS_MAX = 30
JITTER = 0.1
HEALTHY_MIN_S = 60.0  # a task that ran so long, and
HEALTHY_DELAYS = 10.0  # so many restart delays, was healthy: its end begins a new row of failures
CRASHES = (pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED)


def allowed(task: pb.Task, policy: pb.RestartPolicy, slot: Sequence[pb.Task]) -> bool:
    """Whether `task`, which ended or must leave its node, is to be replaced. `slot` is every task of its slot."""
    if policy.condition == pb.RESTART_CONDITION_NONE:
        return False
    if policy.condition == pb.RESTART_CONDITION_ON_FAILURE and task.status.state == pb.TASK_STATE_COMPLETE:
        return False
    if not policy.max_attempts:
        return True
    # Moving to another node, with the old task still there, is no restart.
    alike = [other for other in slot if other.revision_id == task.revision_id and not other.move]
    restarts = [tasks.created_at(other) for other in alike[1:]]
    if policy.window:
        until = tasks.status_at(task)
        since = until - stamps.from_nanos(policy.window)
        restarts = [at for at in restarts if since < at < until]
    return len(restarts) < policy.max_attempts


def not_before(
    task: pb.Task, policy: pb.RestartPolicy, now: float, *, failures: int = 0, rng: ids.Rng | None = None
) -> float:
    """When the successor of a task that ended by itself may start, seconds since the epoch.

    Counted from the end of the task, but never from a clock that is ahead of ours. `failures` in a row lengthen it.
    """
    delay_s = stamps.from_nanos(policy.delay) if policy.HasField("delay") else DELAY_DEFAULT_S
    return min(now, tasks.status_at(task) or now) + backed_off_s(delay_s, failures, rng)


def backed_off_s(delay_s: float, failures: int, rng: ids.Rng | None) -> float:
    """The delay after so many failures in a row: the policy's for the first few, then twice as long each time.

    It never becomes shorter than the policy's, and spreads by a tenth so that what broke together does not come back
    together.
    """
    doublings = min(failures - PATIENT_FAILURES, DOUBLINGS_MAX)
    if doublings <= 0:
        return delay_s
    longer_s = min(max(delay_s, BACKOFF_MIN_S) * 2.0**doublings, BACKOFF_MAX_S)
    spread = 1.0 if rng is None else rng.uniform(1.0 - JITTER, 1.0 + JITTER)
    return max(delay_s, longer_s * spread)


def failures_after(task: pb.Task, policy: pb.RestartPolicy) -> int:
    """How often in a row tasks of the slot and revision have failed, now that `task` ended.

    One that ended well, was stopped, or had run long enough to count as healthy ends the row.
    """
    if task.status.state not in CRASHES:
        return 0
    if task.HasField("running_at"):
        delay_s = stamps.from_nanos(policy.delay) if policy.HasField("delay") else DELAY_DEFAULT_S
        ran_s = tasks.status_at(task) - stamps.seconds(task.running_at)
        if ran_s >= max(HEALTHY_MIN_S, HEALTHY_DELAYS * delay_s):
            return 1
    return task.failures + 1


def move_again_at(task: pb.Task, failures: int, now: float) -> float:
    """When to try again to move what `task` failed to take over."""
    return min(now, tasks.status_at(task) or now) + backed_off_s(DELAY_DEFAULT_S, failures, None)
