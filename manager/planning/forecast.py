"""The forecast of a change: what it does to every task, decided by the very same deciders on a copy of the state.

Owns how a run on the copy is summed up. Decides nothing, and never touches the state it was asked about.
"""

import dataclasses
import enum
from collections.abc import Sequence

from manager import plan
from manager.orchestrator import dirty, tasks
from manager.planning import driver, fields
from manager.store import store, views
from skep import ids, pb, stamps, tasknames


class Action(enum.Enum):
    """What becomes of one slot."""

    KEPT = "kept"
    RESTARTED = "restarted"  # another task on the same node
    MOVED = "moved"  # another task on another node
    NEW = "new"
    REMOVED = "removed"
    LOST = "lost"  # stays on a node that is gone, until the node returns
    HELD = "held"  # ought to be replaced, but the update does not come that far
    INFEASIBLE = "infeasible"  # no node takes the new task; one that is there may stay


class Verdict(enum.Enum):
    """The forecast in a word."""

    NOTHING = "nothing"
    CHANGES = "changes"
    INFEASIBLE = "infeasible"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """One slot before and after."""

    service_id: str
    slot: int
    place: str  # the slot as people write it, or the node
    action: Action
    task_id: str = ""  # the task there now
    source: str = ""  # its node's ID
    target: str = ""  # ID of the node of the task there afterwards
    reason: str = ""  # why it is infeasible or held


@dataclasses.dataclass(slots=True)
class ServiceForecast:
    """What becomes of one service."""

    id: str
    name: str
    outcomes: list[Outcome]
    running: int = 0  # tasks that run now
    running_least: int = 0  # the fewest that run on the way
    status: pb.UpdateStatus | None = None  # where its update ends, when there is one

    def count(self, action: Action) -> int:
        """How many slots meet with `action`."""
        return sum(outcome.action is action for outcome in self.outcomes)


@dataclasses.dataclass(slots=True)
class Forecast:
    """What a change would do."""

    services: list[ServiceForecast]  # those that the change is about, and all others that it touches
    fields: list[fields.Field]
    node_names: dict[str, str]
    node_tasks: dict[str, tuple[int, int]]  # tasks wished there before and after
    took_s: float  # delays and monitoring; pulling, starting and stopping take no time here
    at_rest: bool  # nothing else was going on
    complete: bool  # False: too much to compute, the rest is not known
    notes: list[str] = dataclasses.field(default_factory=list)
    impossible: bool = False  # for a reason that is not one task's

    @property
    def verdict(self) -> Verdict:
        """The forecast in a word."""
        outcomes = [outcome for service in self.services for outcome in service.outcomes]
        if self.impossible or any(outcome.action is Action.INFEASIBLE for outcome in outcomes):
            return Verdict.INFEASIBLE
        if self.fields or any(outcome.action is not Action.KEPT for outcome in outcomes):
            return Verdict.CHANGES
        return Verdict.NOTHING


def simulate(
    base: store.Store, change: Sequence[pb.Op], *, now: float, rng: ids.Rng, deciders: Sequence[plan.Decider]
) -> Forecast:
    """What `change` would do to `base`, which is left alone (and must not change meanwhile).

    On a cluster where nothing else happens, applying the change has this outcome, nodes included. Raises what
    applying the change raises.
    """
    before = _Picture(base.view())
    idle = driver.Driver(base.copy(), deciders, now=now, rng=rng)
    idle.run()
    at_rest = not idle.active
    run = idle if at_rest and idle.now == now else driver.Driver(base.copy(), deciders, now=now, rng=rng)
    if change:
        run.apply(change)
    running = _Running(run.store)
    run.observe = running.look
    run.run()
    after = _Picture(run.store.view())
    known = {} if at_rest else _by_slot(_outcomes(before, _Picture(idle.store.view()), targets={}, stuck=idle.stuck))
    targets = _services_in(change)
    forecast = Forecast(
        services=[],
        fields=_fields(before.view, after.view, change),
        node_names=before.node_names | after.node_names,
        node_tasks=_node_tasks(before, after),
        took_s=run.took_s,
        at_rest=at_rest,
        complete=run.complete,
    )
    found = _outcomes(before, after, targets=targets, stuck=run.stuck)
    for service_id, outcomes in found.items():
        # What would happen anyway is not this change's doing.
        own = [
            each
            for each in outcomes
            if service_id in targets or known.get((service_id, each.slot, each.source)) != each
        ]
        if service_id in targets or any(each.action is not Action.KEPT for each in own):
            forecast.services.append(_sum_up(service_id, own, before, after, running))
    forecast.services.sort(key=lambda service: (service.id not in targets, service.name))
    _annotate(forecast, before.view)
    return forecast


