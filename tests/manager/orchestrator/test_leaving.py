"""Drains: nodes are emptied without taking a service down."""

import random
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from manager.control import draining
from manager.orchestrator import starting
from skep import pb
from tests.manager.orchestrator import world

START_FIRST = pb.UPDATE_ORDER_START_FIRST


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


def pinned(spec: pb.ServiceSpec) -> None:
    spec.task.placement.constraints.append("node.hostname==n1")


# ------------------------------------------------------------------ drain


@pytest.mark.parametrize("replicas", [1, 3, 8])
def test_a_drain_never_goes_below_the_wished_number(replicas: int) -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", replicas)
    w.go()
    least = lowest(w)
    most = 0

    def check() -> None:
        nonlocal most
        most = max(most, len(w.running("web")))
        least_check()

    least_check, w.check = w.check, check
    w.drain("n1")
    w.go(for_s=200.0)
    assert set(w.spread("web")) <= {"n2", "n3"}
    assert least() == replicas
    assert most <= replicas + 1
    assert w.decide() == 0


def test_the_successor_has_to_prove_itself_first() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1)
    w.go()
    (old,) = w.running("web")
    w.drain(old.node_id)
    w.go(for_s=4.0)
    assert len(w.running("web")) == 2
    new = next(task for task in w.running("web") if task.id != old.id)
    assert (new.replaces, new.move) == (old.id, pb.MOVE_REASON_DRAIN)
    w.report(new.id, pb.TASK_STATE_FAILED)
    w.go()
    assert [task.id for task in w.running("web")] == [old.id]
    w.go(for_s=60.0)  # it is tried again
    assert len(w.running("web")) == 1
    assert w.running("web")[0].node_id != old.node_id


def test_a_successor_that_falls_silent_proves_nothing() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1, labelled(replace_after="10m"))
    w.go()
    (old,) = w.running("web")
    w.drain(old.node_id)
    w.go(for_s=2.0)
    new = next(task for task in w.running("web") if task.id != old.id)
    w.down(new.node_id)  # flapping: its tasks are kept for ten minutes
    w.go(for_s=60.0)
    assert [task.id for task in w.running("web")] == [old.id]
    w.revive(new.node_id)
    w.go(for_s=10.0)
    assert [task.id for task in w.running("web")] == [new.id]


def test_moves_that_keep_failing_back_off_and_cost_nothing() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1)
    w.go()
    (old,) = w.running("web")
    w.hung[old.node_id] = None  # its task just runs on
    w.refuse["web@1"] = pb.TASK_STATE_FAILED
    w.drain(old.node_id)
    created: dict[str, None] = {}
    for _ in range(500):
        w.go(for_s=1.0)
        created.update(dict.fromkeys(task.id for task in w.tasks("web")))
        found = w.view.tasks.get(old.id)
        assert found is not None
        assert found.desired_state == pb.TASK_STATE_RUNNING
    assert 6 <= len(created) <= 12


def test_what_fits_nowhere_else_stays_until_the_deadline() -> None:
    w = cluster("n1", "n2")
    w.service("web", 1, pinned)
    w.go()
    w.write(*draining.start(w.view, ["n1"], deadline_s=300.0, now=w.clock.now()))
    w.go(for_s=299.0)
    assert w.spread("web") == {"n1": 1, "": 1}
    assert len(w.running("web")) == 1
    node = w.view.nodes.get("n1")
    assert node is not None
    (left,) = draining.left(w.view, node)
    assert left.why == "no suitable node (1 drained; 1 not node.hostname==n1)"
    w.go(for_s=2.0)
    assert w.running("web") == []
    assert draining.left(w.view, node) == []
    assert w.decide() == 0


def test_a_deadline_of_nothing_stops_at_once() -> None:
    w = cluster("n1", "n2")
    w.service("web", 4)
    w.go()
    w.write(*draining.start(w.view, ["n1"], deadline_s=0.0, now=w.clock.now()))
    w.go()
    assert w.spread("web") == {"n2": 4}


def test_a_cancelled_drain_leaves_things_as_they_are() -> None:
    w = cluster("n1", "n2")
    w.service("web", 2)
    w.go()
    before = {task.id for task in w.running("web")}
    w.write(*draining.start(w.view, ["n1"], deadline_s=300.0, now=w.clock.now()))
    w.go(for_s=1.0)
    assert len(w.running("web")) == 3
    w.write(*draining.cancel(w.view, ["n1"], now=w.clock.now()))
    w.go(for_s=60.0)
    assert {task.id for task in w.running("web")} == before


def test_two_drained_nodes_never_send_tasks_to_each_other() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 6)
    w.go()
    least = lowest(w)
    w.drain("n1")
    w.drain("n2")
    w.go(for_s=200.0)
    assert w.spread("web") == {"n3": 6}
    assert least() == 6
    assert all(task.node_id == "n3" for task in w.tasks("web") if task.move)


def test_a_successor_whose_node_is_drained_too_moves_on() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 1)
    w.go()
    least = lowest(w)
    w.drain(w.running("web")[0].node_id)
    w.go(for_s=1.0)
    w.drain(w.wished("web")[-1].node_id)
    w.go(for_s=60.0)
    assert len(w.wished("web")) == 1
    assert least() == 1


def test_the_surge_is_the_updates_parallelism() -> None:
    w = cluster("n1", "n2")
    w.service("web", 8, lambda spec: spec.update.CopyFrom(pb.UpdateConfig(parallelism=3)))
    w.go()
    w.drain("n1")
    w.go()
    assert len(w.running("web")) == 11


def volume(spec: pb.ServiceSpec) -> None:
    spec.task.container.mounts.add(type=pb.MOUNT_TYPE_VOLUME, source="data", target="/data")


