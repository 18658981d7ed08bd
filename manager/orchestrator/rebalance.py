"""Rebalancing: after a request, or by policy when a node has come, tasks move to less busy nodes, a few at a time.

A move is a successor on the chosen node that takes over once it has run for the service's monitor time (handover.py);
the first one that does not get that far ends the rebalancing. What was asked for and how far it has come is in the
cluster object, so a new leader goes on with it.
"""

from collections.abc import Iterable

from manager import plan
from manager.orchestrator import evening, healing, restart, tasks
from manager.store import ops, views, watching
from skep import durations, ids, pb, policies, stamps, tasknames

KEY = "cluster"
SETTLE_S = 30.0  # how long a node must have been back before the policy gives it tasks
DEFAULTS = pb.RebalanceLimits(moves=1000, at_a_time=3, min_benefit=2, min_age=stamps.to_nanos(60.0))
CANCELLED = "cancelled"

_UNDER_WAY, _MOVED, _OVERTAKEN, _UNHEALTHY = "under way", "moved", "overtaken", "unhealthy"


class Rebalancer:
    """Decider: moves for the sake of an even load. Its only key is `KEY`."""

    name = "rebalancer"
    kinds = frozenset({"cluster", "node", "service", "task"})

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        """Of tasks only those on the move: that others have changed is looked at with the next move."""
        cluster = next(iter(state.clusters), None)
        if cluster is None:
            return ()
        active = is_active(cluster.rebalance)
        match change.kind:
            case "cluster":
                return (KEY,)
            case "node":
                return (KEY,) if active or cluster.spec.auto_rebalance else ()
            case "service":
                return (KEY,) if active else ()
            case _:
                concerned = active and tasks.significant(change.old, change.new)
                return (KEY,) if concerned and _on_the_move(state, cluster.rebalance, change.id) else ()

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        result = plan.Plan()
        for cluster in state.clusters:
            _Pass(state, now, rng, result, cluster).run()
        return result


def is_active(rebalance: pb.Rebalance) -> bool:
    """Whether moves are under way, or wanted."""
    return rebalance.HasField("requested_at") and not rebalance.HasField("ended_at")


def requested(limits: pb.RebalanceLimits, now: float, message: str) -> pb.Rebalance:
    """A rebalancing that begins now."""
    return pb.Rebalance(requested_at=stamps.stamp(now), moves_left=limits.moves, limits=limits, message=message)


def _on_the_move(state: views.View, rebalance: pb.Rebalance, task_id: str) -> bool:
    for moving in rebalance.moving:
        successor = state.tasks.get(moving)
        if task_id == moving or (successor is not None and successor.replaces == task_id):
            return True
    return False


def came_at(node: pb.Node) -> float:
    """When the node joined, came back or was let in again after a drain, seconds since the epoch."""
    since = node.status.since if node.status.HasField("since") else node.created_at
    return max(stamps.seconds(since), stamps.seconds(node.drain.ended_at))


