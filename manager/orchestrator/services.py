"""The orchestrator of services: gives each service that changed a turn of its mode's reconciler.

Owns no rule of its own but one: tasks of a service that is gone are removed.
"""

from collections.abc import Callable, Iterable

from manager import plan
from manager.orchestrator import dirty as dirty_test
from manager.orchestrator import global_services, jobs, replicated, tasks, turn
from manager.scheduler import filters
from manager.store import views, watching
from skep import errors, ids, pb

# Modes by their field in ServiceMode.
MODES: dict[str, Callable[[turn.Turn], None]] = {
    "replicated": replicated.reconcile,
    "global": global_services.reconcile,
    "replicated_job": jobs.reconcile_replicated,
    "global_job": jobs.reconcile_global,
}
ON_EVERY_NODE = ("global", "global_job")  # modes to which every node matters, also one without a task of theirs


class Services:
    """Decider: services -> tasks. Keys are service IDs."""

    name = "services"
    kinds = frozenset({"node", "service", "task"})

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        if change.kind == "service":
            return (change.id,)
        if change.kind == "node":
            if not _node_matters(change.old, change.new):
                return ()
            concerned = dict.fromkeys(task.service_id for task in state.tasks.where("node", change.id))
            for mode in ON_EVERY_NODE:
                concerned.update(dict.fromkeys(row.service_id for row in state.revisions.where("mode", mode)))
            return concerned
        task = change.new or change.old
        if not isinstance(task, pb.Task) or not tasks.significant(change.old, change.new):
            return ()
        return (task.service_id,)

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        result = plan.Plan()
        if dirty is None:
            keys = dict.fromkeys([*(service.id for service in state.services), *state.tasks.keys("service")])
        else:
            keys = dict.fromkeys(sorted(dirty))
        for service_id in keys:
            service = state.services.get(service_id)
            if service is None:
                _clear(state, now, result, service_id)
                continue
            _decide_one(state, now, rng, result, service)
        return result


def _decide_one(state: views.View, now: float, rng: ids.Rng, result: plan.Plan, service: pb.Service) -> None:
    """One service's turn. What is wrong with its objects is its own trouble: all others get theirs."""
    before = len(result.ops)
    try:
        spec = state.spec(service)
        reconcile = MODES.get(spec.mode.WhichOneof("mode") or "")
        if reconcile is not None:
            reconcile(turn.Turn(state, now, rng, result, service, spec, dirty_test.Comparison(state, service)))
    except errors.Bug as error:
        del result.ops[before:]
        result.faults.append(f"service {service.name}: {error.message}")


def _clear(state: views.View, now: float, result: plan.Plan, service_id: str) -> None:
    """The service is deleted: its tasks stop and are forgotten."""
    for task in state.tasks.where("service", service_id):
        if task.desired_state < pb.TASK_STATE_REMOVE:
            result.ops.append(tasks.stop(task, pb.TASK_STATE_REMOVE, now))


def _node_matters(old: object, new: object) -> bool:
    """Whether tasks on the node may have to leave it, or may no longer satisfy a new revision's constraints."""
    if not isinstance(old, pb.Node) or not isinstance(new, pb.Node):
        return True
    return (
        tasks.invalid(old) != tasks.invalid(new)
        or tasks.lost(old) != tasks.lost(new)
        or old.status.silent != new.status.silent
        or filters.unready(old) != filters.unready(new)
        or old.role != new.role
        or old.spec != new.spec
        or old.status.addr != new.status.addr
        or old.description != new.description
    )
