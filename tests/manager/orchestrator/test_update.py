"""Rolling updates and rollbacks, told by when which tasks run."""

from collections.abc import Callable

import pytest

from manager.orchestrator import dirty, update, update_settings
from manager.store import ops
from skep import pb, stamps
from tests.manager.orchestrator import world

UPDATING = (pb.UPDATE_STATE_UPDATING, "update in progress")
COMPLETED = (pb.UPDATE_STATE_COMPLETED, "update completed")
PAUSE, CONTINUE, ROLLBACK = pb.FAILURE_ACTION_PAUSE, pb.FAILURE_ACTION_CONTINUE, pb.FAILURE_ACTION_ROLLBACK
STOP_FIRST, START_FIRST = pb.UPDATE_ORDER_STOP_FIRST, pb.UPDATE_ORDER_START_FIRST


def config(
    *,
    parallelism: int = 1,
    delay_s: float = 0.0,
    monitor_s: float = 5.0,
    action: pb.FailureAction.ValueType = PAUSE,
    ratio: float = 0.0,
    order: pb.UpdateOrder.ValueType = STOP_FIRST,
) -> pb.UpdateConfig:
    return pb.UpdateConfig(
        parallelism=parallelism,
        delay=stamps.to_nanos(delay_s),
        monitor=stamps.to_nanos(monitor_s),
        failure_action=action,
        max_failure_ratio=ratio,
        order=order,
    )


def running(
    replicas: int, forward: pb.UpdateConfig | None = None, backward: pb.UpdateConfig | None = None
) -> world.World:
    def change(spec: pb.ServiceSpec) -> None:
        if forward is not None:
            spec.update.CopyFrom(forward)
        if backward is not None:
            spec.rollback.CopyFrom(backward)
        spec.task.restart.delay = stamps.to_nanos(1.0)

    w = world.World()
    for name in ("n1", "n2", "n3"):
        w.node(name)
    w.service("web", replicas, change)
    w.go(for_s=100.0)
    assert len(w.running("web")) == replicas
    return w


def revisions(w: world.World) -> dict[str, int]:
    counts: dict[str, int] = {}
    for task in w.wished("web"):
        counts[task.revision_id] = counts.get(task.revision_id, 0) + 1
    return counts


def watch_running(w: world.World) -> Callable[[], int]:
    """The lowest number of running tasks from now on."""
    lowest = len(w.running("web"))

    def check() -> None:
        nonlocal lowest
        lowest = min(lowest, len(w.running("web")))

    w.check = check
    return lambda: lowest


def test_defaults_are_dockers() -> None:
    found = update_settings.of(pb.ServiceSpec(), pb.UPDATE_STATE_UPDATING)
    assert found == update_settings.Settings(1, 0.0, 5.0, PAUSE, 0.0, STOP_FIRST)
    empty = pb.ServiceSpec(update=pb.UpdateConfig())
    assert update_settings.of(empty, pb.UPDATE_STATE_UPDATING).parallelism == 0
    assert update_settings.of(empty, pb.UPDATE_STATE_ROLLBACK_STARTED).parallelism == 1


@pytest.mark.parametrize(("delay_s", "monitor_s", "expected"), [(0, 5, 5), (4, 5, 5), (5, 5, 6), (9, 5, 10)])
def test_the_last_slots_are_watched(delay_s: float, monitor_s: float, expected: float) -> None:
    spec = pb.ServiceSpec(update=config(delay_s=delay_s, monitor_s=monitor_s))
    assert update_settings.of(spec, pb.UPDATE_STATE_UPDATING).watch_s == expected


@pytest.mark.parametrize("parallelism", [0, 1, 2, 4])
@pytest.mark.parametrize("order", [STOP_FIRST, START_FIRST])
def test_an_update_replaces_everything_and_keeps_its_promise(parallelism: int, order: pb.UpdateOrder.ValueType) -> None:
    w = running(4, config(parallelism=parallelism, order=order))
    lowest = watch_running(w)
    w.deploy("web", "demo:2")
    w.go(for_s=1.0)
    assert revisions(w) == {"web@2": 4}
    assert len(w.running("web")) == 4
    assert lowest() == (4 if order == START_FIRST else 4 - (parallelism or 4))
    assert w.status("web") == UPDATING  # still watched
    w.go(for_s=5.0)
    assert w.status("web") == COMPLETED
    status = w.the_service("web").update_status
    assert stamps.seconds(status.completed_at) - stamps.seconds(status.started_at) == pytest.approx(5.0)
    assert w.decide() == 0


