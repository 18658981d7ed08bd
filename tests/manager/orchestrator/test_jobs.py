"""Jobs: so many completions, so many at a time; once on each node; again with every update."""

from collections.abc import Callable

import pytest

from manager.store import ops
from skep import pb
from tests.manager.orchestrator import world

COMPLETE = pb.TASK_STATE_COMPLETE


def cluster(*names: str, endless: bool = True) -> world.World:
    found = world.World()
    found.endless = endless
    for name in names:
        found.node(name)
    return found


def completed(w: world.World, name: str) -> list[pb.Task]:
    present = w.the_service(name).job_status.job_iteration.index
    return [t for t in w.tasks(name) if t.status.state == COMPLETE and t.job_iteration.index == present]


def policy(condition: pb.RestartCondition.ValueType, attempts: int = 0) -> Callable[[pb.ServiceSpec], object]:
    return lambda spec: spec.task.restart.CopyFrom(pb.RestartPolicy(condition=condition, max_attempts=attempts))


def test_so_many_at_a_time_until_so_many_are_complete() -> None:
    w = cluster("n1", "n2")
    w.job("batch", total=5, concurrent=2)
    w.go()
    assert [task.slot for task in w.running("batch")] == [1, 2]
    assert {task.desired_state for task in w.running("batch")} == {COMPLETE}
    for done in range(1, 6):
        w.report(w.running("batch")[0].id, COMPLETE)
        w.go()
        assert len(w.running("batch")) == min(2, 5 - done)
    assert sorted(task.slot for task in completed(w, "batch")) == [1, 2, 3, 4, 5]
    assert w.decide() == 0


def test_a_failed_task_is_tried_again_in_its_slot_after_the_delay() -> None:
    w = cluster("n1")
    w.job("batch", total=2, concurrent=1)
    w.go()
    failed = w.running("batch")[0]
    w.report(failed.id, pb.TASK_STATE_FAILED)
    w.go(for_s=4.9)
    (again,) = w.wished("batch")  # it counts as running: no other slot starts meanwhile
    assert (again.slot, again.replaces, again.desired_state) == (1, failed.id, pb.TASK_STATE_READY)
    w.go(for_s=0.2)
    assert w.running("batch")[0].desired_state == COMPLETE


@pytest.mark.parametrize("condition", [pb.RESTART_CONDITION_ANY, pb.RESTART_CONDITION_ON_FAILURE])
def test_any_and_on_failure_mean_the_same(condition: pb.RestartCondition.ValueType) -> None:
    w = cluster("n1", endless=False)
    w.job("batch", 1, 1, policy(condition))
    w.go(for_s=60.0)
    assert len(w.tasks("batch")) == 1  # completed, and not run again
    w.job("fails", 1, 1, policy(condition))
    w.refuse["fails@1"] = pb.TASK_STATE_FAILED
    w.go(for_s=12.0)
    assert len(w.tasks("fails")) > 1


@pytest.mark.parametrize(("condition", "attempts", "runs"), [("none", 0, 1), ("any", 2, 3)])
def test_a_slot_that_is_given_up_is_not_filled_anew(condition: str, attempts: int, runs: int) -> None:
    w = cluster("n1")
    wanted = pb.RESTART_CONDITION_NONE if condition == "none" else pb.RESTART_CONDITION_ANY
    w.refuse["batch@1"] = pb.TASK_STATE_FAILED
    w.job("batch", 2, 1, policy(wanted, attempts))
    w.go(for_s=300.0)
    assert sorted(task.slot for task in w.tasks("batch")) == sorted([1, 2] * runs)
    assert w.decide() == 0


def test_fewer_at_a_time_while_more_run_is_no_error() -> None:
    w = cluster("n1")
    w.job("batch", total=6, concurrent=4)
    w.go()
    w.update("batch", lambda spec: setattr(spec.mode.replicated_job, "max_concurrent", 1))
    w.go()
    assert len(w.running("batch")) == 1  # the iteration before was removed
    service = pb.Service()
    service.CopyFrom(w.the_service("batch"))
    spec = pb.Revision(id="batch@less", service_id="batch", number=9, spec=w.view.spec(service))
    spec.spec.mode.replicated_job.max_concurrent = 0
    service.revision_id = "batch@less"
    w.write(ops.create(spec), ops.update(service))  # lowered within an iteration
    w.go()
    assert len(w.running("batch")) == 1
    w.report(w.running("batch")[0].id, COMPLETE)
    w.go()
    assert w.running("batch") == []


def test_every_update_runs_it_again_and_removes_what_still_runs() -> None:
    w = cluster("n1")
    w.job("batch", total=3, concurrent=2)
    w.go()
    w.report(w.running("batch")[0].id, COMPLETE)
    w.go()
    before = {task.id for task in w.running("batch")}
    w.deploy("batch", "demo:2")
    w.go()
    assert not before & {task.id for task in w.tasks("batch")}
    assert {(task.slot, task.job_iteration.index) for task in w.running("batch")} == {(1, 1), (2, 1)}
    assert [t.job_iteration.index for t in w.tasks("batch") if t.status.state == COMPLETE] == [0]
    assert w.status("batch")[0] == pb.UPDATE_STATE_UNKNOWN


