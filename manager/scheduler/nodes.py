"""Every node's load at one moment: what is free, which ports are taken, who runs where.

Computed once per decision from the store, then kept up to date as the scheduler places tasks. Never written back.
"""

import dataclasses
from collections.abc import Iterator

from manager.scheduler import filters, needs, trees
from manager.store import tables, views
from skep import errors, pb, stamps, tasknames

FAILURE_WINDOW_S = 300.0  # how long a failure speaks against a node
FAILURES_MAX = 5  # from so many on, a node is taken only when the others have as many

Kind = tuple[str, str]  # service ID, revision ID: tasks of one kind are alike


@dataclasses.dataclass(slots=True, eq=False)
class NodeLoad:
    """One node and what is on it. What is free is known only once the ledger has filled it in."""

    node: pb.Node
    node_id: str
    order: int  # position in the store; breaks ties
    ready: bool
    cpus_free: int
    memory_free: int
    generic_free: dict[str, int]
    ports: dict[needs.Port, None] = dataclasses.field(default_factory=dict)
    total: int = 0  # active tasks
    services: dict[str, int] = dataclasses.field(default_factory=dict)  # active tasks by service
    bucket: int = 0  # the total under which the ledger files it
    names_free: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # of named generic resources
    filled: bool = True

    @property
    def name(self) -> str:
        """What people call the node."""
        return tasknames.node(self.node)


def takers(state: views.View) -> list[str]:
    """IDs of the nodes that take new tasks."""
    return list(state.nodes.ids("takes", tables.TAKES))


