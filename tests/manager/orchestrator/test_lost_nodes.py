"""Lost nodes by policy, and crash loops that slow down."""

from collections.abc import Callable

import pytest

from manager.orchestrator import restart, services
from manager.store import ops
from skep import pb, policies, stamps
from tests.manager.orchestrator import world


def cluster(*names: str) -> world.World:
    found = world.World()
    for name in names:
        found.node(name)
    return found


def labelled(**labels: str) -> Callable[[pb.ServiceSpec], object]:
    return lambda spec: spec.labels.update({f"io.skep.{key.replace('_', '-')}": value for key, value in labels.items()})


def test_a_flapping_node_keeps_its_tasks_within_the_window() -> None:
    w = cluster("n1", "n2")
    w.service("web", 2, labelled(replace_after="60s"))
    w.go()
    before = {task.id for task in w.running("web")}
    w.down("n1")
    w.go(for_s=59.0)
    assert {task.id for task in w.wished("web")} == before
    w.hung.clear()
    w.change_node("n1", lambda node: setattr(node.status, "state", pb.NODE_STATE_READY))
    w.go(for_s=200.0)
    assert {task.id for task in w.running("web")} == before
    w.down("n1")
    w.go(for_s=61.0)
    assert w.spread("web") == {"n2": 2}


def test_a_node_that_is_back_before_its_tasks_are_replaced_stops_them_first() -> None:
    w = cluster("n1")
    w.service("web", 1)
    w.go()
    (old,) = w.running("web")
    w.down("n1")
    decided = services.Services().decide(w.view, w.clock.now(), w.rng, None)
    w.change_node("n1", lambda node: setattr(node.status, "state", pb.NODE_STATE_READY))
    w.write(*decided.ops)  # was decided before, and takes effect after
    w.decide()
    (successor,) = w.wished("web")
    assert (successor.replaces, successor.desired_state) == (old.id, pb.TASK_STATE_READY)
    w.hung.clear()
    w.go(for_s=1.0)
    assert [task.id for task in w.running("web")] == [successor.id]


def test_what_must_never_run_twice_is_replaced_once_it_has_certainly_stopped() -> None:
    w = cluster("n1", "n2")
    w.service("db", 1, labelled(at_most_once="20s"))
    w.go()
    (old,) = w.running("db")
    spec = w.view.revision(old.revision_id).spec
    wait_s = policies.certainly_stopped_s(spec)
    assert wait_s >= 20.0 + 10.0  # lease and stop grace period
    w.down(old.node_id)
    w.go(for_s=wait_s - 1.0)
    assert [task.id for task in w.wished("db")] == [old.id]
    w.go(for_s=2.0)
    assert [task.node_id != old.node_id for task in w.running("db")] == [True]


def test_at_most_once_waits_for_a_hung_predecessor_without_end() -> None:
    w = cluster("n1", "n2")
    w.service("db", 1, labelled(at_most_once="true"))
    w.go()
    (old,) = w.running("db")
    w.hung[old.node_id] = None
    w.deploy("db", "demo:2")
    w.go(for_s=500.0)
    assert [task.status.state for task in w.wished("db") if task.node_id != old.node_id] in ([pb.TASK_STATE_READY], [])
    assert not w.running("db")
    w.down(old.node_id)
    w.go(for_s=200.0)
    assert len(w.running("db")) == 1


def test_the_successor_of_one_that_was_lost_while_it_waited_waits_on() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 1)
    w.go()
    (old,) = w.running("web")
    w.deploy("web", "demo:2")
    w.decide()
    while (coming := w.wished("web")[-1]).status.state != pb.TASK_STATE_READY:
        w.agents()
        w.decide()
    w.hung[old.node_id] = None  # told to stop, and it takes its time
    assert coming.node_id != old.node_id
    w.down(coming.node_id)
    w.go(for_s=50.0)
    assert not w.running("web")  # the first version may still run, so nothing else does
    del w.hung[old.node_id]
    w.go(for_s=1.0)
    assert [task.revision_id for task in w.running("web")] == ["web@2"]


# ------------------------------------------------------------------ crash loops


