"""What the store says after one manager was made the only one: pure."""

from manager.store import ops, views
from skep import errors, pb

LOST = "the cluster was rebuilt without this manager"


def alone(view: views.View, *, node_id: str, addr: str) -> list[pb.Op]:
    """Operations that leave `node_id`, at cluster address `addr`, as the only manager.

    The others become workers that are down: their tasks are replaced, and a machine that comes back is told to be a
    worker, which `skep node promote` changes. Raises FailedPrecondition when the state does not know this node.
    """
    own = view.nodes.get(node_id)
    if own is None or not len(view.clusters):
        raise errors.FailedPrecondition(
            f"the state that was recovered does not know node {node_id}: rebuild from another manager"
        )
    changes = [_only_manager(own, addr)]
    changes += [_lost(node) for node in view.nodes if node.id != node_id and _was_manager(node)]
    return [ops.update(node) for node in changes if node != view.nodes.get(node.id)]


def _was_manager(node: pb.Node) -> bool:
    return pb.NODE_ROLE_MANAGER in (node.role, node.spec.role)


def _only_manager(node: pb.Node, addr: str) -> pb.Node:
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.role = changed.spec.role = pb.NODE_ROLE_MANAGER
    changed.manager.addr = addr
    return changed


def _lost(node: pb.Node) -> pb.Node:
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.role = changed.spec.role = pb.NODE_ROLE_WORKER
    changed.ClearField("manager")
    changed.status.state = pb.NODE_STATE_DOWN
    changed.status.message = LOST
    changed.status.ClearField("since")  # = since this very change
    return changed
