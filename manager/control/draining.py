"""Emptying a node: what one request means for the store, and how far it has come. Pure."""

import dataclasses

from manager.control import lookup
from manager.store import ops, views
from skep import errors, pb, stamps

DEADLINE_DEFAULT_S = 600.0
DEADLINE_MAX_S = 7 * 24 * 3600.0

_DRAIN, _ACTIVE = pb.NODE_AVAILABILITY_DRAIN, pb.NODE_AVAILABILITY_ACTIVE


def note(before: pb.Node, changed: pb.Node, *, now: float, deadline_s: float = DEADLINE_DEFAULT_S) -> None:
    """Notes in `changed` when its drain began or ended, however that was asked for."""
    was, is_ = before.spec.availability == _DRAIN, changed.spec.availability == _DRAIN
    if is_ and not was:
        changed.drain.CopyFrom(pb.Drain(started_at=stamps.stamp(now), deadline=stamps.stamp(now + deadline_s)))
    elif was and not is_ and changed.HasField("drain"):
        changed.drain.ended_at.CopyFrom(stamps.stamp(now))


def start(view: views.View, reference: str, *, deadline_s: float, now: float) -> list[pb.Op]:
    """Starts draining a node; on one that is being drained already, sets the deadline anew.

    Raises NotFound, and Invalid for a deadline that cannot be.
    """
    if not 0.0 <= deadline_s <= DEADLINE_MAX_S:
        raise errors.Invalid(f"a drain's deadline must be between 0 and 7 days, not {deadline_s:g} s")
    node = lookup.node(view, reference)
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.spec.availability = _DRAIN
    note(node, changed, now=now, deadline_s=deadline_s)
    changed.drain.deadline.CopyFrom(stamps.stamp(now + deadline_s))
    return [ops.update(changed)]


def cancel(view: views.View, reference: str, *, now: float) -> list[pb.Op]:
    """The node takes tasks again. Raises NotFound, and FailedPrecondition when it is not being drained."""
    node = lookup.node(view, reference)
    if node.spec.availability != _DRAIN:
        raise errors.FailedPrecondition(f"node {reference} is not being drained")
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.spec.availability = _ACTIVE
    note(node, changed, now=now)
    return [ops.update(changed)]


@dataclasses.dataclass(frozen=True)
class Left:
    """A task that has not left its node yet."""

    task: pb.Task
    successor: pb.Task | None  # None: its turn has not come, or nothing takes its place
    why: str


def left(view: views.View, node: pb.Node) -> list[Left]:
    """What still runs, or may run, on the node, and what it waits for."""
    found: list[Left] = []
    for task in view.tasks.where("node", node.id):
        if not pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING:
            continue
        successor = None
        for other in view.tasks.where("slot", f"{task.service_id}/{task.slot}") if task.slot else ():
            if other.replaces == task.id and other.desired_state <= pb.TASK_STATE_COMPLETE:
                successor = other
        found.append(Left(task, successor, _why(view, task, successor)))
    return found


def _why(view: views.View, task: pb.Task, successor: pb.Task | None) -> str:
    if task.desired_state > pb.TASK_STATE_COMPLETE:
        return "is stopping"
    if successor is None:
        return "waits for its turn"
    if successor.status.state < pb.TASK_STATE_ASSIGNED:
        return successor.status.err or "its successor waits for a node"
    node = view.nodes.get(successor.node_id)
    where = node.description.hostname or node.id if node is not None else successor.node_id
    if successor.status.state == pb.TASK_STATE_RUNNING:
        return f"its successor on {where} runs and proves itself"
    return f"its successor on {where} is not running yet"
