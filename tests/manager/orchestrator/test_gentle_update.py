"""Updates that cost no replica: missing images, host ports, versions that fit nowhere, starts that hang."""

from collections.abc import Callable

import pytest

from skep import pb
from tests.manager.orchestrator import world

STOP_FIRST, START_FIRST = pb.UPDATE_ORDER_STOP_FIRST, pb.UPDATE_ORDER_START_FIRST


def cluster(*names: str) -> world.World:
    found = world.World()
    for name in names:
        found.node(name)
    return found


def lowest(w: world.World, service: str = "web") -> Callable[[], int]:
    """The lowest number of running tasks from now on."""
    seen = [len(w.running(service))]
    w.check = lambda: seen.append(len(w.running(service)))
    return lambda: min(seen)


def labelled(**labels: str) -> Callable[[pb.ServiceSpec], object]:
    return lambda spec: spec.labels.update({f"io.skep.{key.replace('_', '-')}": value for key, value in labels.items()})


def host_port(spec: pb.ServiceSpec) -> None:
    spec.endpoint.ports.add(target_port=80, published_port=8080, publish_mode=pb.PUBLISH_MODE_HOST)


@pytest.mark.parametrize("order", [STOP_FIRST, START_FIRST])
def test_a_missing_image_never_costs_a_replica(order: pb.UpdateOrder.ValueType) -> None:
    w = cluster("n1", "n2")
    w.service("web", 3, lambda spec: spec.update.CopyFrom(pb.UpdateConfig(parallelism=0, order=order)))
    w.go()
    least = lowest(w)
    w.refuse[w.deploy("web", "missing")] = pb.TASK_STATE_REJECTED
    w.go(for_s=1000.0)
    assert least() == 3
    assert w.status("web")[0] == pb.UPDATE_STATE_PAUSED


def test_stop_first_prepares_the_new_task_before_the_old_one_stops() -> None:
    w = cluster("n1")
    w.service("web", 1)
    w.go()
    (old,) = w.running("web")

    def check() -> None:
        found = w.view.tasks.get(old.id)
        assert found is not None
        if found.desired_state > pb.TASK_STATE_RUNNING:
            assert w.wished("web")[-1].status.state >= pb.TASK_STATE_READY
        assert len(w.running("web")) <= 1

    w.check = check
    w.deploy("web", "demo:2")
    w.go(for_s=200.0)
    assert [task.revision_id for task in w.running("web")] == ["web@2"]


def test_a_slow_pull_does_not_start_the_new_task_beside_the_old_one() -> None:
    w = cluster("n1")
    w.service("web", 1)
    w.go()
    w.deploy("web", "large")
    for _ in range(30):
        w.decide()
        w.agents(lambda task: task.status.state != pb.TASK_STATE_PREPARING)
        w.clock.time += 10.0
        assert len(w.running("web")) == 1
    w.go(for_s=10.0)
    assert [task.revision_id for task in w.running("web")] == ["web@2"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_host_port_that_the_old_task_holds_is_handed_over_stop_first(nodes: int) -> None:
    w = cluster(*(f"n{number}" for number in range(nodes)))
    w.service("web", nodes, host_port)
    w.go()
    assert len(w.running("web")) == nodes
    least = lowest(w)
    w.deploy("web", "demo:2")
    w.go(for_s=60.0)
    assert {task.revision_id for task in w.running("web")} == {"web@2"}
    assert least() == nodes - 1
    assert w.status("web")[0] == pb.UPDATE_STATE_COMPLETED


def test_a_host_port_that_is_free_elsewhere_costs_no_place() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1, host_port)
    w.go()
    w.drain(w.running("web")[0].node_id)
    least = lowest(w)
    w.go(for_s=60.0)
    assert least() == 1
    assert len(w.wished("web")) == 1


@pytest.mark.parametrize("order", [STOP_FIRST, START_FIRST])
def test_a_version_that_fits_nowhere_is_given_up_with_the_reason(order: pb.UpdateOrder.ValueType) -> None:
    w = cluster("n1", "n2")
    w.service("web", 2, lambda spec: spec.update.CopyFrom(pb.UpdateConfig(parallelism=1, order=order)))
    w.go()
    least = lowest(w)
    w.update("web", lambda spec: setattr(spec.task.resources.reservations, "memory_bytes", 900 * world.GB))
    w.go(for_s=590.0)
    assert w.status("web")[0] == pb.UPDATE_STATE_UPDATING
    w.go(for_s=20.0)
    state, message = w.status("web")
    assert state == pb.UPDATE_STATE_PAUSED
    assert "did not come to run within 10 min: no suitable node (needs 900 GB memory" in message
    assert least() == 2
    w.go(for_s=5000.0)
    assert {task.revision_id for task in w.running("web")} == {"web@1"}


