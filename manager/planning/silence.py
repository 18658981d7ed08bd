"""A model of silent nodes: what the dispatcher counts of their silence, in model time."""

from manager.orchestrator import leaving, tasks
from manager.store import ops, views, watching
from skep import pb, stamps


class Silence:
    """Of all nodes that are down."""

    def __init__(self, state: views.View) -> None:
        self._down: dict[str, None] = {node.id: None for node in state.nodes if tasks.lost(node)}

    def look(self, change: watching.Change) -> None:
        """A node may have gone down."""
        if isinstance(change.new, pb.Node) and tasks.lost(change.new):
            self._down[change.id] = None

    def next_due(self, state: views.View) -> float | None:
        """When a node will have been silent for as long as a task on it waits for, epoch seconds; None = never."""
        return min(
            (at + each for node_id, at in self._since(state) for each in leaving.awaited_silence_s(state, node_id)),
            default=None,
        )

    def reports(self, state: views.View, now: float) -> list[pb.Op]:
        """What the leader writes on these nodes at that moment."""
        found: list[pb.Op] = []
        for node_id, at in self._since(state):
            reached = [each for each in leaving.awaited_silence_s(state, node_id) if at + each <= now]
            node = state.nodes.get(node_id)
            if reached and node is not None:
                silent = pb.Node()
                silent.CopyFrom(node)
                silent.status.silent = stamps.to_nanos(max(reached))
                found.append(ops.update(silent))
        return found

    def _since(self, state: views.View) -> list[tuple[str, float]]:
        nodes = [state.nodes.get(node_id) for node_id in self._down]
        self._down = {node.id: None for node in nodes if node is not None and tasks.lost(node)}
        return [(node.id, leaving.down_since(node)) for node in nodes if node is not None and tasks.lost(node)]
