"""Handing over a slot: when the task that is there may go because the one that is to come is there, or can be.

A slot in transition has tasks on their way out (outdated, leaving a drained node, or moved to a less busy one) and one
that takes their place. Which kind of successor it is, the task itself says: one that waits for its predecessor's end is
prepared first (image, container), then the predecessor stops; any other has to run before the predecessor stops, and if
it is a move, to have run for a while.
"""

from manager.orchestrator import dirty, moves, restart, room, slots, tasks, turn, update_settings
from skep import pb, stamps

LOOK_AGAIN_S = 2.0  # how other services' moves get on is seen when one looks


def advance(now: turn.Turn, slot: slots.Slot) -> bool:
    """Stops what is not needed in the slot any more. Whether something is still waited for."""
    if len(slot.live) < 2:  # noqa: PLR2004  # one task hands over to nobody
        return False
    coming = _coming(now.comparison, slot)
    if not coming:
        # All of them are outdated or leaving: updates and moves see to that. One that took over before has done so.
        for task in [task for task in slot.live if task.status.state == pb.TASK_STATE_RUNNING][:-1]:
            now.stop(task)
        return False
    keeper = next((task for task in coming if task.status.state == pb.TASK_STATE_RUNNING), coming[-1])
    for task in coming:
        if task is not keeper:
            now.stop(task)
    going = [task for task in slot.live if task not in coming]
    if not going:
        return False
    running = [task for task in going if task.status.state == pb.TASK_STATE_RUNNING]
    if not running or _ready(now, keeper, running):
        for task in going:
            now.stop(task)
        return False
    # One that runs is enough to wait with: the one whose end the keeper waits for, or the last to have come to run.
    needed = next((task for task in running if task.id == keeper.replaces), running[-1])
    for task in going:
        if task is not needed:
            now.stop(task)
    return True


def _coming(comparison: dirty.Comparison, slot: slots.Slot) -> list[pb.Task]:
    """The tasks of which one is to stay; none while nobody can take over."""
    staying = [task for task in slot.live if task.id not in slot.leaving]
    by_id = {task.id: task for task in staying}
    for task in staying:
        if task.move == pb.MOVE_REASON_REBALANCE:
            by_id.pop(task.replaces, None)
    staying = list(by_id.values())
    clean = [task for task in staying if not comparison.dirty(task)]
    # What leaves its node goes as it is while no newer version may follow it.
    return clean or (staying if slot.leaving else [])


def _ready(now: turn.Turn, keeper: pb.Task, running: list[pb.Task]) -> bool:
    """Whether the running predecessors may go."""
    if keeper.node_id and tasks.lost(now.node(keeper)):
        return False  # whatever it was last seen to do, nobody knows what it does now
    if keeper.desired_state == pb.TASK_STATE_READY:
        due = stamps.seconds(keeper.not_before)
        if now.now < due:
            now.wake(due)
            return False
        if not any(task.id == keeper.replaces for task in running):
            return False  # it starts by itself, now or soon
        state = keeper.status.state
        if pb.TASK_STATE_READY <= state <= pb.TASK_STATE_RUNNING:
            return not _others_move_first(now, running) if keeper.move else True
        # It may be the predecessor that takes the room it needs, a host port for one.
        waits_for_room = state == pb.TASK_STATE_PENDING and bool(keeper.status.err)
        return waits_for_room and any(room.frees_a_place(now.state, task, keeper) for task in running)
    if keeper.status.state != pb.TASK_STATE_RUNNING:
        return False
    if not keeper.move:
        return True
    proven_at = tasks.ran_at(keeper) + update_settings.monitor_s(now.spec.update)
    if now.now < proven_at:
        now.wake(proven_at)
    return now.now >= proven_at


def _others_move_first(now: turn.Turn, running: list[pb.Task]) -> bool:
    """Whether a node that is drained still has tasks that will leave it without a gap: those with one go last."""
    for task in running:
        for other in now.state.tasks.where("node", task.node_id):
            if other.service_id == task.service_id or other.status.state != pb.TASK_STATE_RUNNING:
                continue
            if tasks.runnable(other) and _moves_on(now, other):
                now.wake(now.now + LOOK_AGAIN_S)
                return True
    return False


def _moves_on(now: turn.Turn, task: pb.Task) -> bool:
    """Whether the task of another service is about to leave its node, with its successor running by then."""
    service = now.state.services.get(task.service_id)
    if service is None:
        return False
    spec = now.state.spec(service)
    if spec.mode.WhichOneof("mode") != "replicated" or moves.in_one_place(spec):
        return False
    for other in now.state.tasks.where("slot", tasks.slot_key(task)):
        if other.replaces != task.id:
            continue
        if other.status.state in restart.CRASHES or (other.status.state == pb.TASK_STATE_PENDING and other.status.err):
            return False  # it may stay until the deadline: not worth waiting for
    return True
