"""Vocabulary about tasks and nodes, and the only places that build or change a task. No decision is taken here."""

import enum

from manager.store import ops
from skep import ids, pb, stamps


class Start(enum.Enum):
    """When a new task may start."""

    AT_ONCE = "at once"
    WHEN_DUE = "when due"  # prepared now, started by the Starter


def runnable(task: pb.Task) -> bool:
    """Whether managers want the task to run (a job's: to complete), or to be ready for it."""
    return task.desired_state <= pb.TASK_STATE_COMPLETE


def ended(task: pb.Task) -> bool:
    """Whether the task has ended, for whatever reason."""
    return task.status.state > pb.TASK_STATE_RUNNING


def unassigned(task: pb.Task) -> bool:
    """Whether no agent has ever been given the task."""
    return task.status.state < pb.TASK_STATE_ASSIGNED


def status_at(task: pb.Task) -> float:
    """When the task got its status: by the leader's clock if it passed one, else by the writer's. Epoch seconds."""
    status = task.status
    return stamps.seconds(status.applied_at if status.HasField("applied_at") else status.timestamp)


def created_at(task: pb.Task) -> float:
    """When the task was created, seconds since the epoch."""
    return stamps.seconds(task.created_at)


def ran_at(task: pb.Task) -> float:
    """When a task that runs came to run, as well as it is known. Epoch seconds."""
    return stamps.seconds(task.running_at) if task.HasField("running_at") else status_at(task)


def lost(node: pb.Node | None) -> bool:
    """Whether nothing on the node can be waited for: it is deleted or down."""
    return node is None or node.status.state == pb.NODE_STATE_DOWN


def invalid(node: pb.Node | None) -> bool:
    """Whether tasks must leave the node. A node not heard from yet keeps its tasks: they may well run."""
    return lost(node) or (node is not None and node.spec.availability == pb.NODE_AVAILABILITY_DRAIN)


def slot_key(task: pb.Task) -> str:
    """The task's slot as the store's index "slot" spells it."""
    return f"{task.service_id}/{task.slot or task.node_id}"


def started(task: pb.Task) -> pb.TaskState.ValueType:
    """The wish for a task that may start: to run, or if it is a job's, to run until it is complete."""
    return pb.TASK_STATE_COMPLETE if task.HasField("job_iteration") else pb.TASK_STATE_RUNNING


def create(
    service: pb.Service,
    *,
    slot: int,
    start: Start,
    now: float,
    rng: ids.Rng,
    node_id: str = "",
    replaces: str = "",
    not_before: float = 0.0,
) -> pb.Op:
    """A new task of the service's wished revision. `not_before` (epoch seconds) counts with `Start.WHEN_DUE` only.

    `node_id` is for modes with one task a node; the scheduler then only checks that the node can take it.
    """
    op = pb.Op(kind=pb.OP_KIND_CREATE)
    task = op.object.task
    task.id = ids.new_id(rng)
    task.service_id = service.id
    task.service_name = service.name
    task.revision_id = service.revision_id
    task.slot = slot
    task.node_id = node_id
    if service.HasField("job_status"):
        task.job_iteration.CopyFrom(service.job_status.job_iteration)
    task.desired_state = started(task) if start is Start.AT_ONCE else pb.TASK_STATE_READY
    task.replaces = replaces
    if start is Start.WHEN_DUE:
        task.not_before.CopyFrom(stamps.stamp(not_before))
    task.status.state = pb.TASK_STATE_NEW
    task.status.message = "created"
    task.status.timestamp.CopyFrom(stamps.stamp(now))
    return op


def stop(task: pb.Task, desired: pb.TaskState.ValueType, now: float) -> pb.Op:
    """The task with a lower wish: SHUTDOWN or REMOVE. One that no agent knows has thereby ended."""
    changed = pb.Task()
    changed.CopyFrom(task)
    changed.desired_state = desired
    if unassigned(task):
        changed.status.state = pb.TASK_STATE_SHUTDOWN
        changed.status.message = "shutdown"
        changed.status.timestamp.CopyFrom(stamps.stamp(now))
    return ops.update(changed)


def significant(old: object, new: object) -> bool:
    """Whether a change of a task may change a decision: not one of words, times or ports only."""
    if not isinstance(old, pb.Task) or not isinstance(new, pb.Task):
        return True
    return (
        old.status.state != new.status.state
        or old.desired_state != new.desired_state
        or old.node_id != new.node_id
        or old.evicted != new.evicted
        or old.running_at != new.running_at
        or bool(old.status.err) != bool(new.status.err)  # of a task that waits: the scheduler has found no place
    )
