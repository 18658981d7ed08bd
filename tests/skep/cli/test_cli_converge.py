"""The judge of convergence, poll after poll."""

from typing import Any

from skep.cli import converge
from tests.skep.cli import objects

Json = dict[str, Any]

NODES = {node["ID"]: node for node in (objects.node("n1", leader=True), objects.node("n2", state="down"))}


def judge(*, before: Json | None = None, rollback: bool = False) -> converge.Judge:
    return converge.Judge(before=before, rollback=rollback)


def status(state: str, message: str = "") -> Json:
    return {"UpdateStatus": {"State": state, "StartedAt": objects.stamp(objects.NOW), "Message": message}}


def running(count: int) -> list[Json]:
    return [objects.task(slot) for slot in range(1, count + 1)]


def test_all_must_run_for_the_monitor_period() -> None:
    watch = judge()
    service = objects.service()
    assert watch.step(service, running(2), NODES, now=0.0).outcome is None
    first = watch.step(service, running(3), NODES, now=1.0)
    assert (first.outcome, first.left_s) == (None, 5.0)
    assert watch.step(service, running(3), NODES, now=5.9).outcome is None
    last = watch.step(service, running(3), NODES, now=6.0).outcome
    assert last is not None
    assert last.ok


def test_a_failure_while_verifying_starts_over() -> None:
    watch = judge()
    service = objects.service()
    watch.step(service, running(3), NODES, now=0.0)
    step = watch.step(service, [*running(2), objects.task(3, "failed", error="boom")], NODES, now=3.0)
    assert "failed" in step.phase
    assert watch.step(service, running(3), NODES, now=4.0).left_s == 5.0
    assert watch.step(service, running(3), NODES, now=8.0).outcome is None


def test_the_specifications_monitor_counts() -> None:
    watch = judge()
    service = objects.service(given=objects.spec(UpdateConfig={"Monitor": 10**9}))
    watch.step(service, running(3), NODES, now=0.0)
    outcome = watch.step(service, running(3), NODES, now=1.0).outcome
    assert outcome is not None
    assert outcome.ok


def test_a_task_on_a_dead_node_does_not_count() -> None:
    picture = converge.picture_of(objects.service(), [*running(2), objects.task(3, node="n2")], NODES)
    assert (picture.running, picture.total, picture.done) == (2, 3, False)


def test_surplus_tasks_keep_a_scale_down_open() -> None:
    service = objects.service(given=objects.spec(replicas=1))
    assert not converge.picture_of(service, running(3), NODES).done
    leaving = [objects.task(1), objects.task(2, desired="remove"), objects.task(3, "shutdown", desired="remove")]
    assert converge.picture_of(service, leaving, NODES).done


def test_nothing_is_verified_when_nothing_is_to_run() -> None:
    outcome = judge().step(objects.service(given=objects.spec(replicas=0)), [], NODES, now=0.0).outcome
    assert outcome is not None
    assert outcome.ok


def test_why_tasks_wait_is_shown_and_the_earlier_attempts_error() -> None:
    found = [objects.task(1, "pending", node="", error="no suitable node (2 drained)"),
             objects.task(2, "ready", attempt=2, age_s=1.0),
             objects.task(2, "failed", desired="shutdown", error="exit 1")]  # fmt: skip
    assert converge.picture_of(objects.service(), found, NODES).reasons == ["no suitable node (2 drained)", "exit 1"]


def test_an_update_must_complete_and_run() -> None:
    watch = judge()
    assert watch.step(objects.service(**status("updating")), running(3), NODES, now=0.0).phase == "updating"
    assert watch.step(objects.service(**status("updating")), running(3), NODES, now=60.0).outcome is None
    assert watch.step(objects.service(**status("completed")), running(2), NODES, now=61.0).outcome is None
    outcome = watch.step(objects.service(**status("completed")), running(3), NODES, now=62.0).outcome
    assert outcome is not None
    assert outcome.ok


def test_the_status_of_an_earlier_update_tells_nothing() -> None:
    for state in ("completed", "paused", "rollback_completed"):
        old = status(state)
        watch = judge(before=old["UpdateStatus"])
        assert watch.step(objects.service(**old), running(3), NODES, now=0.0).outcome is None
        outcome = watch.step(objects.service(**old), running(3), NODES, now=5.0).outcome
        assert outcome is not None
        assert outcome.ok


def test_a_paused_update_fails_with_the_reason() -> None:
    found = [*running(2), objects.task(3, "failed", error="exit 1")]
    outcome = judge().step(objects.service(**status("paused", "update paused due to X")), found, NODES, now=0.0).outcome
    assert outcome is not None
    assert not outcome.ok
    assert "update paused due to X (exit 1)" in outcome.message


def test_an_update_that_was_rolled_back_fails_with_the_first_cause() -> None:
    watch = judge()
    assert (
        watch.step(objects.service(**status("rollback_started", "task X failed")), [], NODES, now=0.0).outcome is None
    )
    outcome = watch.step(
        objects.service(**status("rollback_completed", "rollback completed")), running(3), NODES, now=9.0
    ).outcome
    assert outcome is not None
    assert not outcome.ok
    assert "task X failed" in outcome.message


def test_a_rollback_that_was_asked_for_succeeds() -> None:
    watch = judge(rollback=True)
    watch.step(objects.service(**status("rollback_started", "manually requested rollback")), [], NODES, now=0.0)
    outcome = watch.step(objects.service(**status("rollback_completed")), running(3), NODES, now=9.0).outcome
    assert outcome is not None
    assert outcome.ok
    paused = judge(rollback=True).step(objects.service(**status("rollback_paused")), [], NODES, now=0.0).outcome
    assert paused is not None
    assert not paused.ok


def test_tasks_that_ended_for_good_are_a_failure_after_a_grace() -> None:
    watch = judge()
    found = [*running(2), objects.task(3, "failed", desired="shutdown", error="exit 1")]
    assert watch.step(objects.service(), found, NODES, now=0.0).outcome is None
    outcome = watch.step(objects.service(), found, NODES, now=5.0).outcome
    assert outcome is not None
    assert not outcome.ok
    assert "1 of 3" in outcome.message
    # With a restart on its way nothing has ended.
    watch = judge()
    coming = [*found, objects.task(3, "ready", desired="ready", attempt=2, age_s=1.0)]
    assert watch.step(objects.service(), coming, NODES, now=0.0).outcome is None
    assert watch.step(objects.service(), coming, NODES, now=60.0).outcome is None


def test_a_global_service_waits_for_its_first_task() -> None:
    service = objects.service(given=objects.spec(mode={"Global": {}}))
    assert not converge.picture_of(service, [], NODES).done
    picture = converge.picture_of(service, [objects.task(0)], NODES)
    assert picture.done
    assert picture.slots[0].name == "n1"


def test_jobs_end_when_all_have_completed() -> None:
    spec = objects.spec(mode={"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}})
    service = objects.service(given=spec, JobStatus={"JobIteration": {}})
    watch = judge()
    one = [{**objects.task(0, "complete", desired="complete"), "JobIteration": {}}]
    assert watch.step(service, one, NODES, now=0.0).outcome is None
    two = [*one, {**objects.task(1, "complete", desired="complete"), "JobIteration": {}}]
    outcome = watch.step(service, two, NODES, now=1.0).outcome
    assert outcome is not None
    assert outcome.ok
    old = [{**each, "JobIteration": {"Index": 7}} for each in two]
    assert judge().step(service, old, NODES, now=0.0).outcome is None
