"""The slots of a replicated service: who is in each, and which ones go first when there are too many."""

import dataclasses
from collections.abc import Iterable

from manager.orchestrator import leaving, restart, tasks, turn
from skep import pb

_ROLLING_BACK = pb.UPDATE_STATE_ROLLBACK_STARTED


@dataclasses.dataclass(slots=True, eq=False)
class Slot:
    """One slot: all its tasks, oldest first, and what they amount to."""

    number: int  # 0 where the node tells slots apart
    node_id: str = ""  # of modes with one task a node
    tasks: list[pb.Task] = dataclasses.field(default_factory=list)
    live: list[pb.Task] = dataclasses.field(default_factory=list)  # wished, and able to do it where they are
    leaving: dict[str, pb.Task] = dataclasses.field(
        default_factory=dict
    )  # the live ones that wait for a successor elsewhere
    broken: list[pb.Task] = dataclasses.field(
        default_factory=list
    )  # wished, but ended or to be given up where they are
    finished: bool = False  # nothing is wished here any more, and the last task wants no successor
    restarted: bool = False  # this very decision gives it a new task

    @property
    def occupied(self) -> bool:
        """Whether the slot counts as one of the service's replicas."""
        return bool(self.live or self.broken or self.finished)

    @property
    def newest(self) -> pb.Task:
        """The task created last."""
        return self.tasks[-1]

    @property
    def running(self) -> bool:
        """Whether a wished task is observed to run."""
        return any(task.status.state == pb.TASK_STATE_RUNNING for task in self.live)


def collect(now: turn.Turn) -> dict[int, Slot]:
    """All slots of the service that have a task, by number."""
    found: dict[int, Slot] = {}
    for task in now.state.tasks.where("service", now.service.id):
        slot = found.get(task.slot)
        if slot is None:
            slot = found[task.slot] = Slot(task.slot)
        add(now, slot, task)
    rolling_back = now.service.update_status.state == _ROLLING_BACK
    for slot in found.values():
        if slot.live or slot.broken or rolling_back:
            continue  # a rollback starts finished slots anew
        last = slot.newest
        if last.desired_state == pb.TASK_STATE_REMOVE:
            continue
        policy = now.state.revision(last.revision_id).spec.task.restart
        slot.finished = not restart.allowed(last, policy, slot.tasks)
    return found


def refill(now: turn.Turn, slot: Slot) -> tasks.Start:
    """When a task may start that fills a slot where nobody is wished any more: after what still stops in it.

    With order start-first it starts beside that, and so it does beside what was scaled away.
    """
    if now.spec.update.order == pb.UPDATE_ORDER_START_FIRST:
        return tasks.Start.AT_ONCE
    stopping = any(task.desired_state == pb.TASK_STATE_SHUTDOWN and not tasks.ended(task) for task in slot.tasks)
    return tasks.Start.WHEN_DUE if stopping else tasks.Start.AT_ONCE


def supersede(now: turn.Turn, slot: Slot, *, keep: pb.Task | None = None) -> None:
    """Stops what does not run yet, but for `keep`: another successor is planned, and it could start beside that one."""
    for task in slot.live:
        if task is not keep and task.status.state != pb.TASK_STATE_RUNNING:
            now.stop(task)


def add(now: turn.Turn, slot: Slot, task: pb.Task) -> None:
    """Puts a task into its slot; tasks come oldest first."""
    slot.tasks.append(task)
    if not tasks.runnable(task):
        return
    if tasks.ended(task):
        (slot.broken if _over(now, task) else slot.live).append(task)
        return
    standing = leaving.of(now, task)
    if standing is leaving.Standing.GONE:
        slot.broken.append(task)
        return
    slot.live.append(task)
    if standing is leaving.Standing.LEAVES:
        slot.leaving[task.id] = task


def _over(now: turn.Turn, task: pb.Task) -> bool:
    # One that failed before its time waits out its delay, or a missing image would be tried in a tight loop.
    if task.desired_state == pb.TASK_STATE_READY and task.HasField("not_before"):
        due = task.not_before.seconds + task.not_before.nanos / 1e9
        if now.now < due:
            now.wake(due)
            return False
    return True


def by_worth(slots: Iterable[Slot]) -> list[Slot]:
    """The slots in the order in which to keep them: the end of the list goes first.

    What runs is worth more than what does not yet, in whatever transition it is. Then slots are numbered on each node;
    those with low numbers stay, so the fullest nodes give first. What has no node, no task that can run, more than one,
    or one that has to move, is worth least among its like.
    """
    on_node: dict[str, int] = {}
    ranks: list[tuple[bool, bool, int, int, Slot]] = []
    for slot in sorted(slots, key=lambda slot: (not slot.running, slot.number)):
        settled = len(slot.live) == 1 and not slot.broken and not slot.leaving and bool(slot.live[0].node_id)
        ordinal = 0
        if settled:
            node_id = slot.live[0].node_id
            ordinal = on_node.get(node_id, 0)
            on_node[node_id] = ordinal + 1
        ranks.append((not slot.running, not settled, ordinal, slot.number, slot))
    return [rank[-1] for rank in sorted(ranks, key=lambda rank: rank[:-1])]
