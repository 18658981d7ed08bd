"""Which task to move for a more even load, if any. Chooses; rebalance.py decides when, and acts.

A move pays when its two nodes differ by enough tasks: of the service, branch by branch of its spread preferences and
then node by node, or, where the service is even, of all services together. No move makes a service less even, so every
one of them brings the cluster nearer to a state in which none pays.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from manager.orchestrator import moves, tasks, update
from manager.scheduler import nodes, placing, trees
from manager.store import views
from skep import pb, stamps

_PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """One task and the node that is to have its successor."""

    service: pb.Service
    task: pb.Task
    source: nodes.NodeLoad
    target: nodes.NodeLoad
    of_all: bool  # the nodes differ by tasks of all services, not of this one
    difference: int

    @property
    def rank(self) -> tuple[bool, int]:
        """The smaller, the more it helps."""
        return self.of_all, -self.difference


class Evening:
    """The load of all nodes as it will be once the moves under way are done, and the moves that pay then."""

    def __init__(
        self, state: views.View, now: float, limits: pb.RebalanceLimits, under_way: Iterable[tuple[pb.Task, pb.Task]]
    ) -> None:
        """`under_way` are pairs of a task and its successor."""
        self._state = state
        self._now = now
        self._limits = limits
        self._ledger = nodes.Ledger(state, now, eager=False)
        self._moving: dict[str, None] = {}  # services
        self.old_enough_at: float | None = None  # when the next task may be moved that would be, but for its age
        self.updating = ""  # name of a service whose update is waited for
        for old, new in under_way:
            self._moving[new.service_id] = None
            self._count(old, new)

    def _count(self, old: pb.Task, new: pb.Task) -> None:
        source, target = self._ledger.of(old.node_id), self._ledger.of(new.node_id)
        if source is not None and tasks.runnable(old) and not tasks.ended(old):
            self._ledger.shift(source, old.service_id, -1)
        if target is not None and tasks.unassigned(new):
            self._place(target, new.service_id, new.revision_id)

    def _place(self, load: nodes.NodeLoad, service_id: str, revision_id: str) -> None:
        self._ledger.place(load, service_id, self._ledger.need_of(revision_id))
        self._ledger.settle({load.node_id: load})

    def choose(self, count: int) -> list[Move]:
        """Up to `count` moves, those first that help most; never two of the same service."""
        if count <= 0:
            return []
        found = [move for service in self._state.services if (move := self._of_service(service)) is not None]
        found.sort(key=lambda move: move.rank)
        chosen: list[Move] = []
        for candidate in found:
            # What was chosen before it may have changed the picture.
            move = self._of_service(candidate.service) if chosen else candidate
            if move is None:
                continue
            chosen.append(move)
            self._moving[move.service.id] = None
            self._ledger.shift(move.source, move.service.id, -1)
            self._place(move.target, move.service.id, move.service.revision_id)
            if len(chosen) == count:
                break
        return chosen

    # ---------------------------------------------------------------- one service

    def _of_service(self, service: pb.Service) -> Move | None:
        if service.id in self._moving or not self._movable(service):
            return None
        by_node = self._settled(service)
        if by_node is None:
            return None
        choice = _Choice(self._ledger, service, by_node)
        best: Move | None = None
        for sources in choice.sources():
            for source in sources:
                move, too_young = self._from(choice, source)
                if move is not None and (best is None or move.rank < best.rank):
                    best = move
                if not too_young:
                    break  # the others of this branch have fewer tasks, or as many and less to do in all
        return best

    def _from(self, choice: "_Choice", source: nodes.NodeLoad) -> tuple[Move | None, bool]:
        """The best move away from `source`, and whether one would pay if only a task were old enough."""
        gains = [(gain, target) for target in choice.targets(source)
                 if (gain := choice.gain(source, target, max(2, self._limits.min_benefit))) is not None]  # fmt: skip
        if not gains:
            return None, False
        task = self._old_enough(choice.by_node[source.node_id])
        if task is None:
            return None, True
        found = [Move(choice.service, task, source, target, *gain) for gain, target in gains]
        return min(found, key=lambda move: move.rank), False

    def _movable(self, service: pb.Service) -> bool:
        if update.in_progress(service):
            self.updating = self.updating or service.name
            return False
        spec = self._state.spec(service)
        return (
            spec.mode.WhichOneof("mode") == "replicated"
            and service.update_status.state not in _PAUSED
            and not moves.in_one_place(spec)
            and spec.task.restart.condition != pb.RESTART_CONDITION_NONE
        )

    def _settled(self, service: pb.Service) -> dict[str, list[pb.Task]] | None:
        """The service's tasks by node; None unless exactly the wished number of them run where they may stay."""
        by_node: dict[str, list[pb.Task]] = {}
        count = 0
        for task in self._state.tasks.where("service", service.id):
            if not tasks.runnable(task):
                continue
            if task.status.state != pb.TASK_STATE_RUNNING or task.desired_state != pb.TASK_STATE_RUNNING:
                return None
            load = self._ledger.of(task.node_id)
            if load is None or tasks.invalid(load.node):
                return None
            by_node.setdefault(task.node_id, []).append(task)
            count += 1
        mode = self._state.spec(service).mode.replicated
        wanted = mode.replicas if mode.HasField("replicas") else 1
        return by_node if count == wanted else None

    def _old_enough(self, found: Sequence[pb.Task]) -> pb.Task | None:
        """Of a node's tasks the youngest that may be moved."""
        age_s = stamps.from_nanos(self._limits.min_age)
        due = {task.id: tasks.ran_at(task) + age_s for task in found}
        able = [task for task in found if due[task.id] <= self._now]
        if able:
            return max(able, key=lambda task: (due[task.id], task.slot))
        at = min(due.values())
        self.old_enough_at = at if self.old_enough_at is None else min(self.old_enough_at, at)
        return None


