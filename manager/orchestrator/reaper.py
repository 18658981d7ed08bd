"""Forgets: tasks beyond the history limit, tasks to be removed, tasks of nodes long gone, revisions nobody needs.

It never stops anything: it only deletes what has ended, or was never given to an agent.
"""

from collections.abc import Iterable, Sequence

from manager import plan
from manager.orchestrator import dirty as dirty_test
from manager.orchestrator import tasks, update
from manager.store import ops, views, watching
from skep import ids, pb, stamps

HISTORY_DEFAULT = 5  # tasks of a slot, the running one included
REVISIONS_KEPT = 10  # of a living service, for its history and rollbacks
ORPHAN_AFTER_S = 24 * 3600.0  # of silence from a node


class Reaper:
    """Decider: deletions, and ORPHANED. Keys are service IDs."""

    name = "reaper"
    kinds = frozenset({"cluster", "node", "service", "task"})

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        if change.kind == "cluster":
            return _services(state)
        if change.kind == "node":
            return dict.fromkeys(task.service_id for task in state.tasks.where("node", change.id))
        if change.kind == "service":
            return (change.id,)
        task = change.new or change.old
        if not isinstance(task, pb.Task) or not tasks.significant(change.old, change.new):
            return ()
        return (task.service_id,)

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        result = plan.Plan()
        for service_id in _services(state) if dirty is None else sorted(dirty):
            _Reaping(state, now, result, service_id).run()
        return result


def _services(state: views.View) -> list[str]:
    """Services that exist, or of which something is left."""
    found = [service.id for service in state.services]
    return list(dict.fromkeys([*found, *state.tasks.keys("service"), *state.revisions.keys("service")]))


class _Reaping:
    """One service in one decision."""

    def __init__(self, state: views.View, now: float, result: plan.Plan, service_id: str) -> None:
        self._state = state
        self._now = now
        self._result = result
        self._service_id = service_id
        self._service = state.services.get(service_id)

    def run(self) -> None:
        by_slot: dict[str, list[pb.Task]] = {}
        for task in self._state.tasks.where("service", self._service_id):
            if task.desired_state == pb.TASK_STATE_REMOVE and (tasks.ended(task) or tasks.unassigned(task)):
                self._result.ops.append(ops.delete(task))
            elif not self._orphan(task):
                by_slot.setdefault(tasks.slot_key(task), []).append(task)
        if self._service is not None:
            revision = self._state.revisions.get(self._service.revision_id)
            limit = None if revision is None else self._limit(revision.spec)
            if limit is not None:
                for slot in by_slot.values():
                    if len(slot) > limit:
                        self._trim(self._service, slot, limit)
        self._forget_revisions()

    def _orphan(self, task: pb.Task) -> bool:
        """Ends a task that nobody will ever report on; whether it did."""
        if tasks.ended(task) or tasks.unassigned(task) or tasks.runnable(task):
            return False
        node = self._state.nodes.get(task.node_id)
        if node is not None:
            if not tasks.lost(node):
                return False
            # A node that is down changes only by hand, so this waits a day or, after such a change, longer.
            due = stamps.seconds(node.updated_at) + ORPHAN_AFTER_S
            if self._now < due:
                self._result.wake(due, self._service_id)
                return False
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.status.state = pb.TASK_STATE_ORPHANED
        changed.status.timestamp.CopyFrom(stamps.stamp(self._now))
        changed.status.message = (
            "Task belonged to a node that has been deleted" if node is None else "Task belonged to a node that is lost"
        )
        self._result.ops.append(ops.update(changed))
        return True

    def _limit(self, spec: pb.ServiceSpec) -> int | None:
        """How many tasks a slot keeps; None for all."""
        if spec.task.restart.max_attempts:
            return spec.task.restart.max_attempts + 1  # what counting the attempts takes
        limit = HISTORY_DEFAULT
        for cluster in self._state.clusters:
            if cluster.spec.orchestration.HasField("task_history_retention_limit"):
                limit = cluster.spec.orchestration.task_history_retention_limit
        return None if limit < 0 else limit

    def _trim(self, service: pb.Service, slot: Sequence[pb.Task], limit: int) -> None:
        """Deletes the oldest ended tasks of a slot, down to the limit."""
        evidence = None
        if update.in_progress(service):
            evidence = update.attempt(service, dirty_test.Comparison(self._state, service), slot)
        # With nobody left to run, the last task stands for the slot: without it the slot would be filled anew.
        occupant = None if any(tasks.runnable(task) for task in slot) else slot[-1]
        excess = len(slot) - limit
        for task in slot:
            if excess <= 0:
                return
            if _needed(service, task) or not (tasks.ended(task) or tasks.unassigned(task)):
                continue
            if task is evidence or task is occupant:
                continue
            self._result.ops.append(ops.delete(task))
            excess -= 1

    def _forget_revisions(self) -> None:
        revisions = list(self._state.revisions.where("service", self._service_id))
        service = self._service
        if service is not None:
            if len(revisions) <= REVISIONS_KEPT:
                return
            revisions.sort(key=lambda revision: revision.number)
            revisions = revisions[:-REVISIONS_KEPT]
        for revision in revisions:
            if service is not None and revision.id in {service.revision_id, service.previous_revision_id}:
                continue
            if not self._state.tasks.count("revision", revision.id):
                self._result.ops.append(ops.delete(revision))


def _needed(service: pb.Service, task: pb.Task) -> bool:
    """Whether the task is wished, or is a completion that the job's present iteration counts."""
    if task.HasField("job_iteration"):
        present = task.job_iteration.index == service.job_status.job_iteration.index
        return present and (tasks.runnable(task) or task.status.state == pb.TASK_STATE_COMPLETE)
    return tasks.runnable(task)
