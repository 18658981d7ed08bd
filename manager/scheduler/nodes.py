"""Every node's load at one moment: what is free, which ports are taken, who runs where.

Computed once per decision from the store, then kept up to date as the scheduler places tasks. Never written back.
"""

import dataclasses
from collections.abc import Iterator

from manager.scheduler import filters, needs
from manager.store import views
from skep import pb, stamps

FAILURE_WINDOW_S = 300.0  # how long a failure speaks against a node
FAILURES_MAX = 5  # from so many on, a node is taken only when the others have as many

Kind = tuple[str, str]  # service ID, revision ID: tasks of one kind are alike


@dataclasses.dataclass(slots=True, eq=False)
class NodeLoad:
    """One node and what is on it."""

    node: pb.Node
    order: int  # position in the store; breaks ties
    ready: bool
    cpus_free: int
    memory_free: int
    generic_free: dict[str, int]
    ports: dict[needs.Port, None] = dataclasses.field(default_factory=dict)
    total: int = 0  # active tasks
    services: dict[str, int] = dataclasses.field(default_factory=dict)  # active tasks by service
    bucket: int = 0  # the total under which the ledger files it

    @property
    def name(self) -> str:
        """What people call the node."""
        return self.node.description.hostname or self.node.id


class Ledger:
    """All nodes, ordered by load. The single place where placements are counted."""

    def __init__(self, state: views.View, now: float) -> None:
        self._state = state
        self._needs: dict[str, needs.Needs] = {}
        self._static: dict[tuple[object, ...], dict[str, bool]] = {}
        self.all: dict[str, NodeLoad] = {}
        self.by_service: dict[str, dict[str, NodeLoad]] = {}
        self.failures: dict[Kind, dict[str, int]] = {}
        for order, node in enumerate(state.nodes):
            self.all[node.id] = _empty(node, order)
        self._count_tasks(now)
        self._buckets: dict[int, dict[str, NodeLoad]] = {}
        for load in self.all.values():
            load.bucket = load.total
            if load.ready:
                self._buckets.setdefault(load.total, {})[load.node.id] = load

    def need_of(self, revision_id: str) -> needs.Needs:
        """What the tasks of a revision need."""
        known = self._needs.get(revision_id)
        if known is None:
            revision = self._state.revisions.get(revision_id)
            if revision is None:  # a fault of ours; tasks of other revisions must not wait for it
                known = needs.Needs(unreadable=f"revision {revision_id} is missing")
            else:
                known = needs.of(revision.spec)
            self._needs[revision_id] = known
        return known

    def _count_tasks(self, now: float) -> None:
        oldest = now - FAILURE_WINDOW_S
        for task in self._state.tasks:
            load = self.all.get(task.node_id)
            if load is None:
                continue
            state = task.status.state
            if pb.TASK_STATE_ASSIGNED <= state <= pb.TASK_STATE_RUNNING:
                self._take(load, self.need_of(task.revision_id))
                if task.desired_state <= pb.TASK_STATE_COMPLETE:
                    self._add(load, task.service_id)
            elif state in {pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED}:
                status = task.status
                when = stamps.seconds(status.applied_at if status.HasField("applied_at") else status.timestamp)
                if when > oldest:
                    counts = self.failures.setdefault((task.service_id, task.revision_id), {})
                    counts[task.node_id] = counts.get(task.node_id, 0) + 1

    @staticmethod
    def _take(load: NodeLoad, need: needs.Needs) -> None:
        load.cpus_free -= need.nano_cpus
        load.memory_free -= need.memory_bytes
        for kind, count in need.generic:
            load.generic_free[kind] = load.generic_free.get(kind, 0) - count
        for port in need.ports:
            load.ports[port] = None

    def _add(self, load: NodeLoad, service_id: str) -> None:
        load.total += 1
        load.services[service_id] = load.services.get(service_id, 0) + 1
        self.by_service.setdefault(service_id, {})[load.node.id] = load

    def place(self, load: NodeLoad, service_id: str, need: needs.Needs) -> None:
        """Counts one more task there. `settle` must follow before the next `ascending`."""
        self._take(load, need)
        self._add(load, service_id)

    def settle(self, touched: dict[str, NodeLoad]) -> None:
        """Files the nodes under their new load."""
        for node_id, load in touched.items():
            if load.bucket == load.total or not load.ready:
                continue
            bucket = self._buckets[load.bucket]
            del bucket[node_id]
            if not bucket:
                del self._buckets[load.bucket]
            load.bucket = load.total
            self._buckets.setdefault(load.total, {})[node_id] = load

    def ascending(self) -> Iterator[NodeLoad]:
        """The ready nodes, least loaded first. Nothing may be settled while this runs."""
        for total in sorted(self._buckets):
            yield from self._buckets[total].values()

    def allowed(self, load: NodeLoad, need: needs.Needs) -> bool:
        """Whether the node satisfies what no placement changes (constraints, platform); remembered."""
        if not need.wanted and not need.platforms:
            return True
        known = self._static.setdefault((need.wanted, need.platforms), {})
        answer = known.get(load.node.id)
        if answer is None:
            answer = known[load.node.id] = filters.allowed(load.node, need)
        return answer

    def failing(self, kind: Kind) -> dict[str, int]:
        """Nodes on which tasks of this kind have failed too often lately, and how often."""
        counts = self.failures.get(kind)
        if not counts:
            return {}
        return {node_id: count for node_id, count in counts.items() if count >= FAILURES_MAX}


def _empty(node: pb.Node, order: int) -> NodeLoad:
    resources = node.description.resources
    return NodeLoad(
        node=node,
        order=order,
        ready=not filters.unready(node),
        cpus_free=resources.nano_cpus,
        memory_free=resources.memory_bytes,
        generic_free=needs.counted(resources),
    )
