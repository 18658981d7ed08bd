"""Global services: a task on every node that takes one, whatever happens to nodes and specifications."""

import pytest

from manager.orchestrator import services
from manager.store import ops
from skep import pb
from tests.manager.orchestrator import world

EAST = "node.labels.zone==east"


def cluster(*names: str) -> world.World:
    found = world.World()
    for name in names:
        found.node(name)
    return found


def east(spec: pb.ServiceSpec) -> None:
    spec.task.placement.constraints.append(EAST)


def zone(w: world.World, name: str, value: str) -> None:
    w.change_node(name, lambda node: node.spec.labels.update(zone=value))


def test_one_task_on_every_node_without_a_slot() -> None:
    w = cluster("n1", "n2", "n3")
    w.everywhere("agent")
    w.go()
    assert {task.node_id: task.slot for task in w.running("agent")} == {"n1": 0, "n2": 0, "n3": 0}
    assert w.running("agent")[0].desired_state == pb.TASK_STATE_RUNNING
    assert w.decide() == 0


def test_the_scheduler_only_confirms_the_node() -> None:
    w = cluster("n1")
    w.everywhere("agent")
    w.decide()
    (task,) = w.tasks("agent")
    assert task.status.message == "scheduler confirmed task can run on preassigned node"


def test_a_new_node_gets_its_task() -> None:
    w = cluster("n1")
    w.everywhere("agent")
    w.go()
    w.node("n2")
    w.go()
    assert w.spread("agent") == {"n1": 1, "n2": 1}


def test_every_change_of_a_node_that_matters_touches_global_services() -> None:
    w = cluster("n1")
    w.everywhere("agent")
    w.job_everywhere("sweep")
    w.service("web", 0)
    watch = w.store.watch({"node"}, lambda: None)
    w.node("n2")
    w.down("n2")
    w.revive("n2")
    decider = services.Services()
    for change in watch.take():
        assert sorted(decider.touches(w.view, change)) == ["agent", "sweep"]


@pytest.mark.parametrize("how", ["pause", "unknown", "disconnected"])
def test_a_node_that_takes_nothing_new_keeps_what_runs_and_replaces_nothing(how: str) -> None:
    w = cluster("n1", "n2")
    w.everywhere("agent")
    w.go()
    if how == "pause":
        w.available("n1", pb.NODE_AVAILABILITY_PAUSE)
    else:
        state = pb.NODE_STATE_UNKNOWN if how == "unknown" else pb.NODE_STATE_DISCONNECTED
        w.change_node("n1", lambda node: setattr(node.status, "state", state))
    assert w.decide() == 0
    (task,) = [task for task in w.running("agent") if task.node_id == "n1"]
    w.report(task.id, pb.TASK_STATE_FAILED)
    w.go(for_s=60.0)
    assert w.spread("agent") == {"n2": 1}
    assert {t.desired_state for t in w.tasks("agent") if t.node_id == "n1"} == {pb.TASK_STATE_SHUTDOWN}
    w.everywhere("late")
    w.go()
    assert w.spread("late") == {"n2": 1}
    w.revive("n1")
    w.go(for_s=10.0)
    assert w.spread("agent") == {"n1": 1, "n2": 1}
    assert w.spread("late") == {"n1": 1, "n2": 1}


@pytest.mark.parametrize("how", ["drain", "down"])
def test_a_node_that_is_left_stops_its_task_and_gets_another_when_it_returns(how: str) -> None:
    w = cluster("n1", "n2")
    w.everywhere("agent")
    w.go()
    w.drain("n1") if how == "drain" else w.down("n1")
    w.go()
    assert w.spread("agent") == {"n2": 1}
    assert [task.desired_state for task in w.tasks("agent") if task.node_id == "n1"] == [pb.TASK_STATE_SHUTDOWN]
    w.revive("n1")
    w.go()
    assert w.spread("agent") == {"n1": 1, "n2": 1}


def test_a_policy_that_never_restarts_still_brings_a_returning_node_its_task() -> None:
    w = cluster("n1")
    w.everywhere("agent", lambda spec: setattr(spec.task.restart, "condition", pb.RESTART_CONDITION_NONE))
    w.go()
    w.drain("n1")
    w.go()
    w.revive("n1")
    w.go()
    assert w.spread("agent") == {"n1": 1}


def test_tasks_of_a_deleted_node_are_forgotten() -> None:
    w = cluster("n1", "n2")
    w.everywhere("agent")
    w.go()
    node = w.view.nodes.get("n1")
    assert node is not None
    w.hung["n1"] = None
    w.write(ops.delete(node))
    w.go()
    assert [task.node_id for task in w.tasks("agent")] == ["n2"]


def test_only_nodes_that_match_get_one() -> None:
    w = cluster("n1", "n2")
    zone(w, "n1", "east")
    w.everywhere("agent", east)
    w.go()
    assert w.spread("agent") == {"n1": 1}
    zone(w, "n2", "east")
    w.go()
    assert w.spread("agent") == {"n1": 1, "n2": 1}


def test_a_label_that_no_longer_matches_ends_the_task_and_brings_it_back() -> None:
    w = cluster("n1", "n2")
    zone(w, "n1", "east")
    zone(w, "n2", "east")
    w.everywhere("agent", east)
    w.go()
    zone(w, "n1", "west")
    w.go(for_s=30.0)
    assert w.spread("agent") == {"n2": 1}
    zone(w, "n1", "east")
    w.go(for_s=30.0)
    assert w.spread("agent") == {"n1": 1, "n2": 1}


