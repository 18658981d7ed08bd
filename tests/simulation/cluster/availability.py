"""No update and no drain takes a service down: in calm seeds, where nothing but users' wishes happens.

From the moment that all of a service's replicas run, so many of them must run at every moment:

- the fewest replicas that were wished for since then, whatever is drained and updated, with order start-first;
- with order stop-first that less the parallelism, the largest of those that updates since then had.

Services with a host port or that must never run twice cannot be in two places, so they are left out.
"""

import dataclasses

from skep import pb, policies
from tests.simulation import shadow
from tests.simulation.cluster import ledger, running

_GOING_ON = (
    pb.UPDATE_STATE_UPDATING, pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_STARTED, pb.UPDATE_STATE_ROLLBACK_PAUSED,
)  # fmt: skip

_BACKWARD = (pb.UPDATE_STATE_ROLLBACK_STARTED, pb.UPDATE_STATE_ROLLBACK_PAUSED)


@dataclasses.dataclass
class _Promise:
    """What holds for one service."""

    revision_id: str
    fewest: int = 0  # replicas wished for; nothing is promised before all of them have run once
    parallelism: int = 0


class Availability:
    """Watches over all services."""

    def __init__(self, kept: ledger.Ledger, runs: running.Running) -> None:
        self._ledger = kept
        self._running = runs
        self._promises: dict[str, _Promise] = {}
        self.looked = 0
        self.kept = 0  # looks at which a promise was in force

    def look(self) -> None:
        """Something started, ended or was wished for."""
        self.looked += 1
        counts: dict[str, int] = {}
        for task_id in self._running.tasks():
            task = self._ledger.get("task", task_id)
            if task is not None:
                counts[task.service_id] = counts.get(task.service_id, 0) + 1
        services = self._ledger.rows("service")
        for service in services:
            spec = self._ledger.get("revision", service.revision_id).spec
            movable = not spec.endpoint.ports and policies.lease_s(spec.labels) is None
            if spec.mode.WhichOneof("mode") == "replicated" and movable:
                self._look_at(service, spec, counts.get(service.id, 0))
        for service_id in self._promises.keys() - {service.id for service in services}:
            del self._promises[service_id]

    def _look_at(self, service: pb.Service, spec: pb.ServiceSpec, running_now: int) -> None:
        replicas = spec.mode.replicated.replicas
        promise = self._promises.setdefault(service.id, _Promise(service.revision_id))
        if promise.revision_id != service.revision_id:
            promise.revision_id = service.revision_id
            promise.fewest = min(promise.fewest, replicas)
            how = spec.rollback if service.update_status.state in _BACKWARD else spec.update
            if how.order != pb.UPDATE_ORDER_START_FIRST:
                promise.parallelism = max(promise.parallelism, how.parallelism or promise.fewest)
        floor = promise.fewest - promise.parallelism
        self.kept += floor > 0
        shadow.require(
            running_now >= floor,
            f"service {service.name} is down to {running_now} running tasks: at least {promise.fewest} replicas were "
            f"wished for, and no more than {promise.parallelism} may be missing for its updates",
        )
        if service.update_status.state not in _GOING_ON and self._settled(service, replicas):
            promise.fewest, promise.parallelism = replicas, 0

    def _settled(self, service: pb.Service, replicas: int) -> bool:
        """Whether exactly what is wished for runs."""
        tasks = self._ledger.of_service(service.id)
        wished = [task for task in tasks if task.desired_state <= pb.TASK_STATE_RUNNING]
        runs = self._running.tasks()
        return len(wished) == replicas and all(
            task.id in runs and task.status.state == pb.TASK_STATE_RUNNING and task.revision_id == service.revision_id
            for task in wished
        )
