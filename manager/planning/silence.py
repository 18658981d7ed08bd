"""A model of silent nodes: what the dispatcher counts of their silence, in model time."""

from collections.abc import Iterator

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
        return min((min(due) for _, due in self._awaited(state)), default=None)

    def reports(self, state: views.View, now: float) -> list[pb.Op]:
        """What the leader writes on these nodes at that moment."""
        found: list[pb.Op] = []
        for node, due in self._awaited(state):
            if min(due) <= now:
                silent = pb.Node()
                silent.CopyFrom(node)
                silent.status.silent = stamps.to_nanos(max(needed_s for at, needed_s in due.items() if at <= now))
                found.append(ops.update(silent))
        return found

    def _awaited(self, state: views.View) -> Iterator[tuple[pb.Node, dict[float, float]]]:
        """The nodes that something waits for, with the silence in seconds by the moment at which it is reached."""
        for node_id in list(self._down):
            node = state.nodes.get(node_id)
            needed = leaving.awaited_silence_s(state, node_id)
            if node is None or not needed:
                del self._down[node_id]  # a node that is down gets no more tasks
                continue
            began_at = leaving.down_since(node)
            yield node, {began_at + each: each for each in needed}
