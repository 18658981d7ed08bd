"""Jobs: tasks that are to complete, so many times (replicated) or once on each node (global).

Every update of a job starts another iteration. What an earlier one has left running is removed; what it has finished
stays as history. A place of the job is done once a task of this iteration completed there; it is given up when its
task failed and the restart policy grants no other attempt, and then stays empty until the next iteration.
"""

from collections.abc import Iterable

from manager.orchestrator import healing, per_node, restart, slots, tasks, turn
from skep import pb


def reconcile_replicated(now: turn.Turn) -> None:
    """Plans tasks towards the wished number of completions, so many at a time."""
    mode = now.spec.mode.replicated_job
    places: dict[int, slots.Slot] = {}
    for task in _of_this_iteration(now):
        place = places.get(task.slot)
        if place is None:
            place = places[task.slot] = slots.Slot(task.slot)
        slots.add(now, place, task)
    completed = running = 0
    for place in places.values():
        if _complete(now, place):
            completed += 1
        elif _goes_on(now, place):
            running += 1
    untouched = max(0, mode.total_completions - len(places))
    # A smaller limit than what runs already is no error: nothing new starts until enough have ended.
    new = min(max(0, mode.max_concurrent - running), untouched)
    if new:
        now.reason(f"{completed} of {mode.total_completions} completions, {running} running, {new} more start")
    number = 0
    for _ in range(new):
        number += 1
        while number in places:
            number += 1
        places[number] = slots.Slot(number)
        now.create(slot=number, start=tasks.Start.AT_ONCE)


def reconcile_global(now: turn.Turn) -> None:
    """Plans one completion on every node that takes tasks and satisfies the constraints, new nodes included."""
    nodes = per_node.of(now)
    if nodes is None:
        return
    for place, standing in nodes.slots(_of_this_iteration(now)):
        if _complete(now, place):
            continue
        match standing:
            case per_node.Standing.LEFT:
                _stop(now, place.tasks)
            case per_node.Standing.KEEPS:
                pass  # what failed there is tried again, if at all, once the node takes tasks
            case per_node.Standing.TAKES:
                if not _goes_on(now, place) and not any(healing.gave_up(task) for task in place.tasks[-1:]):
                    now.create(slot=0, node_id=place.node_id, start=tasks.Start.AT_ONCE)


def _of_this_iteration(now: turn.Turn) -> list[pb.Task]:
    """The tasks that count; those of earlier iterations are planned away."""
    wanted = now.service.job_status.job_iteration.index
    everywhere = now.spec.mode.WhichOneof("mode") == "global_job"
    found: list[pb.Task] = []
    for task in now.state.tasks.where("service", now.service.id):
        if task.job_iteration.index == wanted:
            found.append(task)
        elif everywhere or not tasks.ended(task):
            now.stop(task, pb.TASK_STATE_REMOVE)
    return found


def _complete(now: turn.Turn, place: slots.Slot) -> bool:
    """Whether the place is done. Whatever else is wished there is not any more."""
    if not any(task.status.state == pb.TASK_STATE_COMPLETE for task in place.tasks):
        return False
    _stop(now, (task for task in place.tasks if task.status.state != pb.TASK_STATE_COMPLETE))
    return True


def _goes_on(now: turn.Turn, place: slots.Slot) -> bool:
    """Whether a task is wished in the place; what broke gets its successor here, if the policy grants one."""
    if place.broken and not place.live:
        last = place.broken[-1]
        policy = now.state.revision(last.revision_id).spec.task.restart
        if _again(last, policy, place):
            healing.succeed(now, place, last, policy)
        else:
            now.reason(f"task {last.id} of the job ended and is not tried again")
    _stop(now, place.broken)
    return bool(place.live) or place.restarted


def _again(task: pb.Task, policy: pb.RestartPolicy, place: slots.Slot) -> bool:
    """Whether a task that has not completed is tried again."""
    if policy.condition == pb.RESTART_CONDITION_NONE:
        # Never twice: but one that had not begun when it had to leave its node can move.
        return not tasks.ended(task) and task.status.state < pb.TASK_STATE_STARTING
    return restart.allowed(task, policy, place.tasks)


def _stop(now: turn.Turn, unwanted: Iterable[pb.Task]) -> None:
    for task in unwanted:
        now.stop(task)
