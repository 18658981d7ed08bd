"""The restart policy, as a table and in a running cluster."""

import pytest

from manager.orchestrator import restart
from skep import pb, stamps
from tests.manager.orchestrator import world

ANY, ON_FAILURE, NONE = pb.RESTART_CONDITION_ANY, pb.RESTART_CONDITION_ON_FAILURE, pb.RESTART_CONDITION_NONE


@pytest.mark.parametrize(
    ("condition", "state", "expected"),
    [
        (ANY, pb.TASK_STATE_COMPLETE, True),
        (ANY, pb.TASK_STATE_FAILED, True),
        (ON_FAILURE, pb.TASK_STATE_COMPLETE, False),
        (ON_FAILURE, pb.TASK_STATE_FAILED, True),
        (ON_FAILURE, pb.TASK_STATE_REJECTED, True),
        (ON_FAILURE, pb.TASK_STATE_SHUTDOWN, True),
        (ON_FAILURE, pb.TASK_STATE_ORPHANED, True),
        (NONE, pb.TASK_STATE_FAILED, False),
        (NONE, pb.TASK_STATE_COMPLETE, False),
    ],
)
def test_condition(condition: pb.RestartCondition.ValueType, state: pb.TaskState.ValueType, expected: bool) -> None:
    task = pb.Task()
    task.status.state = state
    assert restart.allowed(task, pb.RestartPolicy(condition=condition), [task]) is expected


def history(*moments: float, revision: str = "r1") -> list[pb.Task]:
    found = []
    for moment in moments:
        task = pb.Task(revision_id=revision, created_at=stamps.stamp(moment))
        task.status.state = pb.TASK_STATE_FAILED
        task.status.applied_at.CopyFrom(stamps.stamp(moment + 1.0))
        found.append(task)
    return found


@pytest.mark.parametrize(
    ("slot", "max_attempts", "window_s", "expected"),
    [
        (history(0), 1, 0, True),
        (history(0, 10), 1, 0, False),
        (history(0, 10), 2, 0, True),
        (history(0, 10, 20), 2, 0, False),
        (history(0, 10, revision="r0") + history(20), 1, 0, True),  # a new revision starts afresh
        (history(0, 100, 200), 2, 50, True),  # one restart in the window
        (history(0, 190, 200), 2, 50, False),
        (history(0, 10, 20, 30), 0, 0, True),  # no limit
    ],
)
def test_attempts(slot: list[pb.Task], max_attempts: int, window_s: float, expected: bool) -> None:
    policy = pb.RestartPolicy(max_attempts=max_attempts, window=stamps.to_nanos(window_s))
    assert restart.allowed(slot[-1], policy, slot) is expected


@pytest.mark.parametrize(
    ("delay", "ended_at", "now", "expected"),
    [
        (None, 100.0, 100.0, 105.0),
        (2.0, 100.0, 100.0, 102.0),
        (0.0, 100.0, 101.0, 100.0),
        (5.0, 100.0, 103.0, 105.0),
        (5.0, 200.0, 100.0, 105.0),  # stamped by a clock ahead of ours
    ],
)
def test_delay(delay: float | None, ended_at: float, now: float, expected: float) -> None:
    policy = pb.RestartPolicy()
    if delay is not None:
        policy.delay = stamps.to_nanos(delay)
    task = pb.Task()
    task.status.applied_at.CopyFrom(stamps.stamp(ended_at))
    assert restart.not_before(task, policy, now) == expected


def with_policy(**fields: int) -> world.World:
    w = world.World()
    w.node("n1")
    w.service("web", 1, lambda spec: spec.task.restart.CopyFrom(pb.RestartPolicy(**fields)))  # type: ignore[arg-type]
    w.go()
    return w


def test_n_attempts_are_n_plus_one_runs_and_then_rest() -> None:
    w = with_policy(max_attempts=2, delay=stamps.to_nanos(1.0))
    w.refuse["web@1"] = pb.TASK_STATE_FAILED
    w.go(for_s=600.0)
    assert [task.status.state for task in w.tasks("web")] == [pb.TASK_STATE_FAILED] * 3
    assert w.wished("web") == []
    assert w.due is None


def test_a_window_lets_it_try_again_later_failures() -> None:
    w = with_policy(max_attempts=1, delay=0, window=stamps.to_nanos(10.0))
    for _ in range(4):
        w.report(w.running("web")[0].id, pb.TASK_STATE_FAILED)
        w.go()
        assert len(w.running("web")) == 1
        w.go(for_s=60.0)
    w.report(w.running("web")[0].id, pb.TASK_STATE_FAILED)
    w.go(for_s=1.0)
    w.report(w.running("web")[0].id, pb.TASK_STATE_FAILED)
    w.go(for_s=60.0)
    assert w.running("web") == []


def test_a_finished_task_stays_finished_but_can_be_updated() -> None:
    w = with_policy(condition=NONE)
    w.report(w.running("web")[0].id, pb.TASK_STATE_COMPLETE)
    w.go(for_s=100.0)
    assert len(w.tasks("web")) == 1
    w.scale("web", 2)
    w.go()
    assert [task.slot for task in w.running("web")] == [2]
    w.deploy("web", "demo:2")
    w.go(for_s=100.0)
    assert [(task.slot, task.revision_id) for task in w.running("web")] == [(1, "web@3"), (2, "web@3")]
    assert w.status("web") == (pb.UPDATE_STATE_COMPLETED, "update completed")


def test_a_rollback_starts_finished_slots_anew() -> None:
    w = with_policy(condition=NONE)
    w.deploy("web", "demo:2")
    w.go(for_s=100.0)
    w.report(w.running("web")[0].id, pb.TASK_STATE_COMPLETE)
    w.go(for_s=100.0)
    assert w.running("web") == []
    w.roll_back("web")
    w.go(for_s=100.0)
    assert [task.revision_id for task in w.running("web")] == ["web@1"]


def test_a_task_that_cannot_be_prepared_is_not_tried_in_a_tight_loop() -> None:
    w = world.World()
    w.node("n1")
    w.refuse["web@1"] = pb.TASK_STATE_REJECTED
    w.service("web", 1)
    seen = []
    for _ in range(60):
        w.go(for_s=1.0)
        seen.append(max(w.tasks("web"), key=lambda task: task.created_at.ToNanoseconds()).id)
    assert 5 <= len(dict.fromkeys(seen)) <= 13


def test_a_missing_image_corrected_by_an_update_runs_without_waiting() -> None:
    w = world.World()
    w.node("n1")
    w.refuse["web@1"] = pb.TASK_STATE_REJECTED
    w.service("web", 1, lambda spec: setattr(spec.task.restart, "delay", stamps.to_nanos(1000.0)))
    w.go(for_s=10.0)
    w.deploy("web", "demo:2")
    w.go(for_s=1.0)
    assert [task.revision_id for task in w.running("web")] == ["web@2"]
