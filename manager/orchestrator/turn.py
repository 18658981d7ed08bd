"""One service in one decision: what a mode's reconciler reads and where it puts what it decides."""

import dataclasses

from manager import plan
from manager.orchestrator import dirty, tasks
from manager.store import ops, views
from skep import durations, ids, pb, policies


@dataclasses.dataclass(slots=True)
class Turn:
    """The arguments of a decision, narrowed to one service."""

    state: views.View
    now: float
    rng: ids.Rng
    result: plan.Plan
    service: pb.Service
    spec: pb.ServiceSpec
    comparison: dirty.Comparison
    stopped: dict[str, None] = dataclasses.field(default_factory=dict)  # tasks that this turn stops

    def node(self, task: pb.Task) -> pb.Node | None:
        """The task's node; None when it is deleted."""
        return self.state.nodes.get(task.node_id)

    def create(
        self,
        *,
        slot: int,
        start: tasks.Start,
        node_id: str = "",
        replaces: str = "",
        not_before: float | None = None,
        revision_id: str = "",
        move: pb.MoveReason.ValueType = pb.MOVE_REASON_NONE,
        failures: int = 0,
    ) -> None:
        """Plans a new task of the wished revision (or `revision_id`), on `node_id` if it is said where.

        A task that must never run twice always waits for all others of its slot to be gone.
        """
        if policies.lease_s(self.spec.labels) is not None:
            start = tasks.Start.WHEN_DUE
        op = tasks.create(
            self.service,
            slot=slot,
            start=start,
            now=self.now,
            rng=self.rng,
            node_id=node_id,
            replaces=replaces,
            not_before=self.now if not_before is None else not_before,
        )
        task = op.object.task
        task.revision_id = revision_id or task.revision_id
        task.move = move
        task.failures = failures
        if failures and not_before is not None:
            wait = durations.words(not_before - self.now)
            task.status.message = f"restarting in {wait}: failed {failures} times in a row"
        self.result.ops.append(op)

    def stop(self, task: pb.Task, desired: pb.TaskState.ValueType = pb.TASK_STATE_SHUTDOWN) -> None:
        """Plans a lower wish for a task that has not got it yet."""
        if task.desired_state < desired and task.id not in self.stopped:
            self.stopped[task.id] = None
            self.result.ops.append(tasks.stop(task, desired, self.now))

    def write_service(self, changed: pb.Service) -> None:
        """Plans a change of the service object; at most one a turn."""
        self.result.ops.append(ops.update(changed))

    def wake(self, at: float) -> None:
        """Asks for another turn of this service at `at`, seconds since the epoch."""
        self.result.wake(at, self.service.id)

    def reason(self, words: str) -> None:
        """Says why, for people."""
        self.result.reasons.append(f"service {self.service.name}: {words}")