@pytest.mark.parametrize(
    ("delay_s", "failures", "expected"),
    [
        (5.0, 0, 5.0),
        (5.0, 1, 5.0),
        (5.0, 3, 5.0),  # as in Docker's swarm mode up to here
        (5.0, 4, 10.0),
        (5.0, 5, 20.0),
        (5.0, 9, 300.0),
        (5.0, 10_000, 300.0),
        (0.0, 3, 0.0),
        (0.0, 4, 2.0),
        (400.0, 50, 400.0),
    ],
)
def test_the_delay_grows(delay_s: float, failures: int, expected: float) -> None:
    assert restart.backed_off_s(delay_s, failures, None) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("state", "ran_s", "before", "after"),
    [
        (pb.TASK_STATE_FAILED, 1.0, 4, 5),
        (pb.TASK_STATE_REJECTED, None, 0, 1),
        (pb.TASK_STATE_FAILED, 59.0, 4, 5),
        (pb.TASK_STATE_FAILED, 61.0, 4, 1),
        (pb.TASK_STATE_COMPLETE, 1.0, 4, 0),
        (pb.TASK_STATE_SHUTDOWN, 1.0, 4, 0),
        (pb.TASK_STATE_ORPHANED, 1.0, 4, 0),
    ],
)
def test_what_counts_as_a_failure_in_a_row(
    state: pb.TaskState.ValueType, ran_s: float | None, before: int, after: int
) -> None:
    task = pb.Task(failures=before)
    task.status.state = state
    task.status.applied_at.CopyFrom(stamps.stamp(1000.0))
    if ran_s is not None:
        task.running_at.CopyFrom(stamps.stamp(1000.0 - ran_s))
    assert restart.failures_after(task, pb.RestartPolicy()) == after


def test_a_crash_loop_slows_down_says_so_and_recovers() -> None:
    w = cluster("n1")
    w.service("web", 1)
    w.go()
    said: list[str] = []
    gaps: list[float] = []
    for _ in range(7):
        w.report(w.running("web")[0].id, pb.TASK_STATE_FAILED)
        at = w.clock.now()
        services = next(decider for decider in w.deciders if decider.name == "services")
        result = services.decide(w.view, at, w.rng, None)
        said += [op.object.task.status.message for op in result.ops if op.kind == pb.OP_KIND_CREATE]
        for _ in range(1000):
            w.go(for_s=0.5)
            if w.running("web"):
                break
        gaps.append(w.clock.now() - at)
    assert gaps[:3] == pytest.approx([5.0] * 3, abs=0.6)
    for gap, expected in zip(gaps[3:], (10.0, 20.0, 40.0, 80.0), strict=True):
        assert gap == pytest.approx(expected, rel=0.15)
    assert said[3].endswith("failed 4 times in a row")
    w.go(for_s=61.0)
    w.report(w.running("web")[0].id, pb.TASK_STATE_FAILED)
    w.go(for_s=5.5)
    assert len(w.running("web")) == 1  # healthy time has reset it


def test_a_new_version_does_not_inherit_failures() -> None:
    w = cluster("n1")
    w.service("web", 1)
    w.refuse["web@1"] = pb.TASK_STATE_FAILED
    w.go(for_s=300.0)
    w.deploy("web", "demo:2")
    w.go(for_s=10.0)
    (task,) = w.running("web")
    assert (task.revision_id, task.failures) == ("web@2", 0)


def test_a_deleted_node_is_given_up_even_within_the_window() -> None:
    w = cluster("n1", "n2")
    w.service("web", 2, labelled(replace_after="1h"))
    w.go()
    node = w.view.nodes.get("n1")
    assert node is not None
    w.hung["n1"] = None
    w.write(ops.delete(node))
    w.go()
    assert w.spread("web") == {"n2": 2}


def test_a_node_lost_in_a_rollback_does_not_let_the_outdated_successor_start_beside_the_new_one() -> None:
    w = world.World()
    for name in ("n1", "n2", "n3"):
        w.node(name)
    w.service("web", 1)
    w.go()
    (old,) = w.running("web")
    w.deploy("web", "demo:2")
    w.decide()
    (prepared,) = [task for task in w.tasks("web") if task.replaces == old.id]  # waits for the old one to stop
    w.roll_back("web")
    w.down(old.node_id)
    most: list[int] = []

    def count() -> None:
        runnable = [task for task in w.wished("web") if task.desired_state == pb.TASK_STATE_RUNNING]
        most.append(len([task for task in runnable if task.node_id not in w.hung]))

    w.check = count
    w.go(for_s=30.0)
    assert max(most) == 1
    (running,) = w.running("web")
    assert (running.id != prepared.id, running.revision_id) == (True, "web@1")
