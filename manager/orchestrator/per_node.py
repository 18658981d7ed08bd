"""One slot for each node: what global services and global jobs have in common. Chooses nodes by constraints only.

Whether a node has room, ports, plugins and the right platform is the scheduler's to check: a task that it cannot place
waits with the reason in its status.
"""

import enum

from manager.orchestrator import leaving, slots, tasks, turn
from manager.scheduler import constraints, filters
from skep import errors, pb, policies


class Standing(enum.Enum):
    """What a node is to a service that wants a task on every node."""

    TAKES = "takes"  # ready for a new task
    KEEPS = "keeps"  # paused or not heard from: what runs there stays, nothing new comes
    LEFT = "left"  # down, drained, or of the wrong kind: tasks stop, their history stays


class Nodes:
    """The nodes of the cluster as one service sees them."""

    def __init__(self, now: turn.Turn) -> None:
        """Raises Invalid for constraints that do not parse: a manager with other rules has stored them."""
        self._now = now
        self._wanted = constraints.parse(now.spec.task.placement.constraints)

    def standing(self, node: pb.Node) -> Standing:
        """Whether the service wants a task there."""
        if not constraints.matches(self._wanted, node):
            return Standing.LEFT
        if tasks.invalid(node) and not self._waited_for(node):
            return Standing.LEFT
        return Standing.KEEPS if filters.unready(node) else Standing.TAKES

    def _waited_for(self, node: pb.Node) -> bool:
        """Whether the node is down, but not for so long that the service gives up what is on it."""
        patience_s = policies.replace_after_s(self._now.spec.labels)
        if not patience_s or not tasks.lost(node) or node.spec.availability == pb.NODE_AVAILABILITY_DRAIN:
            return False
        due = leaving.down_since(node) + patience_s
        if self._now.now < due:
            self._now.wake(due)
        return self._now.now < due

    def slots(self, found: list[pb.Task]) -> list[tuple[slots.Slot, Standing]]:
        """A slot for every node, with those of `found` that are there. Tasks of deleted nodes are planned away."""
        now = self._now
        by_node = {node.id: slots.Slot(0, node.id) for node in now.state.nodes}
        for task in found:
            slot = by_node.get(task.node_id)
            if slot is None:
                now.stop(task, pb.TASK_STATE_REMOVE)
            else:
                slots.add(now, slot, task)
        return [(by_node[node.id], self.standing(node)) for node in now.state.nodes]


def of(now: turn.Turn) -> Nodes | None:
    """The nodes for this service; None when its constraints cannot be read, which is no reason to stop anything."""
    try:
        return Nodes(now)
    except errors.Invalid as error:
        now.reason(f"its constraints cannot be read: {error.message}")
        return None
