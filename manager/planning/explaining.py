"""Why things are as they are: what a task, a service or a node waits for, and which node fails which rule.

Owns the words of `skep explain`. The facts come from the scheduler's ledger and filters and from the deciders.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from manager import plan
from manager.orchestrator import dirty, starting, tasks
from manager.planning import rules
from manager.scheduler import explain, needs, nodes
from manager.store import views
from skep import ids, jsonmap, pb, stamps, tasknames

TASKS_MAX = 200  # waiting tasks that are explained one by one
_PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)
_UNDER_WAY = (pb.UPDATE_STATE_UPDATING, pb.UPDATE_STATE_ROLLBACK_STARTED)


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """Something that is waited for."""

    subject: str  # name of the task, service or node that waits
    reason: str
    until: float | None = None  # epoch seconds, when that is known


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One node's answer."""

    node_id: str
    name: str
    failing: list[rules.Failing]
    service_tasks: int  # of the service, wished there
    tasks: int  # of all services
    here: bool = False  # the task is there


@dataclasses.dataclass(slots=True)
class Explanation:
    """The answer to one question."""

    kind: str
    id: str
    name: str
    summary: str
    waits: list[Wait] = dataclasses.field(default_factory=list)
    nodes: list[Verdict] = dataclasses.field(default_factory=list)
    fix: str = ""
    why_not: str = ""


