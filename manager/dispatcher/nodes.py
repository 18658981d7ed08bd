"""Writes what the dispatcher learns of nodes: description, address, state. Every write is decided on the store as it
is now, and decided again when it raced with another one; a write that would change nothing is not made.
"""

from collections.abc import Callable, Mapping

import structlog

from manager.store import commit, ops, store
from skep import clock, errors, pb, stamps

log = structlog.get_logger(__name__)

CONFLICTS_MAX = 20  # in a row; nobody else writes a node that often
NODES_MAX = 200  # per transaction

HEARTBEAT_FAILURE = "heartbeat failure"
NEVER_CAME = 'heartbeat failure for node in "unknown" state'
TAKEOVER = 'Node moved to "unknown" state due to leadership change in cluster'

Change = Callable[[pb.Node], None]  # changes a copy of a node


def down(message: str) -> Change:
    """The node is down."""

    def change(node: pb.Node) -> None:
        node.status.state = pb.NODE_STATE_DOWN
        node.status.message = message

    return change


def _described(description: pb.NodeDescription) -> Change:
    def change(node: pb.Node) -> None:
        node.description.CopyFrom(description)

    return change


def unknown(node: pb.Node) -> None:
    """Nothing is known of the node since this manager leads; one that is down stays down."""
    if node.status.state not in {pb.NODE_STATE_DOWN, pb.NODE_STATE_UNKNOWN}:
        node.status.state = pb.NODE_STATE_UNKNOWN
        node.status.message = TAKEOVER


def _went_or_came(before: pb.Node, after: pb.Node) -> bool:
    """Whether the node's state changed. That a new leader has not heard of it for a moment is no coming and going."""
    old, new = before.status.state, after.status.state
    return old != new and {old, new} != {pb.NODE_STATE_UNKNOWN, pb.NODE_STATE_READY}


class NodeWriter:
    """Commits changes of nodes."""

    def __init__(self, *, target: store.Store, committer: commit.Committer, clock: clock.Clock) -> None:
        self._store = target
        self._committer = committer
        self._clock = clock

    async def register(self, node_id: str, description: pb.NodeDescription, addr: str) -> pb.Node:
        """Makes the node READY and returns it. Returning proves that this manager leads.

        Raises Denied when the node is not in the cluster (any more), Unavailable when this manager does not lead.
        """

        def ready(node: pb.Node) -> None:
            node.description.CopyFrom(description)
            node.status.state = pb.NODE_STATE_READY
            node.status.addr = addr
            node.status.message = ""

        while not await self.change({node_id: ready}):
            # A manager that was replaced without noticing must not give a node its outdated set of tasks.
            await self._committer.barrier()
            if self._get(node_id).status.state == pb.NODE_STATE_READY:
                break
        return self._get(node_id)

    async def describe(self, descriptions: Mapping[str, pb.NodeDescription]) -> None:
        """Takes new descriptions of registered nodes. Raises Unavailable as `change` does."""
        await self.change({node_id: _described(description) for node_id, description in descriptions.items()})

    async def change(self, changes: Mapping[str, Change]) -> bool:
        """Applies each change to its node; False when nothing had to be written. Nodes that are gone are skipped.

        Raises Unavailable when this manager does not lead or nodes keep moving.
        """
        node_ids = list(changes)
        wrote = False
        for start in range(0, len(node_ids), NODES_MAX):
            part = {node_id: changes[node_id] for node_id in node_ids[start : start + NODES_MAX]}
            wrote = await self._change(part) or wrote
        return wrote

    async def _change(self, changes: Mapping[str, Change]) -> bool:
        for _ in range(CONFLICTS_MAX):
            view = self._store.view()
            updates: list[pb.Op] = []
            for node_id, change in changes.items():
                stored = view.nodes.get(node_id)
                if stored is None:
                    continue
                wanted = pb.Node()
                wanted.CopyFrom(stored)
                change(wanted)
                if _went_or_came(stored, wanted):
                    wanted.status.since.CopyFrom(stamps.stamp(self._clock.now()))
                    wanted.status.silent = 0
                if wanted != stored:
                    updates.append(ops.update(wanted))
            if not updates:
                return False
            try:
                await self._committer.commit(updates)
            except errors.Conflict:
                continue
            return True
        raise errors.Unavailable("nodes change too fast to be written; try again")

    def _get(self, node_id: str) -> pb.Node:
        node = self._store.view().nodes.get(node_id)
        if node is None:
            raise errors.Denied(f"node {node_id} is not in this cluster (any more): remove its state and join again")
        return node