def _annotate(forecast: Forecast, view: views.View) -> None:
    if not forecast.at_rest:
        forecast.notes.append("other changes are under way: what they do on the way may change this plan")
    if not forecast.complete:
        forecast.notes.append("this takes too long to work out in full: what is marked as held is not decided yet")
    unheard = sum(node.status.state == pb.NODE_STATE_UNKNOWN for node in view.nodes)
    if unheard:
        nodes = "1 node has" if unheard == 1 else f"{unheard} nodes have"
        forecast.notes.append(f"{nodes} not been heard from yet: no task is placed there")


def _services_in(change: Sequence[pb.Op]) -> dict[str, None]:
    return {op.object.service.id: None for op in change if op.object.WhichOneof("kind") == "service"}


def _fields(before: views.View, after: views.View, change: Sequence[pb.Op]) -> list[fields.Field]:
    found: list[fields.Field] = []
    for op in change:
        match op.object.WhichOneof("kind"):
            case "service":
                old, new = before.services.get(op.object.service.id), op.object.service
                written = after.revisions.get(new.revision_id)
                found += fields.difference(
                    None if old is None else before.spec(old), None if written is None else written.spec
                )
            case "node":
                node = before.nodes.get(op.object.node.id)
                if node is not None:
                    for each in fields.difference(node.spec, op.object.node.spec):
                        found.append(dataclasses.replace(each, node=tasknames.node(node)))
            case _:
                pass
    return found


# ------------------------------------------------------------------ before and after


class _Picture:
    """Who is wished where, at one moment."""

    def __init__(self, view: views.View) -> None:
        self.view = view
        self.node_names = {node.id: node.description.hostname or node.spec.name or node.id for node in view.nodes}
        self.ready = {node.id: None for node in view.nodes if node.status.state == pb.NODE_STATE_READY}
        self.slots: dict[str, dict[str, list[pb.Task]]] = {}  # by service, then slot
        for task in view.tasks:
            if tasks.runnable(task) and (not tasks.ended(task) or _done(task)):
                self.slots.setdefault(task.service_id, {}).setdefault(tasks.slot_key(task), []).append(task)


def _done(task: pb.Task) -> bool:
    """Whether a job's task has done its work: it stands for its slot as a running one does."""
    return task.status.state == pb.TASK_STATE_COMPLETE and task.HasField("job_iteration")


def _placed(task: pb.Task) -> bool:
    return not tasks.unassigned(task)


def _node_tasks(before: _Picture, after: _Picture) -> dict[str, tuple[int, int]]:
    counts: dict[str, list[int]] = {node_id: [0, 0] for node_id in before.node_names | after.node_names}
    for position, picture in enumerate((before, after)):
        for slots in picture.slots.values():
            for found in slots.values():
                for task in found:
                    if _placed(task) and task.node_id in counts:
                        counts[task.node_id][position] += 1
    return {node_id: (old, new) for node_id, (old, new) in counts.items()}


def _outcomes(
    before: _Picture, after: _Picture, *, targets: dict[str, None], stuck: dict[str, tuple[str, str]]
) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for service_id in dict.fromkeys([*before.slots, *after.slots, *targets]):
        old, new = before.slots.get(service_id, {}), after.slots.get(service_id, {})
        service = after.view.services.get(service_id)
        comparison = dirty.Comparison(after.view, service) if service is not None and service_id in targets else None
        outcomes = []
        for key in dict.fromkeys([*old, *new]):
            outcome = _Slot(before, after, old.get(key, []), new.get(key, []), comparison, stuck.get(key)).outcome()
            if outcome is not None:
                outcomes.append(outcome)
        outcomes.sort(key=lambda each: (each.slot, each.source or each.target))
        found[service_id] = outcomes
    return found


def _by_slot(found: dict[str, list[Outcome]]) -> dict[tuple[str, int, str], Outcome]:
    return {(each.service_id, each.slot, each.source): each for outcomes in found.values() for each in outcomes}


