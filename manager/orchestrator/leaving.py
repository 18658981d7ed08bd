"""When a task has to leave its node, and when its place counts as empty. The one answer for all modes."""

import enum

from manager.orchestrator import tasks, turn
from manager.store import views
from skep import pb, policies, stamps

DRAIN_DEADLINE_DEFAULT_S = 600.0  # of a drain that nobody has set a deadline for


class Standing(enum.Enum):
    """How a task that has not ended stands on its node."""

    STAYS = "stays"
    LEAVES = "leaves"  # it runs on until its successor does
    GONE = "gone"  # it is replaced without regard to it


def of(now: turn.Turn, task: pb.Task) -> Standing:
    """How the task stands; asks for another turn when that will change with time."""
    if not task.node_id:
        return Standing.STAYS
    if task.evicted:
        return Standing.GONE
    node = now.node(task)
    if node is None or tasks.lost(node):
        if not tasks.unassigned(task) and not certainly_stopped(now.state, task):
            return Standing.STAYS  # the node will say when it has been silent for long enough
        due = replaceable_at(now.state, task, now.spec)
        if now.now >= due:
            return Standing.GONE
        now.wake(due)
        return Standing.STAYS
    if node.spec.availability != pb.NODE_AVAILABILITY_DRAIN:
        return Standing.STAYS
    # Only a slot can be in two places. What no agent has begun, or no drain has a reason to wait for, just goes.
    due = drain_deadline(node)
    if now.spec.mode.WhichOneof("mode") != "replicated" or tasks.unassigned(task) or now.now >= due:
        return Standing.GONE
    now.wake(due)
    return Standing.LEAVES


def drain_deadline(node: pb.Node) -> float:
    """When what still runs on a node that is being drained is stopped, seconds since the epoch."""
    if node.drain.HasField("deadline") and not node.drain.HasField("ended_at"):
        return stamps.seconds(node.drain.deadline)
    return stamps.seconds(node.updated_at) + DRAIN_DEADLINE_DEFAULT_S


def down_since(node: pb.Node) -> float:
    """Since when a node that is down has been so, seconds since the epoch."""
    return stamps.seconds(node.status.since if node.status.HasField("since") else node.updated_at)


def replaceable_at(state: views.View, task: pb.Task, wished: pb.ServiceSpec) -> float:
    """From when on its service lets a task on a lost node be replaced, seconds since the epoch; 0.0 = at once.

    `wished` is what its service asks for now. A node that was deleted is given up by whoever deleted it.
    """
    node = state.nodes.get(task.node_id)
    if node is None:
        return 0.0
    drained = node.spec.availability == pb.NODE_AVAILABILITY_DRAIN
    patience_s = 0.0 if drained else policies.replace_after_s(wished.labels)
    return down_since(node) + patience_s if patience_s else 0.0


def lease_s(state: views.View, task: pb.Task) -> float:
    """After how much silence of its node a task that must never run twice has certainly stopped; else 0.0."""
    revision = state.revisions.get(task.revision_id)
    if revision is None or policies.lease_s(revision.spec.labels) is None:
        return 0.0
    return policies.certainly_stopped_s(revision.spec)


def certainly_stopped(state: views.View, task: pb.Task) -> bool:
    """Whether a task on a lost node does not run any more, if it is one that must never run twice.

    Its agent has stopped it by then (`agent.tasks.lease`). What is on a deleted node is vouched for by who deleted it.
    """
    node = state.nodes.get(task.node_id)
    return node is None or node.status.silent >= stamps.to_nanos(lease_s(state, task))


def awaited_silence_s(state: views.View, node_id: str) -> list[float]:
    """How long a node that is down has to be silent for its tasks that must never run twice, where it was not yet.

    In seconds, each as often as tasks wait for it; nothing for a node that is not down.
    """
    node = state.nodes.get(node_id)
    if node is None or not tasks.lost(node):
        return []
    needed = [lease_s(state, task) for task in state.tasks.where("node", node_id) if not tasks.ended(task)]
    return [each for each in needed if stamps.to_nanos(each) > node.status.silent]
