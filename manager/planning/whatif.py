"""Changes that nobody can ask for, but that happen: nodes are lost, nodes are added."""

import dataclasses
from collections.abc import Mapping, Sequence

from manager.store import ops, views
from skep import errors, pb

ADDED_MAX = 1000  # nodes in one question


@dataclasses.dataclass(frozen=True)
class Addition:
    """So many new nodes of one size."""

    count: int
    nano_cpus: int
    memory_bytes: int
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def lose(nodes: Sequence[pb.Node]) -> list[pb.Op]:
    """All of `nodes` fall silent for good at the same moment."""
    changed: list[pb.Op] = []
    for node in nodes:
        if node.status.state == pb.NODE_STATE_DOWN:
            continue
        gone = pb.Node()
        gone.CopyFrom(node)
        gone.status.state = pb.NODE_STATE_DOWN
        gone.status.message = "lost, for the sake of argument"
        gone.status.ClearField("since")  # of the state before: waiting for the node begins now
        changed.append(ops.update(gone))
    return changed


def quorum_lost(view: views.View, lost: Sequence[str]) -> str:
    """Why the cluster could not even react to the loss; "" when it could."""
    managers = [node for node in view.nodes if node.role == pb.NODE_ROLE_MANAGER]
    left = [
        node
        for node in managers
        if node.id not in lost and node.status.state in {pb.NODE_STATE_READY, pb.NODE_STATE_UNKNOWN}
    ]
    needed = len(managers) // 2 + 1
    if len(left) >= needed or not managers:
        return ""
    return (
        f"{len(left)} of {len(managers)} managers would be left, {needed} are needed: without a quorum nothing is "
        "replaced or changed; what runs elsewhere runs on"
    )


def add(view: views.View, additions: Sequence[Addition]) -> list[pb.Op]:
    """New, empty, ready nodes; in everything that is not said they are like the first one. Raises Invalid."""
    if sum(each.count for each in additions) > ADDED_MAX:
        raise errors.Invalid(f"more than {ADDED_MAX} nodes at once are not worth asking about")
    model = next(iter(view.nodes), pb.Node())
    created: list[pb.Op] = []
    for each in additions:
        if each.count < 1 or each.nano_cpus < 0 or each.memory_bytes < 0:
            raise errors.Invalid("a node that is added needs a count of 1 or more, and CPUs and memory of 0 or more")
        for _ in range(each.count):
            number = len(created) + 1
            node = pb.Node(id=f"added-{number}")
            node.spec.labels.update(each.labels)
            node.description.hostname = f"added-{number}"
            node.description.platform.CopyFrom(model.description.platform)
            node.description.engine.CopyFrom(model.description.engine)
            node.description.engine.ClearField("labels")
            node.description.resources.nano_cpus = each.nano_cpus
            node.description.resources.memory_bytes = each.memory_bytes
            node.status.state = pb.NODE_STATE_READY
            created.append(ops.create(node))
    return created
