"""Replicas: creating, healing, scaling, draining, losing nodes, deleting."""

import pytest

from manager.orchestrator import slots
from manager.store import ops
from skep import pb
from tests.manager.orchestrator import world


def cluster(*names: str) -> world.World:
    found = world.World()
    for name in names:
        found.node(name)
    return found


def test_creates_the_wished_number_in_slots_from_one() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 6)
    w.go()
    assert [task.slot for task in w.running("web")] == [1, 2, 3, 4, 5, 6]
    assert w.spread("web") == {"n1": 2, "n2": 2, "n3": 2}
    assert w.decide() == 0


def test_a_new_task_passes_through_the_states_with_dockers_messages() -> None:
    w = cluster("n1")
    w.service("web", 1)
    seen = []
    for decider in w.deciders:
        result = decider.decide(w.view, w.clock.now(), w.rng, None)
        w.write(*result.ops)
        seen += [(task.status.state, task.status.message) for task in w.tasks("web") if result.ops]
    assert seen == [
        (pb.TASK_STATE_NEW, "created"),
        (pb.TASK_STATE_PENDING, "pending task scheduling"),
        (pb.TASK_STATE_ASSIGNED, "scheduler assigned task to node"),
    ]
    (task,) = w.tasks("web")
    assert (task.service_name, task.revision_id, task.desired_state) == ("web", "web@1", pb.TASK_STATE_RUNNING)
    assert len(task.id) == 25


@pytest.mark.parametrize(("first", "then"), [(3, 5), (5, 3), (3, 0), (0, 3), (4, 4)])
def test_scales(first: int, then: int) -> None:
    w = cluster("n1", "n2")
    w.service("web", first)
    w.go()
    kept = {task.id for task in w.running("web")}
    w.scale("web", then)
    w.go()
    after = {task.id for task in w.running("web")}
    assert len(after) == then
    assert after <= kept or kept <= after
    assert w.status("web")[0] == pb.UPDATE_STATE_UNKNOWN  # a pure scale is no update
    assert len(w.tasks("web")) == then  # what was removed is forgotten


def test_scale_down_takes_from_the_fullest_node_and_keeps_low_slots() -> None:
    w = cluster("n1")
    w.service("web", 3)
    w.go()
    w.node("n2")
    w.scale("web", 5)
    w.go()
    assert w.spread("web") == {"n1": 3, "n2": 2}
    w.scale("web", 4)
    w.go()
    assert w.spread("web") == {"n1": 2, "n2": 2}
    w.scale("web", 2)
    w.go()
    assert w.spread("web") == {"n1": 1, "n2": 1}
    assert [task.slot for task in w.wished("web")] == [1, 4]
    w.scale("web", 3)
    w.go()
    assert [task.slot for task in w.wished("web")] == [1, 2, 4]


def test_scale_down_takes_what_does_not_run_first() -> None:
    w = cluster("n1")
    w.service("web", 2)
    w.go()
    w.hung["n1"] = None
    w.scale("web", 4)
    w.go()
    w.scale("web", 2)
    w.decide()
    assert [task.slot for task in w.wished("web")] == [1, 2]


def test_slots_by_worth_is_a_table() -> None:
    def slot(number: int, *tasks: tuple[str, int]) -> slots.Slot:
        made = slots.Slot(number)
        for node_id, state in tasks:
            task = pb.Task(node_id=node_id, slot=number)
            task.status.state = pb.TaskState.ValueType(state)
            made.tasks.append(task)
            made.live.append(task)
        return made

    run, prepare = pb.TASK_STATE_RUNNING, pb.TASK_STATE_PREPARING
    table = [
        ([slot(1, ("a", run)), slot(2, ("a", run)), slot(3, ("b", run))], [1, 3, 2]),
        ([slot(1, ("a", prepare)), slot(2, ("a", run))], [2, 1]),
        ([slot(1, ("", pb.TASK_STATE_PENDING)), slot(2, ("a", run))], [2, 1]),
        ([slot(1, ("a", run), ("b", run)), slot(2, ("a", run)), slot(3, ("a", prepare))], [2, 1, 3]),
        ([slot(2, ("a", run)), slot(1, ("b", run))], [1, 2]),
    ]
    for given, expected in table:
        assert [found.number for found in slots.by_worth(given)] == expected


