"""Rolling updates and rollbacks.

There are as many workers as the parallelism says. A worker takes an outdated slot, replaces its task, waits until the
new one runs (or has failed), pauses for the delay, takes the next. No worker exists anywhere: how many are busy, what
has failed and when the next one is free all follow from the up-to-date tasks created since the update started. The
first of these in a slot is that slot's attempt; what the restart policy makes of it later is no concern of the update.
"""

import dataclasses
import struct
from collections.abc import Sequence

from manager.orchestrator import dirty, handover, slots, tasks, turn, update_settings
from manager.store import ops
from skep import durations, pb, policies, stamps

_ACTIVE = {pb.UPDATE_STATE_UPDATING: False, pb.UPDATE_STATE_ROLLBACK_STARTED: True}
_PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)
_FAILURES = (pb.TASK_STATE_COMPLETE, pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED)


@dataclasses.dataclass(slots=True)
class _Progress:
    busy: int = 0  # workers
    attempted: int = 0  # slots
    failed: list[pb.Task] = dataclasses.field(default_factory=list)  # attempts that did
    stuck: list[pb.Task] = dataclasses.field(default_factory=list)  # those of the failed that never ran, and still try
    given_up: dict[int, None] = dataclasses.field(default_factory=dict)  # positions of slots whose attempt failed
    latest: float = 0.0  # when the last attempt came to run or failed


def advance(now: turn.Turn, kept: Sequence[slots.Slot]) -> None:
    """Takes the update of the service as far as it may go now."""
    state = now.service.update_status.state
    how = update_settings.of(now.spec, state)
    handing_over, outdated = _hand_over(now, kept)
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
    if outdated or progress.busy or any(position not in progress.given_up for position in handing_over):
        return
    over = progress.latest + how.watch_s if progress.attempted else now.now
    if now.now < over:
        now.wake(over)
    elif _ACTIVE[state]:
        _write(now, pb.UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed")
    else:
        _write(now, pb.UPDATE_STATE_COMPLETED, "update completed")


def _hand_over(now: turn.Turn, kept: Sequence[slots.Slot]) -> tuple[list[int], list[slots.Slot]]:
    """Stops predecessors that may go: (positions of slots where an outdated one may not yet, slots only outdated)."""
    handing_over: list[int] = []
    outdated: list[slots.Slot] = []
    for position, slot in enumerate(kept):
        waits = handover.advance(now, slot)
        if any(not now.comparison.dirty(task) for task in slot.live):
            if waits and any(now.comparison.dirty(task) for task in slot.live):
                handing_over.append(position)
        elif not slot.restarted and (now.comparison.dirty(slot.newest) or _broken_off(slot)):
            outdated.append(slot)
    return handing_over, outdated


def _broken_off(slot: slots.Slot) -> bool:
    """Whether the slot's successor was stopped before its predecessor was, because it had to leave its node, say."""
    return bool(slot.live) and not tasks.runnable(slot.newest) and slot.newest.status.state not in _FAILURES


def _start(now: turn.Turn, slot: slots.Slot, how: update_settings.Settings) -> None:
    """Creates what is to replace the task of an outdated slot; handover.py stops that one when it may go."""
    # The one that runs, not a successor that an earlier update left half prepared: it is what has to stop first.
    occupants = [task for task in slot.live if task.status.state == pb.TASK_STATE_RUNNING] or slot.live
    previous = occupants[-1] if occupants else slot.newest
    # Also where nobody is wished any more: one that was told to stop may not have done so yet.
    start = tasks.Start.AT_ONCE if how.order == pb.UPDATE_ORDER_START_FIRST else tasks.Start.WHEN_DUE
    now.create(slot=slot.number, node_id=slot.node_id, start=start, replaces=previous.id)
    for task in slot.live:
        if task is not previous:  # superseded before it took over: it could yet come to run as a third one
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


def _measure(now: turn.Turn, kept: Sequence[slots.Slot], how: update_settings.Settings) -> _Progress:
    progress = _Progress()
    deadline_s = policies.start_deadline_s(now.spec.labels)
    for position, slot in enumerate(kept):
        first = attempt(now.service, now.comparison, slot.tasks)
        if first is None:
            continue
        progress.attempted += 1
        if first.status.state in _FAILURES:
            at = tasks.status_at(first)
            ran_at = stamps.seconds(first.running_at)
            if not ran_at or at - ran_at <= how.monitor_s:
                progress.failed.append(first)
                progress.given_up[position] = None
        else:
            current = _standing_for(now, slot, first)
            if current is None:
                at = tasks.status_at(first)
            elif current.status.state == pb.TASK_STATE_RUNNING:
                at = _ran_at(now, current)
            elif now.now < (at := tasks.created_at(current) + deadline_s):
                progress.busy += 1
                now.wake(at)
                continue
            else:
                progress.failed.append(current)
                progress.stuck.append(current)
                progress.given_up[position] = None
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


def _stopped_by_failures(now: turn.Turn, progress: _Progress, outdated: int, how: update_settings.Settings) -> bool:
    """Pauses or rolls back when too many attempts failed; whether it did."""
    if how.action == pb.FAILURE_ACTION_CONTINUE or not progress.failed:
        return False
    (ratio,) = struct.unpack("f", struct.pack("f", len(progress.failed) / (progress.attempted + outdated)))
    if ratio <= how.ratio:  # both in single precision, as the configuration is stored
        return False
    culprit = max(progress.failed, key=lambda task: (tasks.status_at(task), task.id))
    because = f"due to failure or early termination of task {culprit.id}"
    for task in progress.stuck:
        if task is culprit:
            after = durations.words(policies.start_deadline_s(now.spec.labels))
            because = f"because task {task.id} did not come to run within {after}: {_what_it_does(task)}"
    backward = now.service.update_status.state in update_settings.BACKWARD
    if backward:
        _write(now, pb.UPDATE_STATE_ROLLBACK_PAUSED, f"rollback paused {because}")
        return True
    target = _before_the_update(now) if how.action == pb.FAILURE_ACTION_ROLLBACK else None
    if target is not None:
        _roll_back(now, target, f"update rolled back {because}")
    else:
        _write(now, pb.UPDATE_STATE_PAUSED, f"update paused {because}")
    return True


def _what_it_does(task: pb.Task) -> str:
    return task.status.err or task.status.message or "its agent says nothing"


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