class Ledger:
    """All nodes, ordered by load. The single place where placements are counted.

    What is on a node is looked at when somebody asks for that node, and what a service has when somebody asks for that
    service: placing a few tasks costs little however many run already. With `eager` all of it is looked at at once.
    """

    def __init__(self, state: views.View, now: float, *, eager: bool = True) -> None:
        self._state = state
        self._oldest = now - FAILURE_WINDOW_S
        self._needs: dict[str, needs.Needs] = {}
        self._static: dict[tuple[object, ...], dict[str, bool]] = {}
        self._trees: dict[tuple[object, ...], trees.Tree] = {}
        self._by_service: dict[str, dict[str, NodeLoad]] = {}
        self._failures: dict[Kind, dict[str, int]] = {}
        self._loads: dict[str, NodeLoad] = {}  # those that somebody asked for
        ready = takers(state)
        self._order = {node_id: order for order, node_id in enumerate(ready)}
        self._buckets: dict[int, dict[str, None]] = {}  # ready nodes by load
        for node_id, total in zip(ready, state.tasks.counts("active", ready), strict=True):
            self._buckets.setdefault(total, {})[node_id] = None
        if eager:
            for load in self.all():
                self.fill(load)
            for service_id in state.tasks.keys("service"):
                self.of_service(service_id)

    def of(self, node_id: str) -> NodeLoad | None:
        """The node's load; None when there is no such node."""
        load = self._loads.get(node_id)
        if load is None:
            node = self._state.nodes.get(node_id)
            if node is None:
                return None
            order = self._order.get(node_id)
            load = self._loads[node_id] = NodeLoad(
                node=node,
                node_id=node_id,
                order=len(self._order) if order is None else order,
                ready=order is not None,
                cpus_free=0,
                memory_free=0,
                generic_free={},
                total=self._state.tasks.count("active", node_id),
                filled=False,
            )
            load.bucket = load.total
        return load

    def at(self, node_id: str) -> NodeLoad:
        """The load of a node that exists."""
        load = self.of(node_id)
        if load is None:
            raise errors.Bug(f"node {node_id} is not in the store")
        return load

    def all(self) -> list[NodeLoad]:
        """Every node's load."""
        return [self.at(node.id) for node in self._state.nodes]

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

    def fill(self, load: NodeLoad) -> NodeLoad:
        """The same node, with what its tasks take counted."""
        if load.filled:
            return load
        load.filled = True
        resources = load.node.description.resources
        load.cpus_free, load.memory_free = resources.nano_cpus, resources.memory_bytes
        load.generic_free = needs.counted(resources)
        load.names_free = needs.named(resources.generic)
        for task in self._state.tasks.where("node", load.node_id):
            if pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING:
                self._take(load, self.need_of(task.revision_id))
                for kind, names in needs.named(task.assigned_generic).items():
                    free = load.names_free.get(kind, [])
                    load.names_free[kind] = [name for name in free if name not in names]
        return load

    def of_service(self, service_id: str) -> dict[str, NodeLoad]:
        """The nodes on which the service has active tasks; counts these, and where they failed lately."""
        known = self._by_service.get(service_id)
        if known is not None:
            return known
        found = self._by_service[service_id] = {}
        for task in self._state.tasks.where("service", service_id):
            load = self.of(task.node_id) if task.node_id else None
            if load is None:
                continue
            state = task.status.state
            if pb.TASK_STATE_ASSIGNED <= state <= pb.TASK_STATE_RUNNING:
                if task.desired_state <= pb.TASK_STATE_COMPLETE:
                    load.services[service_id] = load.services.get(service_id, 0) + 1
                    found[task.node_id] = load
            elif state in {pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED}:
                status = task.status
                when = stamps.seconds(status.applied_at if status.HasField("applied_at") else status.timestamp)
                if when > self._oldest:
                    counts = self._failures.setdefault((service_id, task.revision_id), {})
                    counts[task.node_id] = counts.get(task.node_id, 0) + 1
        return found

    @staticmethod
    def _take(load: NodeLoad, need: needs.Needs) -> None:
        load.cpus_free -= need.nano_cpus
        load.memory_free -= need.memory_bytes
        for kind, count in need.generic:
            load.generic_free[kind] = load.generic_free.get(kind, 0) - count
        for port in need.ports:
            load.ports[port] = None

    def place(self, load: NodeLoad, service_id: str, need: needs.Needs) -> None:
        """Counts one more task there. `settle` must follow before the next `ascending`."""
        if need.takes_room:
            self._take(self.fill(load), need)
        load.total += 1
        self.of_service(service_id)[load.node_id] = load
        load.services[service_id] = load.services.get(service_id, 0) + 1

    def shift(self, load: NodeLoad, service_id: str, step: int) -> None:
        """Counts tasks of the service there, more or fewer, as if they had come or gone; what they take stays taken."""
        present = self.of_service(service_id)
        load.total += step
        load.services[service_id] = load.services.get(service_id, 0) + step
        if load.services[service_id] > 0:
            present[load.node_id] = load
        else:
            present.pop(load.node_id, None)
        self._trees.clear()  # their leaves only know nodes whose load grows
        self.settle({load.node_id: load})

    @staticmethod
    def claim(load: NodeLoad, need: needs.Needs) -> list[pb.GenericResource]:
        """Which generic resources a task that was placed there gets: by name where the node has names for them."""
        given: list[pb.GenericResource] = []
        for kind, count in need.generic:
            free = load.names_free.get(kind)
            if free is None:
                given.append(pb.GenericResource(discrete=pb.GenericResource.Discrete(kind=kind, value=count)))
                continue
            taken, load.names_free[kind] = free[:count], free[count:]
            given += [pb.GenericResource(named=pb.GenericResource.Named(kind=kind, value=name)) for name in taken]
        return given

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
            self._buckets.setdefault(load.total, {})[node_id] = None

    def ascending(self) -> Iterator[NodeLoad]:
        """The ready nodes, least loaded first. Nothing may be settled while this runs."""
        for total in sorted(self._buckets):
            for node_id in self._buckets[total]:
                yield self.at(node_id)

    def allowed(self, load: NodeLoad, need: needs.Needs) -> bool:
        """Whether the node satisfies what no placement changes (constraints, platform, plugins); remembered."""
        if not need.choosy:
            return True
        known = self._static.setdefault((need.wanted, need.platforms, need.plugins), {})
        answer = known.get(load.node_id)
        if answer is None:
            answer = known[load.node_id] = filters.allowed(load.node, need)
        return answer

    def tree(self, need: needs.Needs) -> "trees.Tree":
        """The nodes that the need allows, as branches of its spread preferences; made once for equal needs."""
        key = (need.wanted, need.platforms, need.plugins, need.spread)
        known = self._trees.get(key)
        if known is None:
            loads = [load for load in self.ascending() if self.allowed(load, need)]
            known = self._trees[key] = trees.Tree(loads, need.spread)
        return known

    def failing(self, kind: Kind) -> dict[str, int]:
        """Nodes on which tasks of this kind have failed too often lately, and how often."""
        self.of_service(kind[0])
        counts = self._failures.get(kind)
        if not counts:
            return {}
        return {node_id: count for node_id, count in counts.items() if count >= FAILURES_MAX}