def test_a_failed_task_is_replaced_in_its_slot_after_the_delay() -> None:
    w = cluster("n1")
    w.service("web", 2)
    w.go()
    old = w.running("web")[0]
    w.report(old.id, pb.TASK_STATE_FAILED)
    w.go()
    new = w.wished("web")[0]
    assert (new.slot, new.replaces) == (old.slot, old.id)
    assert new.desired_state == pb.TASK_STATE_READY
    assert new.status.state == pb.TASK_STATE_READY  # prepared while it waits
    assert w.due == pytest.approx(w.clock.now() + 5.0)
    w.go(for_s=4.9)
    assert len(w.running("web")) == 1
    w.go(for_s=0.2)
    assert len(w.running("web")) == 2
    assert w.tasks("web")[0].desired_state == pb.TASK_STATE_SHUTDOWN


@pytest.mark.parametrize("how", ["down", "delete"])
def test_tasks_leave_a_lost_node_at_once(how: str) -> None:
    w = cluster("n1", "n2")
    w.service("web", 4)
    w.go()
    match how:
        case "down":
            w.down("n1")
        case _:
            node = w.view.nodes.get("n1")
            assert node is not None
            w.hung["n1"] = None
            w.write(ops.delete(node))
    before = w.clock.now()
    w.go()
    assert w.spread("web") == {"n2": 4}
    assert len(w.running("web")) == 4
    assert w.clock.now() == before
    if how == "down":
        moved = [task for task in w.wished("web") if task.replaces]
        assert {task.desired_state for task in moved} == {pb.TASK_STATE_RUNNING}
    if how == "delete":
        orphans = [task for task in w.tasks("web") if task.node_id == "n1"]
        assert {task.status.state for task in orphans} == {pb.TASK_STATE_ORPHANED}
        assert {task.status.message for task in orphans} == {"Task belonged to a node that has been deleted"}


@pytest.mark.parametrize("state", [pb.NODE_STATE_UNKNOWN, pb.NODE_STATE_DISCONNECTED])
def test_a_node_not_heard_from_keeps_its_tasks(state: pb.NodeState.ValueType) -> None:
    w = cluster("n1", "n2")
    w.service("web", 4)
    w.go()
    w.change_node("n1", lambda node: setattr(node.status, "state", state))
    assert w.decide() == 0


def test_nothing_moves_when_a_node_returns() -> None:
    w = cluster("n1", "n2")
    w.service("web", 4)
    w.go()
    w.drain("n1")
    w.go(for_s=60.0)
    w.change_node("n1", lambda node: setattr(node.spec, "availability", pb.NODE_AVAILABILITY_ACTIVE))
    w.go(for_s=60.0)
    assert w.spread("web") == {"n2": 4}


def test_an_updates_successor_waits_for_the_old_task_but_not_for_ever() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1)
    w.go()
    (old,) = w.running("web")
    w.hung[old.node_id] = None  # its agent hangs, though the node is not down
    w.deploy("web", "demo:2")
    w.go()
    (new,) = w.wished("web")
    assert (new.status.state, new.desired_state) == (pb.TASK_STATE_READY, pb.TASK_STATE_READY)
    w.go(for_s=59.0)
    assert not w.running("web")
    w.go(for_s=2.0)
    assert [task.id for task in w.running("web")] == [new.id]


def test_the_wait_ends_when_the_node_goes_down() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1)
    w.go()
    node_id = w.running("web")[0].node_id
    w.hung[node_id] = None
    w.deploy("web", "demo:2")
    w.go()
    assert not w.running("web")
    w.down(node_id)
    w.go()
    assert len(w.running("web")) == 1


def test_a_deleted_service_leaves_nothing_behind() -> None:
    w = cluster("n1")
    w.service("web", 3)
    w.go()
    w.scale("web", 2)
    w.write(ops.delete(w.the_service("web")))
    w.go()
    assert w.tasks("web") == []
    assert len(w.view.revisions) == 0


def test_a_deleted_service_without_nodes_leaves_nothing_behind() -> None:
    w = world.World()
    w.service("web", 3)
    w.go()
    w.write(ops.delete(w.the_service("web")))
    w.go()
    assert (len(w.view.tasks), len(w.view.revisions)) == (0, 0)


def test_a_task_deleted_by_hand_is_created_again() -> None:
    w = cluster("n1")
    w.service("web", 3)
    w.go()
    w.write(ops.delete(w.running("web")[1]))
    w.go()
    assert [task.slot for task in w.wished("web")] == [1, 2, 3]


def test_dirty_keys_alone_give_the_same_as_everything() -> None:
    w = cluster("n1")
    w.service("web", 2)
    w.service("db", 2)
    services = next(decider for decider in w.deciders if decider.name == "services")
    result = services.decide(w.view, w.clock.now(), w.rng, frozenset({"db"}))
    assert {op.object.task.service_id for op in result.ops} == {"db"}


def test_modes_of_later_versions_are_left_alone() -> None:
    w = cluster("n1")
    w.service("later", 1, lambda spec: spec.ClearField("mode"))
    assert w.decide() == 0