def test_the_delay_is_each_workers_own() -> None:
    w = running(5, config(parallelism=2, delay_s=10.0))
    w.deploy("web", "demo:2")
    seen = []
    for _ in range(4):
        w.go()
        seen.append(revisions(w).get("web@2", 0))
        w.go(for_s=10.0)
    assert seen == [2, 4, 5, 5]


def test_a_worker_waits_until_the_new_task_runs() -> None:
    w = running(3, config())
    for name in ("n1", "n2", "n3"):
        w.hung[name] = None
    w.deploy("web", "demo:2")
    w.go(for_s=300.0)
    assert revisions(w) == {"web@1": 3, "web@2": 1}  # the old one goes on until the new one is prepared
    w.hung.clear()
    w.go(for_s=100.0)
    assert revisions(w) == {"web@2": 3}
    assert w.status("web") == COMPLETED


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        (lambda spec: spec.labels.update(team="a"), False),
        (lambda spec: setattr(spec.update, "parallelism", 3), False),
        (lambda spec: setattr(spec.mode.replicated, "replicas", 3), False),
        (lambda spec: spec.task.placement.constraints.append("node.platform.os==linux"), False),
        (lambda spec: spec.task.placement.constraints.append("node.platform.os==plan9"), True),
        (lambda spec: setattr(spec.task.container, "registry_auth", "xyz"), False),
        (lambda spec: setattr(spec.task, "force_update", 1), True),
        (lambda spec: spec.task.container.labels.update(a="b"), True),
        (lambda spec: setattr(spec.task.resources.reservations, "nano_cpus", 1000), True),
        (lambda spec: setattr(spec.task.restart, "condition", pb.RESTART_CONDITION_ON_FAILURE), True),
        (lambda spec: spec.endpoint.ports.add(target_port=80), True),
    ],
)
def test_what_makes_tasks_outdated(change: Callable[[pb.ServiceSpec], object], replaced: bool) -> None:
    w = running(3, config(parallelism=0))
    before = {task.id for task in w.running("web")}
    w.update("web", change)
    w.go()
    assert w.status("web") == (UPDATING if replaced else (pb.UPDATE_STATE_UNKNOWN, ""))
    assert ("web@2" in revisions(w)) is replaced
    if not replaced:
        assert {task.id for task in w.wished("web")} == before


@pytest.mark.parametrize("how", [pb.TASK_STATE_REJECTED, pb.TASK_STATE_FAILED])
def test_a_failure_pauses(how: int) -> None:
    w = running(3, config())
    revision_id = w.deploy("web", "broken")
    w.refuse[revision_id] = how
    w.go(for_s=1.0)
    state_now, message = w.status("web")
    old = [task.id for task in w.tasks("web") if task.revision_id == "web@1"]
    attempts = [task.id for task in w.tasks("web") if task.revision_id == revision_id and task.replaces in old]
    assert state_now == pb.UPDATE_STATE_PAUSED
    assert message in [f"update paused due to failure or early termination of task {task_id}" for task_id in attempts]
    w.go(for_s=100.0)
    if how == pb.TASK_STATE_REJECTED:  # what cannot be prepared costs no replica, though it is tried again
        assert revisions(w) == {"web@1": 3, revision_id: 1}
        assert len(w.running("web")) == 3
    else:  # what only fails once it runs has let the worker go on to the next slot by then
        assert revisions(w) == {"web@1": 1, revision_id: 2}
    w.deploy("web", "demo:3")  # a further update goes on
    w.go(for_s=100.0)
    assert revisions(w) == {"web@3": 3}
    assert w.status("web") == COMPLETED


def test_a_failure_after_the_monitoring_does_not_count() -> None:
    w = running(2, config(delay_s=20.0))
    w.deploy("web", "demo:2")
    w.go(for_s=6.0)
    (new,) = [task for task in w.running("web") if task.revision_id == "web@2"]
    w.report(new.id, pb.TASK_STATE_FAILED)
    w.go(for_s=100.0)
    assert w.status("web") == COMPLETED


def test_a_task_that_had_to_move_is_no_failure() -> None:
    w = running(3, config(delay_s=3.0))
    w.deploy("web", "demo:2")
    w.go(for_s=1.0)
    (new,) = [task for task in w.running("web") if task.revision_id == "web@2"]
    w.drain(new.node_id)
    w.go(for_s=100.0)
    assert w.status("web") == COMPLETED
    assert revisions(w) == {"web@2": 3}


@pytest.mark.parametrize(("ratio", "paused"), [(0.2, True), (0.25, False), (0.7, False)])
def test_the_ratio_must_be_exceeded(ratio: float, paused: bool) -> None:
    w = running(4, config(ratio=ratio, parallelism=0))
    w.deploy("web", "demo:2")
    w.decide()
    one = next(task for task in w.tasks("web") if task.revision_id == "web@2")
    w.go(for_s=1.0)
    w.report(one.id, pb.TASK_STATE_FAILED)
    w.go(for_s=30.0)
    assert w.status("web")[0] == (pb.UPDATE_STATE_PAUSED if paused else pb.UPDATE_STATE_COMPLETED)


