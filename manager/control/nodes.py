"""Nodes: what one request means for the store. Pure functions from a view to the operations of a transaction."""

import re
from collections.abc import Mapping

from manager.control import draining, lookup
from manager.store import ops, views
from skep import errors, pb, stamps

ORPHANED = "Task belonged to a node that has been deleted"
NAME_CHARS_MAX = 253
LABEL_BYTES_MAX = 64 * 1024  # all labels together: they travel with the node in every heartbeat's view

_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?", re.ASCII)


def update(
    view: views.View, reference: str, spec: pb.NodeSpec, *, version: int, members: Mapping[str, bool], now: float
) -> list[pb.Op]:
    """Replaces the node's specification; nothing when it is the same already.

    A change of role is only a wish here: the leader's role loop carries it out. `members` says for each manager of the
    Raft group, by node ID, whether it answers. Raises NotFound, Invalid, Conflict when the node has moved, and
    FailedPrecondition for a demotion that would cost the cluster its last manager or its quorum.
    """
    node = lookup.node(view, reference)
    if node.version.index != version:
        raise errors.Conflict("update out of sequence")
    _check_spec(view, node, spec)
    if spec.role == pb.NODE_ROLE_WORKER and node.spec.role == pb.NODE_ROLE_MANAGER:
        _check_demotion(view, node, members)
    if spec == node.spec:
        return []
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.spec.CopyFrom(spec)
    draining.note(node, changed, now=now)
    return [ops.update(changed)]


def remove(view: views.View, reference: str, *, force: bool, members: frozenset[str], now: float) -> list[pb.Op]:
    """Deletes the node and gives up the tasks it still had. `members` are the managers' node IDs.

    Raises NotFound, and FailedPrecondition for a manager or (unless forced) a node that is not down.
    """
    node = lookup.node(view, reference)
    if pb.NODE_ROLE_MANAGER in (node.role, node.spec.role) or node.id in members:
        raise errors.FailedPrecondition(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. "
            "It must be demoted to worker before removal"
        )
    if node.status.state == pb.NODE_STATE_READY and not force:
        raise errors.FailedPrecondition(f"node {node.id} is not down and can't be removed")
    left = [task for task in view.tasks.where("node", node.id) if task.status.state < pb.TASK_STATE_COMPLETE]
    return [ops.delete(node), *(ops.update(_orphan(task, now)) for task in left)]


def _orphan(task: pb.Task, now: float) -> pb.Task:
    changed = pb.Task()
    changed.CopyFrom(task)
    changed.status.state = pb.TASK_STATE_ORPHANED
    changed.status.message = ORPHANED
    changed.status.timestamp.CopyFrom(stamps.stamp(now))
    changed.status.applied_at.CopyFrom(stamps.stamp(now))
    return changed


def _check_spec(view: views.View, node: pb.Node, spec: pb.NodeSpec) -> None:
    if spec.name and (len(spec.name) > NAME_CHARS_MAX or not _NAME.fullmatch(spec.name)):
        raise errors.Invalid(f"node name {spec.name!r} is invalid: letters, digits, '.', '_' and '-' are allowed")
    for other in view.nodes if spec.name else ():
        if other.id != node.id and other.spec.name == spec.name:
            raise errors.AlreadyExists(f"name conflicts with an existing object: node {spec.name} already exists")
    for key in spec.labels:
        if not key.strip():
            raise errors.Invalid("a node label must have a name")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in spec.labels.items())
    if size > LABEL_BYTES_MAX:
        raise errors.Invalid(f"the node's labels have {size} bytes, more than the {LABEL_BYTES_MAX} that are allowed")


def _check_demotion(view: views.View, node: pb.Node, members: Mapping[str, bool]) -> None:
    """Those whose demotion is under way already do not count as managers that remain."""
    leaving = {other.id for other in view.nodes if other.spec.role != pb.NODE_ROLE_MANAGER}
    rest = {member: answers for member, answers in members.items() if member != node.id and member not in leaving}
    if not rest:
        raise errors.FailedPrecondition("attempting to demote the last manager of the swarm")
    if node.id in members and 2 * sum(rest.values()) <= len(rest):
        raise errors.FailedPrecondition(
            "can't remove member from the raft: this would result in a loss of quorum "
            f"({sum(rest.values())} of the other {len(rest)} managers answer). Bring managers back, or promote "
            "another node, first"
        )