class _Choice:
    """One service: which nodes could give a task, which could take it, and what that is worth."""

    def __init__(self, ledger: nodes.Ledger, service: pb.Service, by_node: Mapping[str, list[pb.Task]]) -> None:
        self.service = service
        self.by_node = by_node
        self._ledger = ledger
        kind = (service.id, service.revision_id)
        need = ledger.need_of(service.revision_id)
        self._group = placing.Group(ledger, kind)
        self._failing = ledger.failing(kind)
        self._tree = ledger.tree(need) if need.spread else None
        self._counts: dict[int, int] = {}  # tasks of the service by branch
        for node_id, found in by_node.items():
            for branch in self._path(node_id):
                self._counts[id(branch)] = self._counts.get(id(branch), 0) + len(found)
        self._anywhere = self._group.first() if self._tree is None else None

    def _path(self, node_id: str) -> Sequence[trees.Branch]:
        return () if self._tree is None else self._tree.paths.get(node_id, ())

    def sources(self) -> list[list[nodes.NodeLoad]]:
        """The nodes that could give a task, by the innermost branch, those with the most to give first."""
        branches: dict[int, list[nodes.NodeLoad]] = {}
        for node_id in self.by_node:
            load, path = self._ledger.at(node_id), self._path(node_id)
            if load.ready and (path or self._tree is None):
                branches.setdefault(id(path[-1]) if path else 0, []).append(load)
        for loads in branches.values():
            loads.sort(key=lambda load: (-len(self.by_node[load.node_id]), -load.total, load.order))
        return list(branches.values())

    def targets(self, source: nodes.NodeLoad) -> list[nodes.NodeLoad]:
        """The best node of the whole cluster, and of each branch that the source is in."""
        if self._tree is None:
            found = [self._anywhere]
        else:
            found = [self._group.first(branch) for branch in self._path(source.node_id)]
        return [load for load in found if load is not None and load.node_id not in self._failing]

    def gain(self, source: nodes.NodeLoad, target: nodes.NodeLoad, least: int) -> tuple[bool, int] | None:
        """(whether it is all services together that differ, by how many tasks); None when the move does not pay."""
        paths = zip(self._path(source.node_id), self._path(target.node_id), strict=False)
        apart = [(a, b) for a, b in paths if a is not b]
        steps = [self._counts.get(id(a), 0) - self._counts.get(id(b), 0) for a, b in apart[:1]]
        steps.append(source.services.get(self.service.id, 0) - target.services.get(self.service.id, 0))
        for difference in steps:
            if difference >= least:
                return False, difference
            if difference < 1:
                return None  # it would only be the other way round, or worse
        difference = source.total - target.total
        return (True, difference) if difference >= least else None