def test_ratios_are_compared_in_single_precision() -> None:
    w = running(10, config(ratio=0.7, parallelism=0))
    w.deploy("web", "demo:2")
    w.decide()
    new = [task.id for task in w.tasks("web") if task.revision_id == "web@2"]
    w.go(for_s=1.0)
    for task_id in new[:7]:
        w.report(task_id, pb.TASK_STATE_FAILED)
    w.decide()
    assert w.status("web") == UPDATING
    w.report(new[7], pb.TASK_STATE_FAILED)
    w.decide()
    assert w.status("web")[0] == pb.UPDATE_STATE_PAUSED


def test_crash_loops_count_once_even_when_their_history_is_trimmed() -> None:
    w = running(4, config(ratio=0.5, delay_s=30.0))
    w.deploy("web", "demo:2")
    for _ in range(20):
        w.go()
        new = [task for task in w.running("web") if task.revision_id == "web@2" and task.slot == 1]
        for task in new:
            w.report(task.id, pb.TASK_STATE_FAILED)
        w.go(for_s=1.0)
    assert w.status("web") == UPDATING
    assert len([task for task in w.tasks("web") if task.slot == 1]) <= 6
    comparison = dirty.Comparison(w.view, w.the_service("web"))
    first = update.attempt(w.the_service("web"), comparison, [task for task in w.tasks("web") if task.slot == 1])
    assert first is not None
    assert w.view.tasks.get(first.replaces) is None  # older ones have gone before it


def test_continue_goes_on_whatever_happens() -> None:
    w = running(3, config(action=CONTINUE))
    w.refuse[w.deploy("web", "broken")] = pb.TASK_STATE_FAILED
    w.go(for_s=30.0)
    assert w.status("web") == COMPLETED
    assert revisions(w) == {"web@2": 3}


