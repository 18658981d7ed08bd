"""Does a task run what its service asks for now? A task that does not is dirty and an update replaces it.

Compared are the task's and the service's revision: only TaskTemplate and EndpointSpec matter. Numbers of replicas,
labels of the service and update settings make nothing dirty.
"""

import dataclasses

from manager.scheduler import constraints
from manager.store import views
from skep import errors, pb, policies


@dataclasses.dataclass(frozen=True, slots=True)
class _Difference:
    placement: bool = False
    credentials: bool = False
    rest: bool = False


_NONE = _Difference()


class Comparison:
    """The dirty test of one service, with each earlier revision compared once."""

    def __init__(self, state: views.View, service: pb.Service) -> None:
        self._state = state
        self._revision_id = service.revision_id
        self._known: dict[str, _Difference] = {service.revision_id: _NONE}
        self._constraints: tuple[constraints.Constraint, ...] | None = None

    def dirty(self, task: pb.Task) -> bool:
        """Whether the task must be replaced to do what the service asks for."""
        difference = self._difference(task.revision_id)
        if difference is _NONE:
            return False
        if difference.rest:
            return True
        if difference.placement and not self._node_still_fits(task):
            return True
        # New registry credentials are no reason to restart what has pulled its image already.
        return difference.credentials and not (
            task.desired_state <= pb.TASK_STATE_RUNNING
            and pb.TASK_STATE_READY <= task.status.state <= pb.TASK_STATE_RUNNING
        )

    def outdated(self, revision_id: str) -> bool:
        """Whether tasks of that revision do something else than the service asks for, wherever they are."""
        return self._difference(revision_id).rest

    def _difference(self, revision_id: str) -> _Difference:
        known = self._known.get(revision_id)
        if known is None:
            known = self._known[revision_id] = self._compare(revision_id)
        return known

    def _compare(self, revision_id: str) -> _Difference:
        old = self._state.revision(revision_id).spec
        new = self._state.revision(self._revision_id).spec
        old_task, new_task = _bare(old.task), _bare(new.task)
        found = _Difference(
            placement=old.task.placement != new.task.placement,
            credentials=old.task.container.registry_auth != new.task.container.registry_auth,
            # Agents learn with the task that there must never be two of it.
            rest=old_task != new_task
            or old.endpoint != new.endpoint
            or policies.lease_s(old.labels) != policies.lease_s(new.labels),
        )
        return _NONE if found == _NONE else found

    def _node_still_fits(self, task: pb.Task) -> bool:
        if self._constraints is None:
            wanted = self._state.revision(self._revision_id).spec.task.placement.constraints
            try:
                self._constraints = constraints.parse(wanted)
            except errors.Invalid:  # stored by a manager with other rules: leave running tasks where they are
                self._constraints = ()
        node = self._state.nodes.get(task.node_id)
        return node is not None and constraints.matches(self._constraints, node)


def _bare(spec: pb.TaskSpec) -> pb.TaskSpec:
    """The specification without what is compared apart."""
    copy = pb.TaskSpec()
    copy.CopyFrom(spec)
    copy.ClearField("placement")
    copy.container.ClearField("registry_auth")
    return copy