class Explainer:
    """Answers questions about one moment."""

    def __init__(self, state: views.View, *, now: float, rng: ids.Rng, deciders: Sequence[plan.Decider]) -> None:
        self._state = state
        self._now = now
        self._rng = rng
        self._deciders = deciders
        self._ledger = nodes.Ledger(state, now)

    # ---------------------------------------------------------------- the three questions

    def task(self, task: pb.Task, *, why_not: pb.Node | None = None) -> Explanation:
        """Why the task is where it is, or is not."""
        found = Explanation("task", task.id, _name(task), self._summary(task), waits=self._waits(task))
        need = self._ledger.need_of(task.revision_id)
        found.nodes = self._verdicts(task.service_id, need, task)
        if tasks.runnable(task) and not tasks.ended(task) and tasks.unassigned(task):
            wanted = [each for each in found.nodes if not task.node_id or each.node_id == task.node_id]
            found.fix = _fix(wanted)
        if why_not is not None:
            found.why_not = self._why_not(found, why_not, task)
        return found

    def service(self, service: pb.Service, *, why_not: pb.Node | None = None) -> Explanation:
        """What the service waits for, and which nodes would take one more of its tasks."""
        wished = [
            task
            for task in self._state.tasks.where("service", service.id)
            if tasks.runnable(task) and not tasks.ended(task)
        ]
        running = sum(task.status.state == pb.TASK_STATE_RUNNING for task in wished)
        unplaced = [task for task in wished if tasks.unassigned(task)]
        words = f"{running} of {len(wished)} wished tasks run"
        if unplaced:
            words += f"; {len(unplaced)} have no node: {self._summary(unplaced[0])}"
        found = Explanation("service", service.id, service.name, words, waits=self._service_waits(service))
        for task in wished[:TASKS_MAX]:
            found.waits += self._waits(task)
        found.nodes = self._verdicts(service.id, self._ledger.need_of(service.revision_id), None)
        if unplaced:
            found.fix = _fix(found.nodes)
        if why_not is not None:
            found.why_not = self._why_not(found, why_not, None)
        return found

    def node(self, node: pb.Node) -> Explanation:
        """What the node waits for, and which waiting tasks it turns away."""
        load = self._ledger.at(node.id)
        present = [task for task in self._state.tasks.where("node", node.id) if not tasks.ended(task)]
        state = jsonmap.word_of(pb.NodeState, node.status.state)
        availability = jsonmap.word_of(pb.NodeAvailability, node.spec.availability)
        wrong = "".join(f", {each.summary}: {each.message}" for each in node.description.conditions)
        words = f"{state}, {availability}, {len(present)} tasks{wrong}"
        found = Explanation("node", node.id, load.name, words)
        leaving = tasks.invalid(node)
        for task in present[:TASKS_MAX]:
            found.waits += self._waits(task)
            if leaving and tasks.runnable(task):
                found.waits.append(Wait(_name(task), f"a place elsewhere, before it leaves {load.name}"))
        for task in self._waiting_kinds():
            need = self._ledger.need_of(task.revision_id)
            failed = rules.failing(self._state, load, task.service_id, need)
            if failed:
                why = "; ".join(each.text for each in failed)
                found.waits.append(Wait(_name(task), f"a node; not here: {why}"))
                found.nodes.append(self._verdict(load, task.service_id, failed))
        found.fix = _fix(found.nodes)
        return found

    def _waiting_kinds(self) -> Iterable[pb.Task]:
        """One task of each kind that waits for a node."""
        kinds: dict[nodes.Kind, pb.Task] = {}
        for task in self._state.tasks.where("state", str(pb.TASK_STATE_PENDING)):
            if tasks.runnable(task):
                kinds.setdefault((task.service_id, task.revision_id), task)
        return list(kinds.values())[:TASKS_MAX]

    # ---------------------------------------------------------------- nodes

    def _verdicts(self, service_id: str, need: needs.Needs, task: pb.Task | None) -> list[Verdict]:
        found: list[Verdict] = []
        for load in self._ledger.all():
            here = task is not None and task.node_id == load.node_id and not tasks.unassigned(task)
            # Where it is, it would only be in its own way.
            failed = [] if here else rules.failing(self._state, load, service_id, need)
            found.append(self._verdict(load, service_id, failed, here=here))
        return found

    @staticmethod
    def _verdict(load: nodes.NodeLoad, service_id: str, failed: list[rules.Failing], *, here: bool = False) -> Verdict:
        return Verdict(load.node_id, load.name, failed, load.services.get(service_id, 0), load.total, here)

    def _why_not(self, found: Explanation, node: pb.Node, task: pb.Task | None) -> str:
        verdict = next(each for each in found.nodes if each.node_id == node.id)
        found.nodes = [verdict]
        found.fix = _fix(found.nodes)
        if verdict.here:
            return f"{found.name} is on {verdict.name}"
        if verdict.failing:
            return f"{verdict.name} does not take it: " + "; ".join(each.text for each in verdict.failing)
        words = f"{verdict.name} would take it now"
        load = None if task is None else self._ledger.of(task.node_id)
        if task is None or load is None:
            return f"{words}: it has {verdict.service_tasks} tasks of the service and {verdict.tasks} in all"
        return (
            f"{words}. {load.name} was better when the task was placed: nodes with fewer tasks of the service come "
            f"first, then those with fewer tasks in all. Today {verdict.name} has {verdict.service_tasks} and "
            f"{verdict.tasks}, {load.name} has {load.services.get(task.service_id, 0)} and {load.total}; what runs "
            "is only moved when 'skep rebalance' is asked for"
        )

    # ---------------------------------------------------------------- tasks

    def _node_name(self, node_id: str) -> str:
        load = self._ledger.of(node_id)
        return node_id if load is None else load.name

    def _summary(self, task: pb.Task) -> str:
        where = self._node_name(task.node_id)
        state = jsonmap.word_of(pb.TaskState, task.status.state)
        if tasks.ended(task):
            because = f": {task.status.err}" if task.status.err else ""
            return f"{state} on {where}{because}" if task.node_id else f"{state}{because}"
        if not tasks.runnable(task):
            return f"{state} on {where}, told to stop" if task.node_id else "removed before it had a node"
        if task.status.state == pb.TASK_STATE_PENDING:
            need = self._ledger.need_of(task.revision_id)
            if task.node_id:
                load = self._ledger.of(task.node_id)
                loads: list[nodes.NodeLoad] = [] if load is None else [load]
            else:
                loads = self._ledger.all()
            if any(not rules.failing(self._state, load, task.service_id, need) for load in loads):
                return "about to be given a node"
            return explain.unplaced(loads, task.service_id, need)
        if tasks.unassigned(task):
            return "created, not yet ready for a node"
        return f"{state} on {where}" + (f": {task.status.err}" if task.status.err else "")

    def _waits(self, task: pb.Task) -> list[Wait]:
        """What this task waits for."""
        name = _name(task)
        if tasks.ended(task):
            return []
        node = self._state.nodes.get(task.node_id)
        if task.node_id and tasks.lost(node) and not tasks.unassigned(task):
            words = f"{self._node_name(task.node_id)} to come back: it is down, nothing can be said of the task"
            return [Wait(name, words)]
        if not tasks.runnable(task):
            return [Wait(name, f"its stop on {self._node_name(task.node_id)}")] if task.node_id else []
        if task.desired_state == pb.TASK_STATE_READY:
            found = self._before_start(task, name)
            if found:
                return found
        if task.status.state == pb.TASK_STATE_PENDING:
            return [Wait(name, "a node")]
        if tasks.unassigned(task):
            return [Wait(name, "what it needs before a node can be chosen")]
        if task.status.state < pb.TASK_STATE_RUNNING and task.desired_state > pb.TASK_STATE_READY:
            state = jsonmap.word_of(pb.TaskState, task.status.state)
            return [Wait(name, f"{self._node_name(task.node_id)}, where it is {state}")]
        return []

    def _before_start(self, task: pb.Task, name: str) -> list[Wait]:
        found: list[Wait] = []
        due = stamps.seconds(task.not_before)
        if due > self._now:
            looping = f", after {task.failures} failures in a row" if task.failures > 1 else ""
            found.append(Wait(name, f"its restart delay{looping}", due))
        for other in self._state.tasks.where("slot", tasks.slot_key(task)):
            if other.id != task.replaces or tasks.ended(other) or tasks.lost(self._state.nodes.get(other.node_id)):
                continue
            words = f"task {other.id} on {self._node_name(other.node_id)}, which it replaces, to stop"
            # One that has not been told to may stop whenever its successor is ready to take over.
            told_at = max(tasks.created_at(task), stamps.seconds(other.updated_at))
            found.append(Wait(name, words, None if tasks.runnable(other) else told_at + starting.PATIENCE_S))
        return found

    # ---------------------------------------------------------------- services

    def _service_waits(self, service: pb.Service) -> list[Wait]:
        status = service.update_status
        if status.state in _PAUSED:
            return [Wait(service.name, f"you: {status.message}; update it again, or roll it back")]
        if status.state not in _UNDER_WAY:
            return []
        comparison = dirty.Comparison(self._state, service)
        wished = [task for task in self._state.tasks.where("service", service.id) if tasks.runnable(task)]
        outdated = sum(comparison.dirty(task) for task in wished)
        words = f"its update: {len(wished) - outdated} of {len(wished)} tasks are up to date"
        due = self._due(service.id)
        if due is not None:
            words += ", then its delay or monitoring goes on"
        return [Wait(service.name, words, due)]

    def _due(self, service_id: str) -> float | None:
        """When a decider has asked to look at the service again."""
        times: list[float] = []
        for decider in self._deciders:
            if "service" in decider.kinds and decider.name not in {"reaper"}:
                result = decider.decide(self._state, self._now, self._rng, frozenset({service_id}))
                if service_id in result.wake_keys:
                    times.append(result.wake_keys[service_id])
        return min(times, default=None)


def _name(task: pb.Task) -> str:
    return f"{task.service_name}.{tasknames.place(task)}"


def _fix(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "add a node: 'skep token worker' shows how"
    if any(not each.failing for each in verdicts):
        return ""
    return rules.nearest([(each.name, each.failing) for each in verdicts])
