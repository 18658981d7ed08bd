"""A model of all agents: whatever they are given starts, whatever they are told to stop stops.

It takes no time and never fails. A node that is not READY does nothing. It writes what the dispatcher would write.
"""

from collections.abc import Iterable

from manager.store import ops, views
from skep import pb, stamps

# Two steps to a running task and one to a stopped one: as in life, what stops is gone before its successor runs.
_PREPARED = pb.TASK_STATE_READY
_JOBS = ("replicated_job", "global_job")


def reports(state: views.View, task_ids: Iterable[str], now: float) -> list[pb.Op]:
    """The next report on each of these tasks whose agent has something to do."""
    at = stamps.stamp(now)
    found: list[pb.Op] = []
    for task_id in task_ids:
        task = state.tasks.get(task_id)
        if task is None or not _able(state, task):
            continue
        following = _next(state, task)
        if following is None:
            continue
        reported = pb.Task()
        reported.CopyFrom(task)
        reported.status.state = following
        reported.status.ClearField("err")
        reported.status.timestamp.CopyFrom(at)
        reported.status.applied_at.CopyFrom(at)
        if following == pb.TASK_STATE_RUNNING and not reported.HasField("running_at"):
            reported.running_at.CopyFrom(at)
        found.append(ops.update(reported))
    return found


def _able(state: views.View, task: pb.Task) -> bool:
    node = state.nodes.get(task.node_id)
    return node is not None and node.status.state == pb.NODE_STATE_READY


def _next(state: views.View, task: pb.Task) -> pb.TaskState.ValueType | None:
    observed, wished = task.status.state, task.desired_state
    if observed < pb.TASK_STATE_ASSIGNED or observed > pb.TASK_STATE_RUNNING:
        return None
    if wished > pb.TASK_STATE_COMPLETE:
        return pb.TASK_STATE_SHUTDOWN
    if observed < _PREPARED:
        return _PREPARED
    if observed < pb.TASK_STATE_RUNNING:
        return pb.TASK_STATE_RUNNING if wished >= pb.TASK_STATE_RUNNING else None
    # A job's task that runs would end well some day; for a plan that day is today.
    revision = state.revisions.get(task.revision_id)
    job = revision is not None and revision.spec.mode.WhichOneof("mode") in _JOBS
    return pb.TASK_STATE_COMPLETE if job and wished == pb.TASK_STATE_COMPLETE else None