class _Slot:
    """One slot in both pictures."""

    def __init__(
        self,
        before: _Picture,
        after: _Picture,
        old: list[pb.Task],
        new: list[pb.Task],
        comparison: dirty.Comparison | None,
        stuck: tuple[str, str] | None,
    ) -> None:
        self._before, self._after = before, after
        self._old, self._new = old, new
        self._comparison = comparison
        self._stuck = stuck

    def outcome(self) -> Outcome | None:
        """What becomes of the slot; None when there is nothing to tell."""
        known = {task.id: task for task in self._old}
        here = next((task for task in self._old if task.status.state == pb.TASK_STATE_RUNNING), None)
        here = here or (self._old[-1] if self._old else None)
        waiting = next((task for task in self._new if not _placed(task)), None)
        if waiting is not None:
            if self._comparison is None and waiting.id in known:
                return None  # it waits now as well
            # What it was to replace may well run on.
            staying = next((task for task in self._new if _placed(task)), waiting)
            return self._of(here, staying, Action.INFEASIBLE, waiting.status.err or "waits")
        if not self._new:
            return None if here is None else self._of(here, None, Action.REMOVED)
        kept = next((task for task in reversed(self._new) if task.id in known and _placed(known[task.id])), None)
        if kept is not None:
            if self._stuck is not None and self._stuck[0] not in known:
                # Its successor had no place, and was given up.
                return self._of(kept, kept, Action.INFEASIBLE, self._stuck[1])
            if self._comparison is not None and not _done(kept) and self._comparison.dirty(kept):
                return self._of(kept, kept, Action.HELD, "the update does not come that far")
            lost = kept.node_id in self._before.ready and kept.node_id not in self._after.ready
            return self._of(kept, kept, Action.LOST if lost else Action.KEPT)
        there = self._new[-1]
        if here is None or not _placed(here):
            return self._of(here, there, Action.NEW)
        return self._of(here, there, Action.RESTARTED if here.node_id == there.node_id else Action.MOVED)

    @staticmethod
    def _of(here: pb.Task | None, there: pb.Task | None, action: Action, reason: str = "") -> Outcome:
        some = here or there
        assert some is not None
        return Outcome(
            service_id=some.service_id,
            slot=some.slot,
            place=tasknames.place(some),
            action=action,
            task_id="" if here is None else here.id,
            source="" if here is None else here.node_id,
            target=there.node_id if there is not None and (_placed(there) or there.slot == 0) else "",
            reason=reason,
        )


# ------------------------------------------------------------------ on the way


class _Running:
    """How many tasks of each service run, and how few at worst."""

    def __init__(self, target: store.Store) -> None:
        self._watch = target.watch(("task",), lambda: None, limit=driver.WATCH_MAX)
        view = target.view()
        self._ready = {node.id: None for node in view.nodes if node.status.state == pb.NODE_STATE_READY}
        self._now: dict[str, int] = {}
        for task in view.tasks:
            if self._runs(task):
                self._now[task.service_id] = self._now.get(task.service_id, 0) + 1
        self.least = dict(self._now)

    def _runs(self, task: object) -> bool:
        return isinstance(task, pb.Task) and task.status.state == pb.TASK_STATE_RUNNING and task.node_id in self._ready

    def look(self) -> None:
        """Counts what has changed since the last call."""
        touched: dict[str, None] = {}
        for change in self._watch.take():
            row = change.new or change.old
            assert isinstance(row, pb.Task)
            step = self._runs(change.new) - self._runs(change.old)
            if step:
                self._now[row.service_id] = self._now.get(row.service_id, 0) + step
                touched[row.service_id] = None
        for service_id in touched:
            self.least[service_id] = min(self.least.get(service_id, 0), self._now[service_id])


def _worded(status: pb.UpdateStatus, after: _Picture) -> pb.UpdateStatus:
    """The status with the names of tasks in place of IDs: those of tasks that only the forecast knows mean nothing."""
    worded = pb.UpdateStatus()
    worded.CopyFrom(status)
    for word in status.message.replace(":", " ").split():
        task = after.view.tasks.get(word)
        if task is not None:
            worded.message = worded.message.replace(word, f"{task.service_name}.{tasknames.place(task)}")
    return worded


def _sum_up(
    service_id: str, outcomes: list[Outcome], before: _Picture, after: _Picture, running: _Running
) -> ServiceForecast:
    service = after.view.services.get(service_id) or before.view.services.get(service_id)
    old = before.view.services.get(service_id)
    status = None
    if service is not None and service.HasField("update_status"):
        started = stamps.seconds(service.update_status.started_at)
        if old is None or stamps.seconds(old.update_status.started_at) != started:
            status = _worded(service.update_status, after)
    return ServiceForecast(
        id=service_id,
        name=service.name if service is not None else service_id,
        outcomes=outcomes,
        running=sum(
            task.status.state == pb.TASK_STATE_RUNNING and task.node_id in before.ready
            for task in before.view.tasks.where("service", service_id)
        ),
        running_least=running.least.get(service_id, 0),
        status=status,
    )