@pytest.mark.parametrize("kind", [labelled(at_most_once="true"), volume])
def test_what_must_not_run_twice_goes_last_and_is_prepared_first(kind: Callable[[pb.ServiceSpec], object]) -> None:
    w = cluster("n1", "n2")
    w.service("web", 1)
    w.service("db", 1, kind)
    w.go()
    for name in ("web", "db"):
        for task in w.running(name):
            assert task.node_id in {"n1", "n2"}
    node_id = w.running("db")[0].node_id
    w.service("also", 1, lambda spec: spec.task.placement.constraints.append(f"node.hostname=={node_id}"))
    w.go()
    w.update("also", lambda spec: spec.task.placement.ClearField("constraints"))
    w.go()
    order: list[str] = []

    def check() -> None:
        assert len(w.running("db")) <= 1
        for name in ("also", "db"):
            if name not in order and all(task.node_id != node_id for task in w.wished(name)):
                order.append(name)
                assert w.wished(name)[-1].status.state >= pb.TASK_STATE_READY

    w.check = check
    w.drain(node_id)
    w.go(for_s=100.0)
    assert order == ["also", "db"]
    assert len(w.running("db")) == 1


def test_a_drain_in_a_paused_update_brings_no_broken_version() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 3)
    w.go()
    w.refuse[w.deploy("web", "broken")] = pb.TASK_STATE_REJECTED
    w.go(for_s=10.0)
    assert w.status("web")[0] == pb.UPDATE_STATE_PAUSED
    least = lowest(w)
    w.drain("n2")
    w.go(for_s=300.0)
    assert least() == 3
    assert {task.node_id for task in w.running("web")} <= {"n1", "n3"}
    assert {task.revision_id for task in w.running("web")} == {"web@1"}


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(st.integers(0, 2**32), st.integers(1, 7), st.integers(0, 3), st.booleans(), st.booleans())
def test_drains_updates_and_scaling_never_cost_a_replica(
    seed: int, replicas: int, parallelism: int, cancels: bool, stop_first: bool
) -> None:
    """Stop-first, an update may be short of as many as it replaces at a time; a drain by itself of none."""
    rng = random.Random(seed)
    w = cluster("n0", "n1", "n2", "n3")
    how = pb.UpdateConfig(parallelism=parallelism, order=pb.UPDATE_ORDER_STOP_FIRST if stop_first else START_FIRST)
    least = replicas
    w.service("web", replicas, lambda spec: spec.update.CopyFrom(how))
    w.go()

    def check() -> None:
        assert len(w.running("web")) >= least

    w.check = check
    drained = rng.sample(["n0", "n1", "n2"], k=2)
    w.drain(drained[0])
    for step in range(300):
        w.decide()
        if step == 10:
            if stop_first:
                least = max(0, replicas - parallelism) if parallelism else 0
            w.deploy("web", "demo:2")
        if step == 20:
            w.drain(drained[1])
        if step == 40 and cancels:
            w.write(*draining.cancel(w.view, drained[:1], now=w.clock.now()))
        if not w.agents(lambda task: rng.random() < 0.4):
            w.clock.time += 1.0
    w.go(for_s=300.0)
    assert len(w.wished("web")) == replicas
    gone = drained[1:] if cancels else drained
    assert not any(task.node_id in gone for task in w.running("web"))
    assert {task.revision_id for task in w.running("web")} == {"web@2"}


@pytest.mark.parametrize(
    ("order", "state"),
    [(pb.UPDATE_ORDER_STOP_FIRST, pb.TASK_STATE_READY), (START_FIRST, pb.TASK_STATE_RUNNING)],
)
def test_a_slot_that_is_filled_anew_waits_for_what_still_stops_in_it(
    order: pb.UpdateOrder.ValueType, state: pb.TaskState.ValueType
) -> None:
    """What is never to be started again leaves its drained node for good, but for a rollback, which fills its slot."""

    def change(spec: pb.ServiceSpec) -> None:
        spec.task.restart.condition = pb.RESTART_CONDITION_NONE
        spec.update.order = spec.rollback.order = order

    w = world.World()
    w.node("n1")
    w.node("n2")
    w.service("web", 1, change)
    w.go()
    w.deploy("web", "demo:2")
    w.go(for_s=30.0)
    w.roll_back("web")
    while [task.revision_id for task in w.running("web")] != ["web@1"]:
        assert w.decide() + w.agents()
    w.decide()
    (old,) = w.running("web")
    assert w.status("web")[0] == pb.UPDATE_STATE_ROLLBACK_STARTED  # it is watched for a while yet
    w.hung[old.node_id] = None
    w.drain(old.node_id)
    w.go(for_s=starting.PATIENCE_S - 1.0)
    (new,) = w.wished("web")
    assert (new.node_id != old.node_id, new.status.state) == (True, state)
    del w.hung[old.node_id]
    w.go()
    assert [task.id for task in w.running("web")] == [new.id]


def test_a_move_that_is_overtaken_by_another_never_makes_three() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 1, lambda spec: setattr(spec.update, "order", START_FIRST))
    w.go()
    (old,) = w.running("web")
    w.drain(old.node_id)
    w.decide()
    w.agents(lambda task: task.status.state < pb.TASK_STATE_STARTING)
    (first,) = [task for task in w.wished("web") if task.id != old.id]
    wished: list[int] = []
    w.check = lambda: wished.append(len(w.wished("web")))
    w.drain(first.node_id)
    w.decide()
    assert max(wished) == 2
    w.go(for_s=30.0)
    (running,) = w.running("web")
    assert running.node_id not in {old.node_id, first.node_id}
