"""Tasks leave nodes that no longer suit them, and only those."""

import math
from collections.abc import Callable

import pytest

from manager.orchestrator import enforcer, starting
from skep import pb, policies
from tests.manager.orchestrator import world

SSD = "node.labels.disk==ssd"


def two(change: Callable[[pb.ServiceSpec], object], replicas: int = 2) -> world.World:
    w = world.World()
    for name in ("n1", "n2"):
        w.node(name, labels={"disk": "ssd"})
    w.service("web", replicas, change)
    w.go()
    return w


def on_ssd(spec: pb.ServiceSpec) -> None:
    spec.task.placement.constraints.append(SSD)


def label(w: world.World, name: str, disk: str) -> None:
    w.change_node(name, lambda node: node.spec.labels.update(disk=disk))


def test_a_label_that_is_taken_away_moves_the_task() -> None:
    w = two(on_ssd)
    label(w, "n1", "spinning")
    w.decide()
    (evicted,) = [task for task in w.tasks("web") if task.evicted]
    assert evicted.evicted == "assigned node no longer meets constraints"
    assert (evicted.node_id, evicted.desired_state) == ("n1", pb.TASK_STATE_SHUTDOWN)
    w.go()
    assert w.spread("web") == {"n2": 2}
    assert len(w.running("web")) == 2


def test_what_the_agent_says_of_its_end_is_kept_in_swarm_modes_words() -> None:
    task = pb.Task(evicted=enforcer.NOT_MET)
    task.status.state = pb.TASK_STATE_SHUTDOWN
    enforcer.in_swarm_words(task)
    assert (task.status.state, task.status.message, task.status.err) == (
        pb.TASK_STATE_REJECTED,
        "task rejected by constraint enforcer",
        "assigned node no longer meets constraints",
    )
    failed = pb.Task(evicted=enforcer.NOT_MET)
    failed.status.state = pb.TASK_STATE_FAILED
    enforcer.in_swarm_words(failed)
    assert failed.status.state == pb.TASK_STATE_FAILED  # by itself, before it was stopped


def once(spec: pb.ServiceSpec) -> None:
    on_ssd(spec)
    spec.labels[policies.AT_MOST_ONCE] = "true"


@pytest.mark.parametrize(("change", "waits_s"), [(on_ssd, starting.PATIENCE_S), (once, math.inf)])
def test_nothing_starts_before_its_predecessor_has_left_the_node(
    change: Callable[[pb.ServiceSpec], object], waits_s: float
) -> None:
    w = two(change, replicas=1)
    (old,) = w.running("web")
    other = "n2" if old.node_id == "n1" else "n1"
    w.hung[old.node_id] = None  # it goes on running, whatever is wished
    label(w, old.node_id, "spinning")
    w.go(for_s=min(waits_s, 1000.0) - 1.0)
    (successor,) = w.wished("web")
    assert (successor.node_id, successor.status.state) == (other, pb.TASK_STATE_READY)
    del w.hung[old.node_id]
    w.go()
    (running,) = w.running("web")
    assert running.id == successor.id


def test_a_successor_that_has_to_leave_before_it_starts_hands_on_whom_it_waits_for() -> None:
    w = two(on_ssd, replicas=1)
    w.node("n3", labels={"disk": "ssd"})
    (old,) = w.running("web")
    w.update("web", lambda spec: setattr(spec.task.container, "image", "demo:2"))
    w.decide()
    (first,) = [task for task in w.tasks("web") if task.replaces == old.id]
    assert first.node_id != old.node_id
    label(w, first.node_id, "spinning")
    w.decide()
    (second,) = [task for task in w.wished("web") if task.id not in {old.id, first.id}]
    assert second.replaces == old.id
    while w.decide() + w.agents(lambda task: task.id != old.id):
        running = [task.id for task in w.running("web")]
        assert running == [old.id]
    w.go()
    assert [task.id for task in w.running("web")] == [second.id]


@pytest.mark.parametrize("availability", [pb.NODE_AVAILABILITY_PAUSE, pb.NODE_AVAILABILITY_DRAIN])
def test_only_active_nodes_are_looked_at(availability: pb.NodeAvailability.ValueType) -> None:
    w = two(on_ssd)

    def change(node: pb.Node) -> None:
        node.spec.labels["disk"] = "spinning"
        node.spec.availability = availability

    w.change_node("n1", change)
    assert enforcer.Enforcer().decide(w.view, w.clock.now(), w.rng, None).ops == []


def test_a_change_of_the_service_is_left_to_the_updater() -> None:
    w = two(lambda _: None)
    w.update("web", lambda spec: spec.task.placement.constraints.append("node.hostname==n1"))
    assert enforcer.Enforcer().decide(w.view, w.clock.now(), w.rng, None).ops == []
    w.go(for_s=30.0)
    assert w.status("web")[0] == pb.UPDATE_STATE_COMPLETED
    assert w.spread("web") == {"n1": 2}


def test_constraints_that_the_service_has_dropped_bind_nobody() -> None:
    w = two(on_ssd)
    w.update("web", lambda spec: spec.task.placement.ClearField("constraints"))
    w.go()
    label(w, "n1", "spinning")
    assert w.decide() == 0


@pytest.mark.parametrize("what", ["memory", "cpus", "generic"])
def test_the_youngest_go_when_a_node_has_less_than_it_promised(what: str) -> None:
    def reserve(spec: pb.ServiceSpec) -> None:
        wanted = spec.task.resources.reservations
        wanted.memory_bytes = 3 * world.GB
        wanted.nano_cpus = 10**9
        wanted.generic.add().discrete.CopyFrom(pb.GenericResource.Discrete(kind="ssd", value=1))

    w = world.World()
    w.node("n1")
    w.change_node(
        "n1",
        lambda node: node.description.resources.generic.add().discrete.CopyFrom(
            pb.GenericResource.Discrete(kind="ssd", value=2)
        ),
    )
    w.service("web", 2, reserve)
    w.go()
    kept, gone = (task.id for task in w.running("web"))

    def shrink(node: pb.Node) -> None:
        resources = node.description.resources
        if what == "memory":
            resources.memory_bytes = 5 * world.GB
        elif what == "cpus":
            resources.nano_cpus = 10**9
        else:
            resources.generic[0].discrete.value = 1

    w.change_node("n1", shrink)
    w.go()
    assert [task.id for task in w.running("web")] == [kept]
    evicted = w.view.tasks.get(gone)
    assert evicted is not None
    assert evicted.evicted == enforcer.NO_ROOM


def test_a_node_that_has_not_said_what_it_has_keeps_its_tasks() -> None:
    w = two(lambda spec: setattr(spec.task.resources.reservations, "memory_bytes", world.GB))
    w.change_node("n1", lambda node: node.ClearField("description"))
    assert enforcer.Enforcer().decide(w.view, w.clock.now(), w.rng, None).ops == []
