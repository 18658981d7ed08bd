"""Distributes a group of alike tasks over the nodes, level by level.

A node is better the fewer recent failures of these tasks it has (from five on), the fewer tasks of the service it runs,
and the fewer tasks it runs in all. Nodes without any task of the service are taken straight from the ledger's order;
only those with some need a heap, so a group costs what it touches and not what the cluster has.
"""

import heapq
from collections.abc import Iterable, Iterator

from manager.scheduler import constraints, filters, needs, nodes

Rank = tuple[int, int, int, int]


class Group:
    """Alike tasks of one service, to be placed now."""

    def __init__(self, ledger: nodes.Ledger, kind: nodes.Kind) -> None:
        self._ledger = ledger
        self._service_id, revision_id = kind
        self._need = ledger.need_of(revision_id)
        self._failing = ledger.failing(kind)

    def place(self, count: int) -> list[nodes.NodeLoad]:
        """Nodes for up to `count` tasks, in order of preference; fewer when there is no room for all."""
        if self._need.unreadable:
            return []
        choices = self._by_preference() if self._need.spread else self._by_load()
        chosen: list[nodes.NodeLoad] = []
        touched: dict[str, nodes.NodeLoad] = {}
        for load in choices:
            self._ledger.place(load, self._service_id, self._need)
            chosen.append(load)
            touched[load.node.id] = load
            if len(chosen) == count:
                break
        self._ledger.settle(touched)
        return chosen

    def _fits(self, load: nodes.NodeLoad) -> bool:
        return filters.room(load, self._service_id, self._need) and self._ledger.allowed(load, self._need)

    def _rank(self, load: nodes.NodeLoad) -> Rank:
        failures = self._failing.get(load.node.id, 0)
        return failures, load.services.get(self._service_id, 0), load.total, load.order

    # Each yielded node has got its task by the time the generator goes on.

    def _by_load(self) -> Iterator[nodes.NodeLoad]:
        known = dict(self._ledger.by_service.get(self._service_id, {}))
        for node_id in self._failing:
            known[node_id] = self._ledger.all[node_id]
        second: list[nodes.NodeLoad] = [load for load in known.values() if load.ready]
        for load in self._ledger.ascending():
            if load.node.id not in known and self._fits(load):
                yield load
                second.append(load)
        yield from self._level(second)

    def _level(self, loads: Iterable[nodes.NodeLoad]) -> Iterator[nodes.NodeLoad]:
        """Always the best of `loads` that still has room."""
        heap = [(self._rank(load), load) for load in loads]
        heapq.heapify(heap)
        while heap:
            load = heap[0][1]
            if not self._fits(load):
                heapq.heappop(heap)
                continue
            yield load
            heapq.heapreplace(heap, (self._rank(load), load))

    def _by_preference(self) -> Iterator[nodes.NodeLoad]:
        loads = [load for load in self._ledger.ascending() if self._ledger.allowed(load, self._need)]
        return self._branch(loads, self._need.spread).walk()

    def _branch(self, loads: list[nodes.NodeLoad], descriptors: tuple[str, ...]) -> "_Branch":
        count = sum(load.services.get(self._service_id, 0) for load in loads)
        if not descriptors:
            return _Branch(count, self._level(loads), [])
        by_value: dict[str, list[nodes.NodeLoad]] = {}
        for load in loads:
            value = constraints.attribute(descriptors[0], load.node) or ""
            by_value.setdefault(value, []).append(load)
        return _Branch(count, None, [self._branch(by_value[value], descriptors[1:]) for value in sorted(by_value)])


class _Branch:
    """A node of the preference tree: the tasks of the service below it are kept even among its branches."""

    def __init__(self, count: int, leaf: Iterator[nodes.NodeLoad] | None, children: list["_Branch"]) -> None:
        self.count = count
        self._leaf = leaf
        self._heap = [(child.count, position, child) for position, child in enumerate(children)]
        heapq.heapify(self._heap)

    def walk(self) -> Iterator[nodes.NodeLoad]:
        """Always a node from the branch that has the fewest tasks and still has room."""
        while (load := self._take()) is not None:
            yield load

    def _take(self) -> nodes.NodeLoad | None:
        if self._leaf is not None:
            load = next(self._leaf, None)
            if load is not None:
                self.count += 1
            return load
        while self._heap:
            _, position, child = self._heap[0]
            load = child._take()
            if load is None:
                heapq.heappop(self._heap)
                continue
            heapq.heapreplace(self._heap, (child.count, position, child))
            self.count += 1
            return load
        return None


def fits(ledger: nodes.Ledger, load: nodes.NodeLoad, service_id: str, need: needs.Needs) -> bool:
    """Whether one given node would take a task, for tasks that come with a node."""
    return load.ready and not need.unreadable and filters.room(load, service_id, need) and ledger.allowed(load, need)
