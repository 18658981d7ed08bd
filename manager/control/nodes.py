"""Nodes: what one request means for the store. Pure functions from a view to the operations of a transaction."""

import re

from manager.control import lookup
from manager.store import ops, views
from skep import errors, pb, stamps

ORPHANED = "Task belonged to a node that has been deleted"
NAME_CHARS_MAX = 253
LABEL_BYTES_MAX = 64 * 1024  # all labels together: they travel with the node in every heartbeat's view

_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?", re.ASCII)


def update(view: views.View, reference: str, spec: pb.NodeSpec, *, version: int) -> list[pb.Op]:
    """Replaces the node's specification; nothing when it is the same already.

    Raises NotFound, Invalid, Conflict when the node has moved, and for a change of role Unimplemented (or
    FailedPrecondition for the last manager).
    """
    node = lookup.node(view, reference)
    if node.version.index != version:
        raise errors.Conflict("update out of sequence")
    _check_spec(view, node, spec)
    if spec.role != node.spec.role:
        _refuse_role(view, node, spec)
    if spec == node.spec:
        return []
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.spec.CopyFrom(spec)
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


def _refuse_role(view: views.View, node: pb.Node, spec: pb.NodeSpec) -> None:
    managers = sum(other.spec.role == pb.NODE_ROLE_MANAGER for other in view.nodes)
    if spec.role == pb.NODE_ROLE_WORKER and managers == 1:
        raise errors.FailedPrecondition("attempting to demote the last manager of the swarm")
    what = "demoting a manager" if spec.role == pb.NODE_ROLE_WORKER else "promoting a worker"
    raise errors.Unimplemented(
        f"this version of skep cannot change the role of a node ({what}, here {node.description.hostname or node.id}): "
        "let the machine leave the cluster and join again with the token of the other role"
    )
