"""Nodes as a tree of the values that spread preferences name. One tree serves all services with the same preferences.

It holds no count of any service: that differs from group to group. Its leaves keep their nodes ordered by load.
"""

import dataclasses
import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

from manager.scheduler import constraints

if TYPE_CHECKING:
    from manager.scheduler import nodes


@dataclasses.dataclass(slots=True, eq=False)
class Branch:
    """One value of a label, and either the branches below it or, at the bottom, the nodes that have it."""

    children: "list[Branch]" = dataclasses.field(default_factory=list)
    heap: "list[tuple[int, int, nodes.NodeLoad]]" = dataclasses.field(default_factory=list)  # total, order


class Tree:
    """The branches, and for each node the way down to it."""

    def __init__(self, loads: "Sequence[nodes.NodeLoad]", descriptors: Sequence[str]) -> None:
        self.paths: dict[str, tuple[Branch, ...]] = {}
        self.root = self._branch(loads, descriptors, ())

    def _branch(
        self, loads: "Sequence[nodes.NodeLoad]", descriptors: Sequence[str], above: tuple[Branch, ...]
    ) -> Branch:
        branch = Branch()
        path = (*above, branch)
        if not descriptors:
            branch.heap = [(load.total, load.order, load) for load in loads]
            heapq.heapify(branch.heap)
            self.paths.update(dict.fromkeys((load.node_id for load in loads), path))
            return branch
        by_value: dict[str, list[nodes.NodeLoad]] = {}
        for load in loads:  # nodes without the label are a branch of their own
            by_value.setdefault(constraints.attribute(descriptors[0], load.node) or "", []).append(load)
        branch.children = [self._branch(by_value[value], descriptors[1:], path) for value in sorted(by_value)]
        return branch


def least_loaded(branch: Branch) -> "nodes.NodeLoad | None":
    """Takes the least loaded node out of a leaf; `put_back` must follow. Loads only grow while a tree lives."""
    heap = branch.heap
    while heap:
        total, order, load = heap[0]
        if load.total == total:
            heapq.heappop(heap)
            return load
        heapq.heapreplace(heap, (load.total, order, load))
    return None


def put_back(branch: Branch, load: "nodes.NodeLoad") -> None:
    """Files the node under its load as it is now."""
    heapq.heappush(branch.heap, (load.total, load.order, load))