def test_a_job_keeps_no_endless_history() -> None:
    w = cluster("n1", endless=False)
    w.job("batch", total=1, concurrent=1)
    w.go()
    for number in range(2, 12):
        w.deploy("batch", f"demo:{number}")
        w.go()
    assert len(w.tasks("batch")) == 5
    w.refuse[w.deploy("batch", "demo:bad")] = pb.TASK_STATE_FAILED
    w.go(for_s=600.0)
    assert len(w.tasks("batch")) <= 6  # the one that was just created beside the five


def test_completions_that_count_are_never_forgotten() -> None:
    w = cluster("n1", endless=False)
    cluster_object = pb.Cluster(id="c")
    cluster_object.spec.orchestration.task_history_retention_limit = 0
    w.write(ops.create(cluster_object))
    w.job("batch", total=4, concurrent=2)
    w.go(for_s=60.0)
    assert len(completed(w, "batch")) == 4


@pytest.mark.parametrize("how", ["drain", "down"])
def test_tasks_leave_a_node(how: str) -> None:
    w = cluster("n1", "n2")
    w.job("batch", total=4, concurrent=4)
    w.go()
    w.drain("n1") if how == "drain" else w.down("n1")
    w.go(for_s=1.0)
    assert w.spread("batch") == {"n2": 4}
    assert sorted(task.slot for task in w.running("batch")) == [1, 2, 3, 4]


def test_at_most_once_moves_only_what_has_not_begun() -> None:
    w = cluster("n1")
    w.job("batch", 2, 2, policy(pb.RESTART_CONDITION_NONE))
    w.decide()
    w.report(w.tasks("batch")[0].id, pb.TASK_STATE_RUNNING)
    w.node("n2")
    w.down("n1")
    w.decide()
    assert {task.slot: task.node_id for task in w.wished("batch")} == {2: "n2"}


def test_a_completion_reported_late_counts() -> None:
    w = cluster("n1", "n2")
    w.job("batch", total=1, concurrent=1)
    w.go()
    first = w.running("batch")[0]
    w.down(first.node_id)
    w.go()
    w.report(first.id, COMPLETE)
    w.go()
    assert w.running("batch") == []
    assert len(completed(w, "batch")) == 1


def test_a_global_job_completes_once_on_each_node_also_on_new_ones() -> None:
    w = cluster("n1", "n2", endless=False)
    w.job_everywhere("sweep")
    w.go(for_s=10.0)
    assert sorted(task.node_id for task in completed(w, "sweep")) == ["n1", "n2"]
    w.node("n3")
    w.go()
    assert sorted(task.node_id for task in completed(w, "sweep")) == ["n1", "n2", "n3"]
    assert w.decide() == 0


def test_a_global_job_runs_again_with_every_update_and_forgets_the_iteration_before() -> None:
    w = cluster("n1", "n2", endless=False)
    w.job_everywhere("sweep")
    w.go()
    w.deploy("sweep", "demo:2")
    w.go()
    assert sorted((t.node_id, t.job_iteration.index) for t in w.tasks("sweep")) == [("n1", 1), ("n2", 1)]


def test_a_global_job_on_a_node_that_leaves_and_returns() -> None:
    w = cluster("n1", "n2")
    w.job_everywhere("sweep")
    w.go()
    w.drain("n1")
    w.go()
    assert w.spread("sweep") == {"n2": 1}
    w.revive("n1")
    w.go()
    assert w.spread("sweep") == {"n1": 1, "n2": 1}
    for task in w.running("sweep"):
        w.report(task.id, COMPLETE)
    w.drain("n1")
    w.go()
    w.revive("n1")
    w.go()
    assert len(completed(w, "sweep")) == 2
    assert w.running("sweep") == []


def test_the_attempts_of_a_global_job_are_counted_on_each_node() -> None:
    w = cluster("n1", "n2")
    w.job_everywhere("sweep", policy(pb.RESTART_CONDITION_ANY, attempts=2))
    w.go()
    for _ in range(10):
        for task in w.running("sweep"):
            if task.node_id == "n1":
                w.report(task.id, pb.TASK_STATE_FAILED)
        w.go(for_s=60.0)
    runs = [task for task in w.tasks("sweep") if task.node_id == "n1"]
    assert [task.status.state for task in runs] == [pb.TASK_STATE_FAILED] * 3
    assert w.spread("sweep") == {"n2": 1}


def test_a_global_job_on_a_paused_node_goes_on_and_is_tried_again_only_afterwards() -> None:
    w = cluster("n1", "n2")
    w.job_everywhere("sweep")
    w.go()
    w.available("n1", pb.NODE_AVAILABILITY_PAUSE)
    assert w.decide() == 0
    (task,) = [task for task in w.running("sweep") if task.node_id == "n1"]
    w.report(task.id, pb.TASK_STATE_FAILED)
    w.go(for_s=30.0)
    assert len(w.running("sweep")) == 1
    w.revive("n1")
    w.go(for_s=30.0)
    assert len(w.running("sweep")) == 2


def test_removing_a_job_leaves_nothing() -> None:
    w = cluster("n1", endless=False)
    w.job("batch", total=3, concurrent=1)
    w.go()
    w.write(ops.delete(w.the_service("batch")))
    w.go()
    assert (w.tasks("batch"), len(w.view.revisions)) == ([], 0)
