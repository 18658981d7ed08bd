"""What every mode does about a task that ended or must leave its node: is there a successor, and when does it start.

The same slot, the same rules; which slots there are is the modes' business.
"""

from manager.orchestrator import restart, slots, tasks, turn
from skep import pb

ENFORCED = "task rejected by constraint enforcer"  # the status of a task whose node no longer suits it


def needs_successor(now: turn.Turn, slot: slots.Slot, broken: pb.Task) -> bool:
    """Whether nobody in the slot already takes the place of `broken`."""
    if not slot.live:
        return True
    if slot.leaving:
        return False  # a failed move is moves.py's to repeat
    # Beside its successor an outdated task needs no other; an up-to-date one does while only an outdated one lives.
    return not now.comparison.dirty(broken) and all(now.comparison.dirty(task) for task in slot.live)


def succeed(now: turn.Turn, slot: slots.Slot, last: pb.Task, policy: pb.RestartPolicy) -> None:
    """Plans the successor of `last`: after the delay if it ended, after its stop if it has to leave its node."""
    slot.restarted = True
    where = f"slot {slot.number}" if slot.number else f"node {slot.node_id}"
    if tasks.ended(last):
        failures = restart.failures_after(last, policy) if last.revision_id == now.service.revision_id else 0
        due = restart.not_before(last, policy, now.now, failures=failures, rng=now.rng)
        now.create(
            slot=slot.number,
            node_id=slot.node_id,
            start=tasks.Start.WHEN_DUE,
            replaces=_predecessor(now, slot, last),
            not_before=due,
            failures=failures,
        )
        now.reason(f"{where}: task {last.id} ended, restart in {max(0.0, due - now.now):.1f} s")
    else:
        # It did not crash, so no delay. When it has stopped is the starter's to see, after this plan has taken effect:
        # on a lost node nobody can tell, so nothing waits; on one that came back meanwhile it stops first.
        predecessor = _predecessor(now, slot, last)
        now.create(slot=slot.number, node_id=slot.node_id, start=tasks.Start.WHEN_DUE, replaces=predecessor)
        if tasks.lost(now.node(last)):
            now.reason(f"{where}: the node of task {last.id} is lost")
        else:
            now.reason(f"{where}: task {last.id} leaves its node: {last.evicted or 'it is drained'}")
    slots.supersede(now, slot)  # what is outdated and waited for `last` to end


def _predecessor(now: turn.Turn, slot: slots.Slot, last: pb.Task) -> str:
    """Whose end the next attempt waits for: the same as before for one that is tried again before it ever started.

    An outdated one that runs beside `last`, because a rollback made that one up to date again, has to stop first, too.
    """
    if last.desired_state == pb.TASK_STATE_READY and any(task.id == last.replaces for task in slot.live):
        return last.replaces
    if now.spec.update.order != pb.UPDATE_ORDER_START_FIRST:
        for other in slot.live:
            if other.status.state == pb.TASK_STATE_RUNNING:
                return other.id
    return last.id


def gave_up(task: pb.Task) -> bool:
    """Whether the task came to its end by itself, so that only its restart policy says what follows.

    One that was stopped, lost with its node, or turned away from it has not had its chance.
    """
    state = task.status.state
    if state == pb.TASK_STATE_REJECTED:
        return task.status.message != ENFORCED
    return state in {pb.TASK_STATE_COMPLETE, pb.TASK_STATE_FAILED}