class _Pass:
    """One decision."""

    def __init__(self, state: views.View, now: float, rng: ids.Rng, result: plan.Plan, cluster: pb.Cluster) -> None:
        self._state, self._now, self._rng, self._result = state, now, rng, result
        self._cluster = cluster
        self._changed = pb.Cluster()
        self._changed.CopyFrom(cluster)
        self._rebalance = self._changed.rebalance if cluster.HasField("rebalance") else pb.Rebalance()
        self._under_way: list[tuple[pb.Task, pb.Task]] = []

    def run(self) -> None:
        after: list[pb.Op] = []
        if not is_active(self._rebalance):
            self._begin_by_policy()
        if is_active(self._rebalance):
            after += self._follow_up()
            if self._rebalance.moves_left:
                after += self._begin_moves()
            elif not self._under_way:
                said = self._rebalance.unhealthy or self._rebalance.message == CANCELLED
                self._end(self._rebalance.message if said else f"the limit of {self._rebalance.moves} moves is reached")
        if self._rebalance != self._cluster.rebalance:
            self._changed.rebalance.CopyFrom(self._rebalance)
            # First on record, then made: what is not on record would not be watched.
            self._result.ops.append(ops.update(self._changed))
        self._result.ops += after

    def _begin_by_policy(self) -> None:
        if not self._cluster.spec.auto_rebalance:
            return
        last = stamps.seconds(self._rebalance.requested_at)
        for node in self._state.nodes:
            ready = node.status.state == pb.NODE_STATE_READY
            if not ready or node.spec.availability != pb.NODE_AVAILABILITY_ACTIVE or came_at(node) <= last:
                continue
            due = came_at(node) + SETTLE_S
            if self._now < due:
                self._result.wake(due, KEY)
                continue
            message = f"{tasknames.node(node)} has come"
            self._rebalance = requested(DEFAULTS, self._now, message)
            self._result.reasons.append(f"rebalance: {message}")
            return

    # ---------------------------------------------------------------- moves under way

    def _follow_up(self) -> list[pb.Op]:
        """Takes note of what has become of the moves; stops those that cannot come about."""
        stops: list[pb.Op] = []
        for task_id in list(self._rebalance.moving):
            task = self._state.tasks.get(task_id)
            outcome, why = (_OVERTAKEN, "") if task is None else self._judge(task)
            if task is not None and outcome == _UNDER_WAY:
                old = self._state.tasks.get(task.replaces)
                self._under_way.append((old or task, task))
                continue
            self._rebalance.moving.remove(task_id)
            if outcome == _MOVED:
                self._rebalance.moved += 1
            if task is not None and outcome == _UNHEALTHY:
                self._rebalance.unhealthy = True
                self._rebalance.moves_left = 0
                self._rebalance.message = f"stopped: {why}"
                if tasks.runnable(task) and not tasks.ended(task):
                    stops.append(tasks.stop(task, pb.TASK_STATE_SHUTDOWN, self._now))
        return stops

    def _judge(self, task: pb.Task) -> tuple[str, str]:
        """What has become of a move, and for an unhealthy one why."""
        old = self._state.tasks.get(task.replaces)
        staying = old is not None and tasks.runnable(old)
        what = f"{task.service_name}.{task.slot} on {self._name(task.node_id)}"
        if tasks.ended(task):
            failed = task.status.state in restart.CRASHES and task.status.message != healing.ENFORCED
            if staying and (failed or task.status.state == pb.TASK_STATE_COMPLETE):
                return _UNHEALTHY, f"{what} ended before it was proven: {task.status.err or task.status.message}"
            return _OVERTAKEN, ""
        if not tasks.runnable(task):
            return _OVERTAKEN, ""
        if task.status.state == pb.TASK_STATE_RUNNING:
            return (_UNDER_WAY, "") if staying else (_MOVED, "")
        if task.status.state == pb.TASK_STATE_PENDING and task.status.err:
            return _UNHEALTHY, f"{what} has no room there any more: {task.status.err}"
        revision = self._state.revisions.get(task.revision_id)
        deadline_s = policies.start_deadline_s({} if revision is None else revision.spec.labels)
        due = tasks.created_at(task) + deadline_s
        if self._now < due:
            self._result.wake(due, KEY)
            return _UNDER_WAY, ""
        return _UNHEALTHY, f"{what} did not come to run within {durations.words(deadline_s)}"

    def _name(self, node_id: str) -> str:
        node = self._state.nodes.get(node_id)
        return node_id if node is None else tasknames.node(node)

    # ---------------------------------------------------------------- new moves

    def _begin_moves(self) -> list[pb.Op]:
        limits = self._rebalance.limits
        free = min(self._rebalance.moves_left, max(1, limits.at_a_time) - len(self._under_way))
        if free <= 0:
            return []
        choice = evening.Evening(self._state, self._now, limits, self._under_way)
        created: list[pb.Op] = []
        for move in choice.choose(free):
            op = tasks.create(
                move.service, slot=move.task.slot, start=tasks.Start.AT_ONCE, now=self._now, rng=self._rng,
                node_id=move.target.node_id, replaces=move.task.id,
            )  # fmt: skip
            op.object.task.move = pb.MOVE_REASON_REBALANCE
            created.append(op)
            self._rebalance.moving.append(op.object.task.id)
            whose = "tasks in all" if move.of_all else f"tasks of {move.service.name}"
            self._result.reasons.append(
                f"rebalance: {move.service.name}.{move.task.slot} moves from {move.source.name} to "
                f"{move.target.name}, which has {move.difference} {whose} less"
            )
        self._rebalance.moves_left -= len(created)
        self._rebalance.moves += len(created)
        going = len(self._under_way) + len(created)
        if going:
            self._rebalance.message = f"{going} {'task' if going == 1 else 'tasks'} on the move"
        else:
            self._wait_or_end(choice)
        return created

    def _wait_or_end(self, choice: evening.Evening) -> None:
        """No move pays now: is one worth waiting for?"""
        if choice.old_enough_at is not None:
            age = durations.words(stamps.from_nanos(self._rebalance.limits.min_age))
            self._rebalance.message = f"waits for tasks to have run for {age}"
            self._result.wake(choice.old_enough_at, KEY)
        elif choice.updating:
            self._rebalance.message = f"waits for the update of {choice.updating}"
        else:
            self._end("the load is even" if not self._rebalance.moves else "the load is even now")

    def _end(self, message: str) -> None:
        self._rebalance.message = message
        self._rebalance.ended_at.CopyFrom(stamps.stamp(self._now))
        self._rebalance.moves_left = 0
