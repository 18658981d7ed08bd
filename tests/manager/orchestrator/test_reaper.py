"""What is forgotten, and when."""

import pytest

from manager.store import ops
from skep import pb, stamps
from tests.manager.orchestrator import world


def crash(w: world.World, times: int) -> None:
    for _ in range(times):
        w.report(w.running("web")[0].id, pb.TASK_STATE_FAILED)
        w.go(for_s=400.0)  # longer than any restart delay


def one_task(*, max_attempts: int = 0) -> world.World:
    w = world.World()
    w.node("n1")
    w.service("web", 1, lambda spec: setattr(spec.task.restart, "max_attempts", max_attempts))
    w.go()
    return w


@pytest.mark.parametrize(
    ("limit", "max_attempts", "kept"),
    [(None, 0, 5), (2, 0, 2), (1, 0, 1), (0, 0, 1), (-1, 0, 9), (2, 8, 9), (5, 30, 9)],
)
def test_history_counts_the_running_task(limit: int | None, max_attempts: int, kept: int) -> None:
    w = one_task(max_attempts=max_attempts)
    cluster = pb.Cluster(id="c")
    if limit is not None:
        cluster.spec.orchestration.task_history_retention_limit = limit
    w.write(ops.create(cluster))
    crash(w, 8)
    assert len(w.tasks("web")) == kept
    assert len(w.running("web")) == 1


def test_the_last_task_of_a_finished_slot_stays() -> None:
    w = world.World()
    w.node("n1")
    w.service("web", 1, lambda spec: setattr(spec.task.restart, "condition", pb.RESTART_CONDITION_NONE))
    cluster = pb.Cluster(id="c")
    cluster.spec.orchestration.task_history_retention_limit = 0
    w.write(ops.create(cluster))
    w.go()
    w.report(w.running("web")[0].id, pb.TASK_STATE_COMPLETE)
    w.go(for_s=60.0)
    assert [task.status.state for task in w.tasks("web")] == [pb.TASK_STATE_COMPLETE]


def test_a_task_to_be_removed_goes_once_it_has_stopped() -> None:
    w = one_task()
    w.hung["n1"] = None
    w.scale("web", 0)
    w.go()
    (task,) = w.tasks("web")
    assert task.desired_state == pb.TASK_STATE_REMOVE
    w.report(task.id, pb.TASK_STATE_SHUTDOWN)
    w.go()
    assert w.tasks("web") == []


def test_tasks_of_a_node_that_stays_silent_are_orphaned_after_a_day() -> None:
    w = one_task()
    w.node("n2")
    w.down("n1")
    w.go(for_s=23.9 * 3600)
    assert w.tasks("web")[0].status.state == pb.TASK_STATE_RUNNING
    w.go(for_s=0.2 * 3600)
    assert w.tasks("web")[0].status.state == pb.TASK_STATE_ORPHANED
    assert len(w.running("web")) == 1


def test_a_removed_service_waits_for_a_silent_node_for_a_day() -> None:
    w = one_task()
    w.down("n1")
    w.write(ops.delete(w.the_service("web")))
    w.go(for_s=3600.0)
    assert len(w.tasks("web")) == 1
    w.go(for_s=24 * 3600.0)
    assert (len(w.view.tasks), len(w.view.revisions)) == (0, 0)


def test_revisions_beyond_the_last_ten_go_unless_something_names_them() -> None:
    w = one_task()
    for replicas in range(2, 14):
        w.scale("web", replicas)
        w.decide()
    numbers = sorted(revision.number for revision in w.view.revisions)
    assert numbers == [1, *range(2, 14)]  # each has the task it made
    w.deploy("web", "demo:2")
    w.go(for_s=1000.0)
    w.deploy("web", "demo:3")
    w.go(for_s=1000.0)
    kept = {revision.id for revision in w.view.revisions}
    named = {task.revision_id for task in w.view.tasks}
    newest = {f"web@{number}" for number in range(6, 16)}
    assert kept == named | newest


def test_orphaning_wakes_only_its_service() -> None:
    w = one_task()
    w.down("n1")
    w.decide()
    reaper = w.deciders[-1]
    result = reaper.decide(w.view, w.clock.now(), w.rng, None)
    node = w.view.nodes.get("n1")
    assert node is not None
    assert result.wake_keys == {"web": stamps.seconds(node.updated_at) + 24 * 3600}
