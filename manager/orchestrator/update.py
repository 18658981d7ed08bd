"""Rolling updates and rollbacks.

There are as many workers as the parallelism says. A worker takes an outdated slot, replaces its task, waits until the
new one runs (or has failed), pauses for the delay, takes the next. No worker exists anywhere: how many are busy, what
has failed and when the next one is free all follow from the up-to-date tasks created since the update started. The
first of these in a slot is that slot's attempt; what the restart policy makes of it later is no concern of the update.
"""

import dataclasses
import struct
from collections.abc import Sequence

from manager.orchestrator import dirty, slots, tasks, turn
from manager.store import ops
from skep import pb, stamps

PARALLELISM_DEFAULT = 1  # only when the service has no update configuration at all
MONITOR_DEFAULT_S = 5.0

_ACTIVE = {pb.UPDATE_STATE_UPDATING: False, pb.UPDATE_STATE_ROLLBACK_STARTED: True}
_PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)
_BACKWARD = (pb.UPDATE_STATE_ROLLBACK_STARTED, pb.UPDATE_STATE_ROLLBACK_PAUSED)
_FAILURES = (pb.TASK_STATE_COMPLETE, pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """How an update goes, with the defaults filled in."""

    parallelism: int  # 0 = all at once
    delay_s: float
    monitor_s: float
    action: pb.FailureAction.ValueType
    ratio: float
    order: pb.UpdateOrder.ValueType

    @property
    def watch_s(self) -> float:
        """How long the last slots are watched before the update is over."""
        return self.delay_s + 1.0 if self.delay_s >= self.monitor_s else self.monitor_s


def settings(spec: pb.ServiceSpec, state: pb.UpdateState.ValueType) -> Settings:
    """The settings for an update in `state`: a rollback has its own."""
    backward = state in _BACKWARD
    config = spec.rollback if backward else spec.update
    configured = spec.HasField("rollback") if backward else spec.HasField("update")
    return Settings(
        parallelism=config.parallelism if configured else PARALLELISM_DEFAULT,
        delay_s=stamps.from_nanos(config.delay),
        monitor_s=stamps.from_nanos(config.monitor) if config.HasField("monitor") else MONITOR_DEFAULT_S,
        action=config.failure_action,
        ratio=config.max_failure_ratio,
        order=config.order,
    )


@dataclasses.dataclass(slots=True)
class _Progress:
    busy: int = 0  # workers
    attempted: int = 0  # slots
    failed: list[pb.Task] = dataclasses.field(default_factory=list)  # attempts that did
    latest: float = 0.0  # when the last attempt came to run or failed


def advance(now: turn.Turn, kept: Sequence[slots.Slot]) -> None:
    """Takes the update of the service as far as it may go now."""
    state = now.service.update_status.state
    how = settings(now.spec, state)
    handing_over = False
    outdated: list[slots.Slot] = []
    for slot in kept:
        clean = [task for task in slot.live if not now.comparison.dirty(task)]
        if clean:
            handing_over |= len(slot.live) > 1 and _hand_over(now, slot, clean, how)
        elif not slot.restarted and now.comparison.dirty(slot.newest):
            outdated.append(slot)
    if state in _PAUSED:
        return
    if state not in _ACTIVE:
        if outdated:
            _write(now, pb.UPDATE_STATE_UPDATING, "update in progress")
        return
    progress = _measure(now, kept, how)
    if _stopped_by_failures(now, progress, len(outdated), how):
        return
    free = len(outdated) if how.parallelism == 0 else max(0, how.parallelism - progress.busy)
    for slot in outdated[:free]:
        _start(now, slot, how)
    if outdated or progress.busy or handing_over:
        return
    over = progress.latest + how.watch_s if progress.attempted else now.now
    if now.now < over:
        now.wake(over)
    elif _ACTIVE[state]:
        _write(now, pb.UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed")
    else:
        _write(now, pb.UPDATE_STATE_COMPLETED, "update completed")


def _hand_over(now: turn.Turn, slot: slots.Slot, clean: list[pb.Task], how: Settings) -> bool:
    """The slot has an up-to-date task and others: stops those that are not needed. Whether some still are."""
    keeper = next((task for task in clean if task.status.state == pb.TASK_STATE_RUNNING), clean[-1])
    waiting = False
    for task in slot.live:
        if task is keeper:
            continue
        outdated = now.comparison.dirty(task)
        if outdated and how.order == pb.UPDATE_ORDER_START_FIRST and keeper.status.state != pb.TASK_STATE_RUNNING:
            waiting = True
        else:
            now.stop(task)
    return waiting


def _start(now: turn.Turn, slot: slots.Slot, how: Settings) -> None:
    """Replaces the task of an outdated slot."""
    previous = slot.live[-1] if slot.live else slot.newest
    if how.order == pb.UPDATE_ORDER_START_FIRST or not slot.live:
        now.create(slot=slot.number, node_id=slot.node_id, start=tasks.Start.AT_ONCE, replaces=previous.id)
        return
    now.create(slot=slot.number, node_id=slot.node_id, start=tasks.Start.WHEN_DUE, replaces=previous.id)
    for task in slot.live:
        now.stop(task)


# ------------------------------------------------------------------ what has happened so far


def attempt(service: pb.Service, comparison: dirty.Comparison, slot: Sequence[pb.Task]) -> pb.Task | None:
    """The task by which the running update tried this slot (given oldest first); None when it has not yet.

    A slot that is new altogether has no attempt: there was nothing to update. Scaling in the middle makes a revision
    of its own, hence the comparison instead of an equal revision.
    """
    since = stamps.seconds(service.update_status.started_at)
    for task in slot:
        if tasks.created_at(task) >= since and not comparison.outdated(task.revision_id):
            return task if task.replaces else None
    return None


def in_progress(service: pb.Service) -> bool:
    """Whether an update or rollback goes on, so that its attempts must stay on record."""
    return service.update_status.state in _ACTIVE


def _measure(now: turn.Turn, kept: Sequence[slots.Slot], how: Settings) -> _Progress:
    progress = _Progress()
    for slot in kept:
        first = attempt(now.service, now.comparison, slot.tasks)
        if first is None:
            continue
        progress.attempted += 1
        if first.status.state in _FAILURES:
            at = tasks.status_at(first)
            ran_at = stamps.seconds(first.running_at)
            if not ran_at or at - ran_at <= how.monitor_s:
                progress.failed.append(first)
        else:
            current = _standing_for(now, slot, first)
            if current is None:
                at = tasks.status_at(first)
            elif current.status.state == pb.TASK_STATE_RUNNING:
                at = _ran_at(now, current)
            else:
                progress.busy += 1
                continue
        progress.latest = max(progress.latest, at)
        if now.now < at + how.delay_s:
            progress.busy += 1
            now.wake(at + how.delay_s)
    return progress


def _standing_for(now: turn.Turn, slot: slots.Slot, first: pb.Task) -> pb.Task | None:
    """The task by which to judge an attempt that has not failed; None when nobody is left to wait for.

    An attempt that had to move meanwhile (drain, lost node) is stood for by its successor.
    """
    if tasks.runnable(first):
        return first
    for task in reversed(slot.live):
        if not now.comparison.dirty(task):
            return task
    return first if slot.restarted or not tasks.ended(first) else None


def _ran_at(now: turn.Turn, task: pb.Task) -> float:
    """When the running task came to run; put on record here if nobody has done so."""
    if task.HasField("running_at"):
        return stamps.seconds(task.running_at)
    at = min(now.now, tasks.status_at(task) or now.now)
    if task.id not in now.stopped:
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.running_at.CopyFrom(stamps.stamp(at))
        now.result.ops.append(ops.update(changed))
    return at


def _stopped_by_failures(now: turn.Turn, progress: _Progress, outdated: int, how: Settings) -> bool:
    """Pauses or rolls back when too many attempts failed; whether it did."""
    if how.action == pb.FAILURE_ACTION_CONTINUE or not progress.failed:
        return False
    (ratio,) = struct.unpack("f", struct.pack("f", len(progress.failed) / (progress.attempted + outdated)))
    if ratio <= how.ratio:  # both in single precision, as the configuration is stored
        return False
    culprit = max(progress.failed, key=lambda task: (tasks.status_at(task), task.id))
    because = f"due to failure or early termination of task {culprit.id}"
    backward = now.service.update_status.state in _BACKWARD
    if backward:
        _write(now, pb.UPDATE_STATE_ROLLBACK_PAUSED, f"rollback paused {because}")
        return True
    target = _before_the_update(now) if how.action == pb.FAILURE_ACTION_ROLLBACK else None
    if target is not None:
        _roll_back(now, target, f"update rolled back {because}")
    else:
        _write(now, pb.UPDATE_STATE_PAUSED, f"update paused {because}")
    return True


# ------------------------------------------------------------------ the service object


def _before_the_update(now: turn.Turn) -> pb.Revision | None:
    """The revision to go back to; None when nothing is left of it."""
    since = stamps.seconds(now.service.update_status.started_at)
    previous = now.state.revisions.get(now.service.previous_revision_id)
    if previous is None or stamps.seconds(previous.created_at) < since:
        return previous
    # Scaled in the middle: the previous revision is the one that fails.
    older = [
        revision
        for revision in now.state.revisions.where("service", now.service.id)
        if stamps.seconds(revision.created_at) < since
    ]
    return max(older, key=lambda revision: revision.number, default=None)


def _roll_back(now: turn.Turn, target: pb.Revision, message: str) -> None:
    changed = pb.Service()
    changed.CopyFrom(now.service)
    changed.revision_id = target.id
    # What failed is not offered as the next rollback's goal.
    changed.previous_revision_id = ""
    _status(now, changed, pb.UPDATE_STATE_ROLLBACK_STARTED, message)
    now.write_service(changed)


def _write(now: turn.Turn, state: pb.UpdateState.ValueType, message: str) -> None:
    changed = pb.Service()
    changed.CopyFrom(now.service)
    _status(now, changed, state, message)
    now.write_service(changed)
    now.reason(message)


def _status(now: turn.Turn, changed: pb.Service, state: pb.UpdateState.ValueType, message: str) -> None:
    status = changed.update_status
    at = stamps.stamp(now.now)
    status.state = state
    status.message = message
    if state in _ACTIVE:
        status.started_at.CopyFrom(at)
        status.ClearField("completed_at")
    elif state not in _PAUSED:
        status.completed_at.CopyFrom(at)
