"""Services: what one request means for the store. Pure functions from a view to the operations of a transaction."""

import dataclasses
from typing import Literal

from manager.control import compare, defaults, lookup, payloads, validate_service
from manager.store import ops, views
from skep import errors, ids, pb, stamps

UPDATING = "update in progress"
ROLLING_BACK = "manually requested rollback"
_PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)

AuthFrom = Literal["spec", "previous-spec"]


@dataclasses.dataclass(frozen=True)
class Update:
    """A request to change a service."""

    spec: pb.ServiceSpec
    version: int  # the service's version that the change was decided on
    registry_auth: str = dataclasses.field(default="", repr=False)  # empty: keep what is stored
    auth_from: AuthFrom = "spec"  # whose stored password is kept


def create(
    view: views.View, spec: pb.ServiceSpec, *, service_id: str, revision_id: str, registry_auth: str, now: float
) -> list[pb.Op]:
    """A new service and its first revision. Raises Invalid, Unimplemented or AlreadyExists."""
    stored = defaults.normalised(spec)
    stored.task.container.registry_auth = registry_auth
    validate_service.check(stored)
    payloads.check_present(view, stored)
    for _ in view.services.where("name", stored.name.lower()):
        raise errors.AlreadyExists(f"name conflicts with an existing object: service {stored.name} already exists")
    revision = pb.Revision(id=revision_id, service_id=service_id, number=1, spec=stored)
    service = pb.Service(id=service_id, name=stored.name, revision_id=revision_id, next_revision=2)
    if compare.is_job(stored):
        service.job_status.CopyFrom(pb.JobStatus(job_iteration=pb.Version(), last_execution=stamps.stamp(now)))
    return [ops.create(revision), ops.create(service)]


def update(view: views.View, reference: str, request: Update, *, revision_id: str, now: float) -> list[pb.Op]:
    """A new revision, or nothing at all when the specification is the one that is wished for already.

    A job runs again with every update, also with one that changes nothing.

    Raises NotFound, Invalid, Unimplemented, and Conflict when the service has moved since the caller read it.
    """
    service = lookup.service(view, reference)
    current = view.spec(service)
    stored = defaults.normalised(request.spec)
    if stored.name != service.name:
        if stored.name:
            raise errors.Unimplemented("renaming services is not supported")
        raise errors.Invalid("meta: name must be provided")
    if stored.mode.WhichOneof("mode") != current.mode.WhichOneof("mode"):
        raise errors.Unimplemented("service mode change is not allowed")
    _check_version(service, request.version)
    stored.task.container.registry_auth = request.registry_auth or _kept_auth(view, service, request.auth_from)
    validate_service.check(stored)
    if stored == current and not compare.is_job(stored):
        return []
    payloads.check_present(view, stored)
    revision = pb.Revision(id=revision_id, service_id=service.id, number=service.next_revision, spec=stored)
    changed = pb.Service()
    changed.CopyFrom(service)
    changed.previous_revision_id = service.revision_id
    changed.revision_id = revision_id
    changed.next_revision += 1
    if compare.is_job(stored):
        _run_again(changed, now)
        return [ops.create(revision), ops.update(changed)]
    resumes = service.update_status.state in _PAUSED and not compare.only_scaled(current, stored)
    if resumes or not compare.same_work(current, stored):
        _set_status(changed, pb.UPDATE_STATE_UPDATING, UPDATING, now)
    return [ops.create(revision), ops.update(changed)]


def rollback(view: views.View, reference: str, *, version: int, now: float, to: int | None = None) -> list[pb.Op]:
    """Back to revision number `to`, or to the previous one; a second rollback then goes forward again.

    Raises NotFound (also for a revision that is not kept any more), Conflict, FailedPrecondition when there is nothing
    to go back to, and Invalid when it needs a secret or config that was removed meanwhile.
    """
    service = lookup.service(view, reference)
    _check_version(service, version)
    target = _goal(view, service, reference, to)
    payloads.check_present(view, target.spec)
    changed = pb.Service()
    changed.CopyFrom(service)
    changed.revision_id, changed.previous_revision_id = target.id, service.revision_id
    if compare.is_job(view.spec(service)):
        _run_again(changed, now)
    else:
        _set_status(changed, pb.UPDATE_STATE_ROLLBACK_STARTED, ROLLING_BACK, now)
    # The reaper forgets old revisions. Writing this one, unchanged, makes whoever comes second start over.
    return [ops.update(target), ops.update(changed)]


def _goal(view: views.View, service: pb.Service, reference: str, to: int | None) -> pb.Revision:
    """The revision that a rollback goes to."""
    if to is None:
        previous = view.revisions.get(service.previous_revision_id) if service.previous_revision_id else None
        if previous is None:
            raise errors.FailedPrecondition(f"service {reference} does not have a previous spec")
        return previous
    kept = sorted(view.revisions.where("service", service.id), key=lambda revision: revision.number)
    target = next((revision for revision in kept if revision.number == to), None)
    if target is None:
        numbers = ", ".join(str(revision.number) for revision in kept)
        raise errors.NotFound(f"service {reference} has no revision {to} (any more); kept are {numbers}")
    if target.id == service.revision_id:
        raise errors.FailedPrecondition(f"service {reference} is at revision {to} already")
    return target


def remove(view: views.View, reference: str) -> list[pb.Op]:
    """Deletes the service at once; the orchestrator then stops its tasks and clears its revisions away."""
    return [ops.delete(lookup.service(view, reference))]


def new_ids(rng: ids.Rng) -> tuple[str, str]:
    """(service ID, revision ID) for a creation."""
    return ids.new_id(rng), ids.new_id(rng)


def _check_version(service: pb.Service, version: int) -> None:
    if service.version.index != version:
        raise errors.Conflict("update out of sequence")


def _kept_auth(view: views.View, service: pb.Service, auth_from: AuthFrom) -> str:
    if auth_from == "spec":
        return view.spec(service).task.container.registry_auth
    previous = view.revisions.get(service.previous_revision_id) if service.previous_revision_id else None
    if previous is None:
        raise errors.FailedPrecondition(f"service {service.name} does not have a previous spec")
    return previous.spec.task.container.registry_auth


def _set_status(service: pb.Service, state: pb.UpdateState.ValueType, message: str, now: float) -> None:
    service.update_status.CopyFrom(pb.UpdateStatus(state=state, started_at=stamps.stamp(now), message=message))


def _run_again(service: pb.Service, now: float) -> None:
    """The job's next iteration."""
    service.job_status.job_iteration.index += 1
    service.job_status.last_execution.CopyFrom(stamps.stamp(now))
