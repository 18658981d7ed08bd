"""Emptying a node: what one request means for the store, and how far it has come. Pure."""

import dataclasses
from collections.abc import Sequence

from manager.control import lookup
from manager.store import ops, views
from skep import errors, pb, stamps, tasknames

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


def start(view: views.View, references: Sequence[str], *, deadline_s: float, now: float) -> list[pb.Op]:
    """Starts draining nodes, all at the same moment; on one that is being drained already, sets the deadline anew.

    Raises NotFound, and Invalid for a deadline that cannot be or when there is no node at all.
    """
    if not 0.0 <= deadline_s <= DEADLINE_MAX_S:
        raise errors.Invalid(f"a drain's deadline must be between 0 and 7 days, not {deadline_s:g} s")
    changed: list[pb.Op] = []
    for node in _nodes(view, references):
        drained = pb.Node()
        drained.CopyFrom(node)
        drained.spec.availability = _DRAIN
        note(node, drained, now=now, deadline_s=deadline_s)
        drained.drain.ClearField("ended_at")
        if not drained.drain.HasField("started_at"):
            drained.drain.started_at.CopyFrom(stamps.stamp(now))
        drained.drain.deadline.CopyFrom(stamps.stamp(now + deadline_s))
        changed.append(ops.update(drained))
    return changed


def cancel(view: views.View, references: Sequence[str], *, now: float) -> list[pb.Op]:
    """The nodes take tasks again. Raises NotFound, and FailedPrecondition when one is not being drained."""
    changed: list[pb.Op] = []
    for node in _nodes(view, references):
        if node.spec.availability != _DRAIN:
            raise errors.FailedPrecondition(f"node {tasknames.node(node)} is not being drained: nothing to cancel")
        active = pb.Node()
        active.CopyFrom(node)
        active.spec.availability = _ACTIVE
        note(node, active, now=now)
        changed.append(ops.update(active))
    return changed


def _nodes(view: views.View, references: Sequence[str]) -> list[pb.Node]:
    found = {node.id: node for node in (lookup.node(view, reference) for reference in references)}
    if not found:
        raise errors.Invalid("no node: name at least one")
    return list(found.values())


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


def homeless(view: views.View, node: pb.Node) -> list[pb.Task]:
    """Successors of tasks that had to go from the node before anybody had room for these."""
    found: list[pb.Task] = []
    for task in view.tasks.where("state", str(pb.TASK_STATE_PENDING)):
        old = view.tasks.get(task.replaces)
        if old is not None and old.node_id == node.id and task.desired_state <= pb.TASK_STATE_COMPLETE:
            ended = old.status.state > pb.TASK_STATE_RUNNING
            if ended and task.status.err:
                found.append(task)
    return found


def _why(view: views.View, task: pb.Task, successor: pb.Task | None) -> str:
    if task.desired_state > pb.TASK_STATE_COMPLETE:
        return "is stopping"
    if successor is None:
        return "waits for its turn"
    if successor.status.state < pb.TASK_STATE_ASSIGNED:
        return successor.status.err or "its successor waits for a node"
    node = view.nodes.get(successor.node_id)
    where = tasknames.node(node) if node is not None else successor.node_id
    if successor.status.state == pb.TASK_STATE_RUNNING:
        return f"its successor on {where} runs and proves itself"
    return f"its successor on {where} is not running yet"