def test_a_hung_start_rolls_back_after_the_services_own_deadline() -> None:
    w = cluster("n1", "n2")

    def change(spec: pb.ServiceSpec) -> None:
        labelled(start_deadline="30s")(spec)
        spec.update.CopyFrom(pb.UpdateConfig(parallelism=1, failure_action=pb.FAILURE_ACTION_ROLLBACK))

    w.service("web", 2, change)
    w.go(for_s=100.0)
    w.deploy("web", "hangs")
    for _ in range(100):
        w.decide()
        w.agents(lambda task: task.revision_id != "web@2" or task.status.state != pb.TASK_STATE_PREPARING)
        w.clock.time += 1.0
    w.go(for_s=100.0)
    assert w.status("web")[0] == pb.UPDATE_STATE_ROLLBACK_COMPLETED
    assert {task.revision_id for task in w.running("web")} == {"web@1"}


def test_a_new_update_in_the_middle_of_a_preparation_stops_what_runs_first() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1)
    w.go()
    (old,) = w.running("web")

    def check() -> None:
        assert len(w.running("web")) <= 1

    w.check = check
    w.deploy("web", "demo:2")
    w.decide()
    w.agents()  # accepted, no more: what runs is still the first version
    w.deploy("web", "demo:3")
    w.go(for_s=200.0)
    assert [task.revision_id for task in w.running("web")] == ["web@3"]
    assert [task.replaces for task in w.running("web")] == [old.id]


def test_a_new_update_just_when_the_last_one_has_taken_over_keeps_no_more_than_two_running() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1, lambda spec: setattr(spec.update, "order", START_FIRST))
    w.go()

    def check() -> None:
        assert len([task for task in w.running("web") if task.desired_state <= pb.TASK_STATE_RUNNING]) <= 2

    w.deploy("web", "demo:2")
    w.decide()
    while len(w.running("web")) < 2:
        w.agents()
    w.check = check
    w.deploy("web", "demo:3")
    w.go(for_s=200.0)
    assert [task.revision_id for task in w.running("web")] == ["web@3"]


def test_a_new_update_of_a_slot_that_is_still_being_emptied_waits_for_that() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 1, lambda spec: setattr(spec.task.restart, "condition", pb.RESTART_CONDITION_NONE))
    w.go()
    (old,) = w.running("web")
    w.deploy("web", "demo:2")
    w.decide()
    while (coming := w.wished("web")[-1]).status.state != pb.TASK_STATE_READY:
        w.agents()
        w.decide()
    w.down(coming.node_id)
    w.decide()
    assert [task.revision_id for task in w.wished("web")] == []  # it is never to be started again
    w.deploy("web", "demo:3")
    while w.decide() + w.agents(lambda task: task.id != old.id):
        assert all(task.id == old.id for task in w.running("web"))
    w.go(for_s=1.0)
    assert [task.revision_id for task in w.running("web")] == ["web@3"]


def test_a_successor_that_is_superseded_is_stopped_in_the_same_breath() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1, lambda spec: setattr(spec.update, "order", START_FIRST))
    w.go()
    w.deploy("web", "demo:2")
    w.decide()
    w.agents()
    w.deploy("web", "demo:3")
    (services,) = [decider for decider in w.deciders if decider.name == "services"]
    for _ in range(2):  # the update begins, the successor is created
        w.write(*services.decide(w.view, w.clock.now(), w.rng, None).ops)
    assert [task.revision_id for task in w.wished("web")] == ["web@1", "web@3"]


def test_scaling_down_in_the_middle_of_an_update_keeps_what_runs() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 2, lambda spec: spec.update.CopyFrom(pb.UpdateConfig(parallelism=2, order=START_FIRST)))
    w.go()

    def both(spec: pb.ServiceSpec) -> None:
        spec.mode.replicated.replicas = 3
        spec.task.container.image = "demo:2"

    w.update("web", both)
    w.decide()  # slots 1 and 2 have two tasks now, slot 3 has one that does not run yet
    least = lowest(w)
    w.scale("web", 1)
    w.go(for_s=200.0)
    assert least() == 1
    assert len(w.running("web")) == 1
