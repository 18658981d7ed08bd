"""Mode global: one task on every node that takes tasks and satisfies the constraints.

A paused node keeps what runs and gets nothing new; a node that is drained, down or of the wrong kind loses its task
and gets another when it comes back; the tasks of a deleted node are forgotten. Updates go from node to node under the
same rules as from slot to slot.
"""

from manager.orchestrator import healing, per_node, restart, slots, tasks, turn, update
from skep import pb

_ROLLING_BACK = pb.UPDATE_STATE_ROLLBACK_STARTED


def reconcile(now: turn.Turn) -> None:
    """Plans the service's tasks towards one on each node."""
    nodes = per_node.of(now)
    if nodes is None:
        return
    kept: list[slots.Slot] = []
    for slot, standing in nodes.slots(list(now.state.tasks.where("service", now.service.id))):
        match standing:
            case per_node.Standing.LEFT:
                for task in slot.tasks:
                    now.stop(task)
            case per_node.Standing.KEEPS:
                if _keep(now, slot):
                    kept.append(slot)
            case per_node.Standing.TAKES:
                if _serve(now, slot):
                    kept.append(slot)
    update.advance(now, kept)


def _keep(now: turn.Turn, slot: slots.Slot) -> bool:
    """A node that takes nothing new: what broke is not replaced. Whether an update has to look at the slot."""
    node = now.state.nodes.get(slot.node_id)
    paused = node is not None and node.spec.availability == pb.NODE_AVAILABILITY_PAUSE
    for task in slot.broken:
        now.stop(task)
    for task in list(slot.live):
        if paused and tasks.unassigned(task):  # it would wait for as long as the pause lasts, and an update with it
            now.stop(task)
            slot.live.remove(task)
    # An outdated task stays until the node takes tasks again; one whose successor is there already can go.
    return any(not now.comparison.dirty(task) for task in slot.live)


def _serve(now: turn.Turn, slot: slots.Slot) -> bool:
    """A node that takes tasks: sees to it that it has one. Whether an update has to look at the slot."""
    if slot.broken:
        last = slot.broken[-1]
        if healing.needs_successor(now, slot, last):
            policy = now.state.revision(last.revision_id).spec.task.restart
            if restart.allowed(last, policy, _chances(slot)):
                healing.succeed(now, slot, last, policy)
        for task in slot.broken:
            now.stop(task)
        return True
    if not slot.live:
        if not _finished(now, slot):
            now.create(slot=0, node_id=slot.node_id, start=slots.refill(now, slot))
            now.reason(f"node {slot.node_id} has no task")
            return False
        slot.finished = True
    return True


def _finished(now: turn.Turn, slot: slots.Slot) -> bool:
    """Whether the node's last task came to its end and wants no successor until the specification changes."""
    if not slot.tasks or now.service.update_status.state == _ROLLING_BACK:
        return False  # a rollback starts finished slots anew
    last = slot.newest
    if not healing.gave_up(last):
        return False
    policy = now.state.revision(last.revision_id).spec.task.restart
    return not restart.allowed(last, policy, _chances(slot))


def _chances(slot: slots.Slot) -> list[pb.Task]:
    """The tasks that count as attempts: leaving a drained node and coming back is none."""
    return [task for task in slot.tasks if not tasks.ended(task) or healing.gave_up(task)]
