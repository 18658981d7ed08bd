"""Distributes a group of alike tasks over the nodes, level by level.

A node is better the fewer recent failures of these tasks it has (from five on), the fewer tasks of the service it runs,
and the fewer tasks it runs in all. Nodes without any task of the service are taken straight from the ledger's order;
only those with some need a heap, so a group costs what it touches and not what the cluster has.
"""

import heapq
from collections.abc import Iterable, Iterator

from manager.scheduler import filters, needs, nodes, trees

Rank = tuple[int, int, int, int]


class Group:
    """Alike tasks of one service, to be placed now."""

    def __init__(self, ledger: nodes.Ledger, kind: nodes.Kind) -> None:
        self._ledger = ledger
        self._service_id, revision_id = kind
        self._need = ledger.need_of(revision_id)
        self._failing = ledger.failing(kind)
        self._borrowed: list[tuple[trees.Branch, nodes.NodeLoad]] = []

    def place(self, count: int) -> list[nodes.NodeLoad]:
        """Nodes for up to `count` tasks, in order of preference; fewer when there is no room for all."""
        if self._need.unreadable:
            return []
        choices = self._by_preference() if self._need.spread else self._by_load()
        chosen: list[nodes.NodeLoad] = []
        place, service_id, need = self._ledger.place, self._service_id, self._need
        for load in choices:
            place(load, service_id, need)
            chosen.append(load)
            if len(chosen) == count:
                break
        self._ledger.settle({load.node_id: load for load in chosen})
        for leaf, load in self._borrowed:
            trees.put_back(leaf, load)
        return chosen

    def first(self, branch: trees.Branch | None = None) -> nodes.NodeLoad | None:
        """The node that one more task would get, below `branch` of the preference tree if given. Nothing is placed."""
        if self._need.unreadable:
            return None
        choices = self._by_preference(branch) if self._need.spread else self._by_load()
        found = next(choices, None)
        for leaf, load in self._borrowed:
            trees.put_back(leaf, load)
        self._borrowed.clear()
        return found

    def _fits(self, load: nodes.NodeLoad) -> bool:
        ledger, need = self._ledger, self._need
        if need.choosy and not ledger.allowed(load, need):
            return False
        return not need.takes_room or filters.room(ledger.fill(load), self._service_id, need)

    def _rank(self, load: nodes.NodeLoad) -> Rank:
        failures = self._failing.get(load.node_id, 0)
        return failures, load.services.get(self._service_id, 0), load.total, load.order

    # Each yielded node has got its task by the time the generator goes on.

    def _by_load(self) -> Iterator[nodes.NodeLoad]:
        known = dict(self._ledger.of_service(self._service_id))
        for node_id in self._failing:
            known[node_id] = self._ledger.at(node_id)
        second: list[nodes.NodeLoad] = [load for load in known.values() if load.ready]
        for load in self._ledger.ascending():
            if load.node_id not in known and self._fits(load):
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

    def _by_preference(self, below: trees.Branch | None = None) -> Iterator[nodes.NodeLoad]:
        tree = self._ledger.tree(self._need)
        known: dict[int, list[nodes.NodeLoad]] = {}  # by leaf: the nodes to be ranked instead of taken as they come
        counts: dict[int, int] = {}
        present = self._ledger.of_service(self._service_id)
        for node_id in dict.fromkeys([*present, *self._failing]):
            load, path = self._ledger.at(node_id), tree.paths.get(node_id, ())
            for branch in path:
                counts[id(branch)] = counts.get(id(branch), 0) + load.services.get(self._service_id, 0)
            if path:
                known.setdefault(id(path[-1]), []).append(load)
        return self._branch(below or tree.root, counts, known).walk()

    def _branch(
        self, branch: trees.Branch, counts: dict[int, int], known: dict[int, list[nodes.NodeLoad]]
    ) -> "_Branch":
        count = counts.get(id(branch), 0)
        if not branch.children:
            return _Branch(count, self._leaf(branch, known.get(id(branch), [])), [])
        return _Branch(count, None, [self._branch(child, counts, known) for child in branch.children])

    def _leaf(self, leaf: trees.Branch, known: list[nodes.NodeLoad]) -> Iterator[nodes.NodeLoad]:
        """As `_by_load`, for the nodes of one leaf."""
        ranked = {load.node_id: None for load in known}
        second = list(known)
        while (load := trees.least_loaded(leaf)) is not None:
            self._borrowed.append((leaf, load))
            if load.node_id not in ranked and self._fits(load):
                yield load
                second.append(load)
        yield from self._level(second)


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
    if not load.ready or need.unreadable or not ledger.allowed(load, need):
        return False
    ledger.of_service(service_id)
    return filters.room(ledger.fill(load), service_id, need)
