"""Tasks leave nodes that no longer suit them, and only those."""

from collections.abc import Callable

import pytest

from manager.orchestrator import enforcer
from skep import pb
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
    (rejected,) = [task for task in w.tasks("web") if task.status.state == pb.TASK_STATE_REJECTED]
    assert (rejected.status.message, rejected.status.err) == (
        "task rejected by constraint enforcer",
        "assigned node no longer meets constraints",
    )
    assert (rejected.node_id, rejected.desired_state) == ("n1", pb.TASK_STATE_SHUTDOWN)
    w.go(for_s=6.0)
    assert w.spread("web") == {"n2": 2}
    assert len(w.running("web")) == 2


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
    w.decide()
    assert [task.id for task in w.running("web")] == [kept]
    rejected = w.view.tasks.get(gone)
    assert rejected is not None
    assert rejected.status.err == enforcer.NO_ROOM


def test_a_node_that_has_not_said_what_it_has_keeps_its_tasks() -> None:
    w = two(lambda spec: setattr(spec.task.resources.reservations, "memory_bytes", world.GB))
    w.change_node("n1", lambda node: node.ClearField("description"))
    assert enforcer.Enforcer().decide(w.view, w.clock.now(), w.rng, None).ops == []