def test_new_constraints_of_the_service_stop_the_others() -> None:
    w = cluster("n1", "n2")
    zone(w, "n1", "east")
    w.everywhere("agent")
    w.go()
    kept = {task.node_id: task.id for task in w.running("agent")}["n1"]
    w.update("agent", east)
    w.go(for_s=30.0)
    assert [task.id for task in w.wished("agent")] == [kept]  # it satisfies them already


def test_what_fails_is_restarted_after_the_delay_on_its_node() -> None:
    w = cluster("n1", "n2")
    w.everywhere("agent")
    w.go()
    old = w.running("agent")[0]
    w.report(old.id, pb.TASK_STATE_FAILED)
    w.go(for_s=4.9)
    (new,) = [task for task in w.wished("agent") if task.node_id == old.node_id]
    assert (new.desired_state, new.replaces) == (pb.TASK_STATE_READY, old.id)
    w.go(for_s=0.2)
    assert len(w.running("agent")) == 2


def test_a_node_whose_task_finished_is_done_until_the_specification_changes() -> None:
    w = cluster("n1", "n2")
    w.everywhere("once", lambda spec: setattr(spec.task.restart, "condition", pb.RESTART_CONDITION_ON_FAILURE))
    w.go()
    w.report(w.running("once")[0].id, pb.TASK_STATE_COMPLETE)
    w.go(for_s=60.0)
    assert len(w.running("once")) == 1
    w.deploy("once", "demo:2")
    w.go(for_s=60.0)
    assert {task.revision_id for task in w.running("once")} == {"once@2"}
    assert len(w.running("once")) == 2


def test_an_update_goes_node_by_node() -> None:
    w = cluster("n1", "n2", "n3")
    w.everywhere("agent")
    w.go()
    fewest: list[int] = []
    w.check = lambda: fewest.append(len(w.running("agent")))
    w.deploy("agent", "demo:2")
    w.go(for_s=60.0)
    assert min(fewest) == 2
    assert {(task.node_id, task.revision_id) for task in w.running("agent")} == {
        ("n1", "agent@2"), ("n2", "agent@2"), ("n3", "agent@2"),
    }  # fmt: skip
    assert w.status("agent") == (pb.UPDATE_STATE_COMPLETED, "update completed")


def test_start_first_has_both_on_the_node_for_a_moment() -> None:
    w = cluster("n1", "n2")
    w.everywhere("agent", lambda spec: setattr(spec.update, "order", pb.UPDATE_ORDER_START_FIRST))
    w.go()
    fewest: list[int] = []
    w.check = lambda: fewest.append(len(w.running("agent")))
    w.deploy("agent", "demo:2")
    w.go(for_s=60.0)
    assert min(fewest) == 2
    assert len(w.running("agent")) == 2


def test_a_failing_update_pauses() -> None:
    w = cluster("n1", "n2")
    w.everywhere("agent")
    w.go()
    w.refuse["agent@2"] = pb.TASK_STATE_REJECTED
    w.deploy("agent", "demo:2")
    w.go(for_s=20.0)
    assert w.status("agent")[0] == pb.UPDATE_STATE_PAUSED
    assert len(w.running("agent")) == 2  # what cannot be prepared costs no replica


def test_a_paused_node_is_no_obstacle_to_an_update_and_follows_when_it_is_back() -> None:
    w = cluster("n1", "n2")
    w.everywhere("agent")
    w.go()
    w.available("n1", pb.NODE_AVAILABILITY_PAUSE)
    w.deploy("agent", "demo:2")
    w.go(for_s=60.0)
    assert w.status("agent")[0] == pb.UPDATE_STATE_COMPLETED
    assert {task.node_id: task.revision_id for task in w.running("agent")} == {"n1": "agent@1", "n2": "agent@2"}
    w.revive("n1")
    w.go(for_s=60.0)
    assert {task.node_id: task.revision_id for task in w.running("agent")} == {"n1": "agent@2", "n2": "agent@2"}


def test_a_task_that_does_not_fit_waits_with_the_reason() -> None:
    w = cluster("n1")
    w.node("big", memory=64 * world.GB)
    w.everywhere("agent", lambda spec: setattr(spec.task.resources.reservations, "memory_bytes", 32 * world.GB))
    w.go()
    assert {task.node_id for task in w.running("agent")} == {"big"}
    (waits,) = [task for task in w.tasks("agent") if task.status.state == pb.TASK_STATE_PENDING]
    assert "needs 32 GB memory, most free is 8 GB on n1" in waits.status.err


def test_removing_the_service_leaves_nothing() -> None:
    w = cluster("n1", "n2")
    w.everywhere("agent")
    w.go()
    w.write(ops.delete(w.the_service("agent")))
    w.go()
    assert (w.tasks("agent"), len(w.view.revisions)) == ([], 0)


def test_one_service_without_its_revision_does_not_stop_the_others() -> None:
    w = cluster("n1")
    w.service("broken", 1)
    w.service("fine", 1)
    revision = w.view.revisions.get("broken@1")
    assert revision is not None
    w.write(ops.delete(revision))
    result = services.Services().decide(w.view, w.clock.now(), w.rng, None)
    assert [fault.split(":")[0] for fault in result.faults] == ["service broken"]
    w.go()
    assert len(w.running("fine")) == 1
