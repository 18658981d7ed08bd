"""What a drain cannot move without a gap, why, and how long the gap is to be expected. Pure.

Looks at the state as it is once the nodes are marked; decides nothing. The rules are those of the deciders: moves.py
says what must not be in two places, the scheduler's own filters say what has a place elsewhere.
"""

import dataclasses
from collections.abc import Iterable

from manager.orchestrator import moves, tasks
from manager.scheduler import explain, nodes, placing
from manager.store import views
from skep import durations, pb, policies, stamps, tasknames

STOP_GRACE_DEFAULT_S = policies.STOP_GRACE_DEFAULT_S


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """One task that does not move without a gap."""

    task: pb.Task
    name: str
    node_id: str
    why: str
    expected: str  # the gap, for people
    expected_s: float | None  # at most, as far as it is known; None: nobody can tell


def of(state: views.View, drained: Iterable[pb.Node]) -> list[Gap]:
    """The gaps of draining these nodes, the worst first."""
    here: dict[str, list[pb.Task]] = {}
    for node in drained:
        for task in state.tasks.where("node", node.id):
            if tasks.runnable(task) and not tasks.ended(task) and not tasks.unassigned(task):
                here.setdefault(task.service_id, []).append(task)
    # Marked or not, in `state` they are: nobody is asked to take what another one of them gives.
    ledger = nodes.Ledger(state, 0.0, eager=False)
    found: list[Gap] = []
    for service_id, leaving in here.items():
        service = state.services.get(service_id)
        if service is not None:
            found += _of_service(state, ledger, service, leaving)
    return sorted(found, key=lambda gap: (gap.expected_s is not None, -(gap.expected_s or 0.0)))


def _of_service(state: views.View, ledger: nodes.Ledger, service: pb.Service, leaving: list[pb.Task]) -> list[Gap]:
    spec = state.spec(service)
    mode = spec.mode.WhichOneof("mode")
    if mode in ("global", "global_job"):
        return [_gap(task, "has one task on every node: it stops, and starts again when the node takes tasks again",
                     "until the node is back", None) for task in leaving]  # fmt: skip
    if mode == "replicated" and spec.task.restart.condition == pb.RESTART_CONDITION_NONE:
        return [_gap(task, "is never restarted (restart condition none), so it is not started elsewhere either",
                     "for good", None) for task in leaving]  # fmt: skip
    need = ledger.need_of(service.revision_id)
    placed = len(placing.Group(ledger, (service.id, service.revision_id)).place(len(leaving)))
    found: list[Gap] = []
    # Those that are waited for longest by the scheduler are those that come last.
    for task in leaving[placed:]:
        why = explain.unplaced(map(ledger.fill, ledger.all()), service.id, need)
        found.append(_gap(task, f"has no place elsewhere: {why}", "from the deadline until a node takes it", None))
    for task in leaving[:placed]:
        why = ""
        if mode == "replicated_job":
            why = "is a job's: it is stopped and begins anew"
        elif policies.lease_s(spec.labels) is not None:
            why = "must never run twice (at-most-once): it stops before its successor starts"
        elif volume := moves.bound_volume(spec):
            why = f"has its volume {volume} on this node: it stops first, and its successor starts without that data"
        if why:
            found.append(_timed(state, task, spec, why))
    return found


def _timed(state: views.View, task: pb.Task, spec: pb.ServiceSpec, why: str) -> Gap:
    """A gap between a stop and a start; the successor is prepared before."""
    container = spec.task.container
    has_grace = container.HasField("stop_grace_period")
    stop_s = stamps.from_nanos(container.stop_grace_period) if has_grace else STOP_GRACE_DEFAULT_S
    start_s = _start_s(state, task)
    words = f"up to {durations.words(stop_s)} to stop"
    if start_s:
        words += f", then about {durations.words(max(1.0, start_s))} to start, as last time"
    return _gap(task, why, words, stop_s + start_s)


def _start_s(state: views.View, task: pb.Task) -> float:
    """How long the task took to start; 0.0 when nobody knows. What it had to wait for does not count."""
    if not task.HasField("running_at"):
        return 0.0
    before = state.tasks.get(task.replaces)
    waited_until = tasks.status_at(before) if before is not None and tasks.ended(before) else 0.0
    return max(0.0, tasks.ran_at(task) - max(tasks.created_at(task), waited_until))


def _gap(task: pb.Task, why: str, expected: str, expected_s: float | None) -> Gap:
    name = f"{task.service_name}.{tasknames.place(task)}" if task.slot else task.service_name
    return Gap(task, name, task.node_id, why, expected, expected_s)