def test_rollback_on_failure() -> None:
    w = running(3, config(action=ROLLBACK), config(parallelism=0))
    before = {task.id for task in w.running("web")}
    revision_id = w.deploy("web", "broken")
    w.refuse[revision_id] = pb.TASK_STATE_REJECTED
    messages: list[str] = []
    w.check = lambda: messages.append(w.status("web")[1])
    w.go()
    message = next(message for message in messages if "rolled back" in message)
    assert message.startswith("update rolled back due to failure or early termination of task ")
    w.go(for_s=10.0)
    assert revisions(w) == {"web@1": 3}
    assert {task.id for task in w.running("web")} == before  # whose successors never got so far
    assert w.status("web") == (pb.UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed")
    service = w.the_service("web")
    assert (service.revision_id, service.previous_revision_id) == ("web@1", "")


def test_a_rollback_that_fails_pauses() -> None:
    w = running(2, config(action=ROLLBACK), config(action=ROLLBACK))
    broken = w.deploy("web", "broken")
    w.refuse.update({broken: pb.TASK_STATE_FAILED, "web@1": pb.TASK_STATE_REJECTED})
    w.go(for_s=60.0)
    state, message = w.status("web")
    assert state == pb.UPDATE_STATE_ROLLBACK_PAUSED
    assert message.startswith("rollback paused due to failure or early termination of task ")


def test_without_a_previous_revision_a_failure_pauses() -> None:
    w = running(2, config(action=ROLLBACK))
    revision_id = w.deploy("web", "broken")
    w.refuse[revision_id] = pb.TASK_STATE_REJECTED
    service = pb.Service()
    service.CopyFrom(w.the_service("web"))
    service.previous_revision_id = ""
    w.write(ops.update(service))
    w.go(for_s=60.0)
    assert w.status("web")[0] == pb.UPDATE_STATE_PAUSED


def test_manual_rollback_and_back_again() -> None:
    w = running(3, config(parallelism=0), config(parallelism=0))
    w.deploy("web", "demo:2")
    w.go(for_s=10.0)
    for expected in ("web@1", "web@2"):
        w.roll_back("web")
        w.go()
        assert w.status("web") == (pb.UPDATE_STATE_ROLLBACK_STARTED, "manually requested rollback")
        w.go(for_s=10.0)
        assert revisions(w) == {expected: 3}
        assert w.status("web") == (pb.UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed")


def test_a_new_update_in_the_middle_of_an_old_one() -> None:
    w = running(4, config(delay_s=10.0))
    w.deploy("web", "demo:2")
    w.go(for_s=11.0)
    assert revisions(w) == {"web@1": 2, "web@2": 2}
    w.deploy("web", "demo:3")
    w.go(for_s=100.0)
    assert revisions(w) == {"web@3": 4}
    assert w.status("web") == COMPLETED


def test_start_first_keeps_the_old_task_until_the_new_one_runs() -> None:
    w = running(2, config(order=START_FIRST))
    old = {task.id for task in w.running("web")}
    w.refuse[w.deploy("web", "broken")] = pb.TASK_STATE_REJECTED
    w.go(for_s=60.0)
    assert w.status("web")[0] == pb.UPDATE_STATE_PAUSED
    assert {task.id for task in w.running("web")} == old
    w.refuse.clear()
    w.go(for_s=400.0)  # the restart policy keeps trying, and hands over
    assert len(w.running("web")) == 2
    assert revisions(w) == {"web@1": 1, "web@2": 1}


def test_start_first_that_may_not_restart_ends() -> None:
    w = running(2, config(order=START_FIRST, action=CONTINUE))

    def change(spec: pb.ServiceSpec) -> None:
        spec.task.container.image = "broken"
        spec.task.restart.condition = pb.RESTART_CONDITION_NONE

    w.update("web", change)
    w.refuse["web@2"] = pb.TASK_STATE_REJECTED
    w.go(for_s=60.0)
    assert w.status("web") == COMPLETED
    assert len(w.running("web")) == 2
    assert w.due is None


def test_scale_and_update_at_once_do_not_wait_for_each_other() -> None:
    w = world.World()
    w.node("n1", memory=8 * world.GB)
    w.service("web", 2, lambda spec: setattr(spec.task.resources.reservations, "memory_bytes", 4 * world.GB))
    w.go()

    def change(spec: pb.ServiceSpec) -> None:
        spec.task.resources.reservations.memory_bytes = 2 * world.GB
        spec.mode.replicated.replicas = 4

    w.update("web", change)
    w.decide()
    assert [task.status.state for task in w.wished("web")].count(pb.TASK_STATE_PENDING) == 3
    w.go(for_s=10.0)
    assert w.status("web") == COMPLETED
    assert len(w.running("web")) == 4


def scale_as_control(w: world.World, replicas: int) -> None:
    """Scaling leaves the update's status alone."""
    status = pb.UpdateStatus()
    status.CopyFrom(w.the_service("web").update_status)
    w.scale("web", replicas)
    service = pb.Service()
    service.CopyFrom(w.the_service("web"))
    service.update_status.CopyFrom(status)
    w.write(ops.update(service))


def test_scaling_in_the_middle_changes_nothing_about_the_update() -> None:
    w = running(4, config(delay_s=10.0))
    w.deploy("web", "demo:2")
    w.go(for_s=1.0)
    scale_as_control(w, 5)
    w.go(for_s=1.0)
    assert revisions(w) == {"web@1": 3, "web@2": 1, "web@3": 1}  # the worker still rests
    w.go(for_s=100.0)
    assert revisions(w) == {"web@2": 1, "web@3": 4}
    assert w.status("web") == COMPLETED


def test_a_rollback_after_scaling_in_the_middle_goes_back_to_what_worked() -> None:
    w = running(3, config(action=ROLLBACK, delay_s=3.0))
    w.clock.time += 1.0
    broken = w.deploy("web", "broken")
    w.go()
    scale_as_control(w, 4)
    w.report(next(task.id for task in w.running("web") if task.revision_id == broken), pb.TASK_STATE_FAILED)
    w.go(for_s=60.0)
    assert w.status("web") == (pb.UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed")
    assert revisions(w) == {"web@1": 3}


def test_an_old_task_that_crashes_comes_back_as_the_new_version() -> None:
    w = running(3, config(delay_s=100.0))
    w.deploy("web", "demo:2")
    w.go(for_s=1.0)
    old = next(task for task in w.running("web") if task.revision_id == "web@1")
    w.report(old.id, pb.TASK_STATE_FAILED)
    w.go(for_s=2.0)
    assert revisions(w) == {"web@1": 1, "web@2": 2}
    assert len(w.running("web")) == 3


def test_an_update_needs_no_help_from_whoever_writes_statuses() -> None:
    w = running(2, config())
    w.deploy("web", "demo:2")
    for _ in range(3):
        w.go()
    tasks = [task for task in w.running("web") if task.revision_id == "web@2"]
    changed = pb.Task()
    changed.CopyFrom(tasks[0])
    changed.ClearField("running_at")
    w.write(ops.update(changed))
    w.decide()
    found = w.view.tasks.get(tasks[0].id)
    assert found is not None
    assert found.HasField("running_at")
