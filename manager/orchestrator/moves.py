"""Emptying drained nodes without taking a service down: successors elsewhere first, a few at a time.

It only creates; handover.py stops the old tasks, leaving.py ends the wait at the drain's deadline. What cannot be in
two places (at-most-once, data on its node) goes last and is stopped before its successor starts, but not before that
one is prepared.
"""

from collections.abc import Sequence

from manager.orchestrator import restart, slots, tasks, turn, update_settings
from skep import pb, policies

SURGE_SHARE = 10  # at least one in so many replicas moves at a time, or large services would need hours

_LOCAL = ("", "local")  # drivers whose volumes stay on their node
_PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)


def advance(now: turn.Turn, kept: Sequence[slots.Slot]) -> None:
    """Starts as many moves as the service's surge allows."""
    moving = 0
    waiting: list[slots.Slot] = []
    for slot in kept:
        if not slot.leaving or slot.restarted:
            continue
        if len(slot.leaving) < len(slot.live):
            moving += 1
        else:
            waiting.append(slot)
    if not waiting:
        return
    free = surge(now.spec, len(kept)) - moving
    for slot in waiting:
        task = _occupant(slot)
        if not restart.allowed(task, now.state.revision(task.revision_id).spec.task.restart, slot.tasks):
            # As in Docker's swarm mode: what is never to be started again does not come back elsewhere.
            for leaving in slot.leaving.values():
                now.stop(leaving)
        elif free > 0 and _move(now, slot, task):
            free -= 1


def bound_volume(spec: pb.ServiceSpec) -> str:
    """The first named volume whose data stays on the node that it is on; "" when the tasks leave nothing behind."""
    for mount in spec.task.container.mounts:
        if mount.type == pb.MOUNT_TYPE_VOLUME and mount.source and mount.volume_options.driver_config.name in _LOCAL:
            return mount.source
    return ""


def in_one_place(spec: pb.ServiceSpec) -> bool:
    """Whether two tasks of one slot must not run side by side, so that no move goes without a gap."""
    return policies.lease_s(spec.labels) is not None or bool(bound_volume(spec))


def surge(spec: pb.ServiceSpec, replicas: int) -> int:
    """How many tasks of a service may be in two places at a time."""
    parallelism = update_settings.of(spec, pb.UPDATE_STATE_UNKNOWN).parallelism
    return replicas if parallelism == 0 else max(parallelism, -(-replicas // SURGE_SHARE))


def _occupant(slot: slots.Slot) -> pb.Task:
    """The task that the slot lives on."""
    leaving = list(slot.leaving.values())
    return next((task for task in leaving if task.status.state == pb.TASK_STATE_RUNNING), leaving[-1])


def _move(now: turn.Turn, slot: slots.Slot, task: pb.Task) -> bool:
    """Creates the successor, unless the one before failed just now; whether it did."""
    failures = 0
    for other in slot.tasks:
        if other.move and other.replaces == task.id and other.status.state in restart.CRASHES:
            failures = other.failures + 1
            due = restart.move_again_at(other, failures, now.now)
            if now.now < due:
                now.wake(due)
                return False
    slot.restarted = True
    # A version that an update has stopped at because it fails is not what a drain may bring in.
    paused = now.service.update_status.state in _PAUSED
    now.create(
        slot=slot.number,
        start=tasks.Start.WHEN_DUE if in_one_place(now.spec) else tasks.Start.AT_ONCE,
        replaces=task.id,
        revision_id=task.revision_id if paused else now.service.revision_id,
        move=pb.MOVE_REASON_DRAIN,
        failures=failures,
    )
    slots.supersede(now, slot, keep=task)  # a move whose own node is drained before it came to run
    now.reason(f"slot {slot.number}: task {task.id} leaves its drained node once its successor runs")
    return True
