"""Rebalancing: towards an even load, a few healthy moves at a time, and never at the price of a replica."""

import random
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from manager.orchestrator import rebalance
from manager.store import ops
from skep import pb, stamps
from tests.manager.orchestrator import world

HOUR_S = 3600.0


def cluster(*names: str, auto: bool = False) -> world.World:
    w = world.World()
    row = pb.Cluster(id="c")
    row.spec.auto_rebalance = auto
    w.write(ops.create(row))
    for name in names:
        w.node(name)
    return w


def change(w: world.World, make: Callable[[pb.Cluster], object]) -> None:
    changed = pb.Cluster()
    changed.CopyFrom(w.view.cluster)
    make(changed)
    w.write(ops.update(changed))


def ask(w: world.World, **limits: int) -> None:
    wanted = pb.RebalanceLimits()
    wanted.CopyFrom(rebalance.DEFAULTS)
    for key, value in limits.items():
        setattr(wanted, key, value)
    change(w, lambda row: row.rebalance.CopyFrom(rebalance.requested(wanted, w.clock.now(), "asked for")))


def state(w: world.World) -> pb.Rebalance:
    return w.view.cluster.rebalance


def totals(w: world.World) -> dict[str, int]:
    return {node.id: w.view.tasks.count("active", node.id) for node in w.view.nodes}


def floor(w: world.World, **least: int) -> None:
    """From now on every service has so many running tasks, at every moment."""

    def check() -> None:
        for name, count in least.items():
            assert len(w.running(name)) >= count, name

    w.check = check


def test_nothing_moves_by_itself() -> None:
    w = cluster("n1")
    w.service("web", 4)
    w.go(for_s=HOUR_S)
    w.node("n2")
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 4}


def test_a_new_node_gets_its_share_when_asked_for() -> None:
    w = cluster("n1", "n2")
    w.service("web", 6)
    w.service("api", 3)
    w.go(for_s=HOUR_S)
    w.node("n3")
    floor(w, web=6, api=3)
    ask(w)
    w.go(for_s=HOUR_S)
    assert set(w.spread("web").values()) == {2}
    assert set(w.spread("api").values()) == {1}
    assert set(totals(w).values()) == {3}
    assert (state(w).moves, state(w).moved, state(w).unhealthy) == (3, 3, False)
    assert state(w).message == "the load is even now"
    assert state(w).HasField("ended_at")
    assert w.decide() == 0


def test_services_of_one_replica_even_out_in_all() -> None:
    w = cluster("n1")
    names = [f"s{number}" for number in range(7)]
    for name in names:
        w.service(name, 1)
    w.go(for_s=HOUR_S)
    w.node("n2")
    floor(w, **dict.fromkeys(names, 1))
    ask(w)
    w.go(for_s=HOUR_S)
    assert sorted(totals(w).values()) == [3, 4]


def test_an_even_load_is_left_alone() -> None:
    w = cluster("n1", "n2", "n3")
    w.service("web", 4)
    w.service("api", 4)
    w.go(for_s=HOUR_S)
    ask(w)
    w.go(for_s=HOUR_S)
    assert state(w).moves == 0
    assert state(w).message == "the load is even"


def test_so_many_at_a_time_and_one_of_each_service() -> None:
    w = cluster("n1")
    names = [f"s{number}" for number in range(5)]
    for name in names:
        w.service(name, 4)
    w.go(for_s=HOUR_S)
    w.node("n2")
    ask(w, at_a_time=2)
    most = 0

    def check() -> None:
        nonlocal most
        moving = [task for task in w.view.tasks if task.move and _unproven(w, task)]
        assert len({task.service_id for task in moving}) == len(moving)
        most = max(most, len(moving))

    w.check = check
    w.go(for_s=HOUR_S)
    assert most == 2
    assert totals(w) == {"n1": 10, "n2": 10}


def _unproven(w: world.World, task: pb.Task) -> bool:
    old = w.view.tasks.get(task.replaces)
    return old is not None and old.desired_state <= pb.TASK_STATE_COMPLETE


def test_the_number_of_moves_is_a_limit() -> None:
    w = cluster("n1")
    w.service("web", 8)
    w.go(for_s=HOUR_S)
    w.node("n2")
    ask(w, moves=2)
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 6, "n2": 2}
    assert state(w).message == "the limit of 2 moves is reached"


def test_the_difference_must_be_worth_it() -> None:
    w = cluster("n1")
    w.service("web", 5)
    w.go(for_s=HOUR_S)
    w.node("n2")
    ask(w, min_benefit=4)
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 4, "n2": 1}


def test_young_tasks_are_waited_for() -> None:
    w = cluster("n1")
    w.service("web", 2)
    w.go(for_s=10.0)
    w.node("n2")
    ask(w, min_age=stamps.to_nanos(100.0))
    w.go(for_s=80.0)
    assert w.spread("web") == {"n1": 2}
    assert state(w).message == "waits for tasks to have run for 100 s"
    w.go(for_s=60.0)
    assert w.spread("web") == {"n1": 1, "n2": 1}


@pytest.mark.parametrize("end", [pb.TASK_STATE_REJECTED, pb.TASK_STATE_FAILED])
def test_the_first_unhealthy_move_ends_it(end: int) -> None:
    w = cluster("n1")
    w.service("web", 6)
    w.go(for_s=HOUR_S)
    w.node("n2")
    floor(w, web=6)
    w.refuse["web@1"] = end
    for task in w.running("web"):
        assert task.node_id == "n1"
    w.hung["n1"] = None  # its tasks just run on
    ask(w)
    w.hung.pop("n1")
    settled = {task.id for task in w.running("web")}
    for _ in range(200):
        w.decide()
        w.agents(lambda task: task.id not in settled)
        w.clock.time += 1.0
    assert state(w).unhealthy
    assert state(w).message.startswith("stopped: web.")
    assert state(w).moves == 1
    assert w.spread("web") == {"n1": 6}
    assert w.decide() == 0


def test_a_move_that_hangs_is_taken_back() -> None:
    w = cluster("n1")
    w.service("web", 2, lambda spec: spec.labels.update({"io.skep.start-deadline": "50s"}))
    w.go(for_s=HOUR_S)
    w.node("n2")
    w.hung["n2"] = None
    ask(w)
    w.go(for_s=40.0)
    assert w.spread("web") == {"n1": 2, "n2": 1}
    w.go(for_s=20.0)
    w.hung.pop("n2")
    w.go(for_s=100.0)
    assert state(w).message == "stopped: web.2 on n2 did not come to run within 50 s"
    assert w.spread("web") == {"n1": 2}


def test_a_cancelled_rebalancing_finishes_what_it_began() -> None:
    w = cluster("n1")
    w.service("web", 6)
    w.go(for_s=HOUR_S)
    w.node("n2")
    ask(w)
    w.go(for_s=1.0)

    def cancel(row: pb.Cluster) -> None:
        row.rebalance.moves_left = 0
        row.rebalance.message = rebalance.CANCELLED

    change(w, cancel)
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 5, "n2": 1}
    assert state(w).message == rebalance.CANCELLED
    assert state(w).HasField("ended_at")


# ------------------------------------------------------------------ what is not moved


def at_most_once(spec: pb.ServiceSpec) -> None:
    spec.labels["io.skep.at-most-once"] = "true"


def with_volume(spec: pb.ServiceSpec) -> None:
    spec.task.container.mounts.add(type=pb.MOUNT_TYPE_VOLUME, source="data", target="/data")


def once_only(spec: pb.ServiceSpec) -> None:
    spec.task.restart.condition = pb.RESTART_CONDITION_NONE


def pinned(spec: pb.ServiceSpec) -> None:
    spec.task.placement.constraints.append("node.hostname==n1")


@pytest.mark.parametrize("make", [at_most_once, with_volume, once_only, pinned])
def test_what_cannot_move_without_harm_stays(make: Callable[[pb.ServiceSpec], object]) -> None:
    w = cluster("n1")
    w.service("web", 4, make)
    w.go(for_s=HOUR_S)
    w.node("n2")
    ask(w)
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 4}
    assert state(w).message == "the load is even"


def test_a_service_in_trouble_is_left_alone() -> None:
    w = cluster("n1")
    w.service("web", 4)
    w.service("sick", 4)
    w.go(for_s=HOUR_S)
    (first, *_) = w.running("sick")
    w.report(first.id, pb.TASK_STATE_FAILED)
    w.decide()
    w.refuse["sick@1"] = pb.TASK_STATE_REJECTED
    w.node("n2")
    ask(w)
    w.go(for_s=300.0)
    assert w.spread("web") == {"n1": 2, "n2": 2}
    assert not any(task.move for task in w.tasks("sick"))


def test_an_update_is_waited_for() -> None:
    w = cluster("n1")
    w.service("web", 4)
    w.go(for_s=HOUR_S)
    w.node("n2")
    w.hung["n2"] = w.hung["n1"] = None
    w.deploy("web", "demo:2")
    w.decide()
    ask(w)
    w.decide()
    assert state(w).message == "waits for the update of web"
    w.hung.clear()
    w.go(for_s=HOUR_S)
    assert set(w.spread("web").values()) == {2}
    assert {task.revision_id for task in w.running("web")} == {"web@2"}


def test_no_task_goes_where_it_keeps_failing() -> None:
    w = cluster("n1")
    w.service("web", 2)
    w.go(for_s=HOUR_S)
    w.node("n2")
    for number in range(6):
        task = pb.Task(id=f"old{number}", service_id="web", service_name="web", revision_id="web@1", slot=1)
        task.node_id, task.desired_state = "n2", pb.TASK_STATE_SHUTDOWN
        task.status.state = pb.TASK_STATE_FAILED
        task.status.timestamp.CopyFrom(stamps.stamp(w.clock.now()))
        w.write(ops.create(task))
    ask(w)
    w.go(for_s=1.0)
    assert w.spread("web") == {"n1": 2}


# ------------------------------------------------------------------ preferences and the policy


def test_preferences_come_before_nodes() -> None:
    w = cluster()
    w.node("a1", labels={"zone": "a"})
    w.node("a2", labels={"zone": "a"})

    def spread(spec: pb.ServiceSpec) -> None:
        spec.task.placement.preferences.add().spread.spread_descriptor = "node.labels.zone"

    w.service("web", 6, spread)
    w.go(for_s=HOUR_S)
    w.node("b1", labels={"zone": "b"})
    floor(w, web=6)
    ask(w)
    w.go(for_s=HOUR_S)
    assert w.spread("web")["b1"] == 3
    assert sorted(w.spread("web").values()) == [1, 2, 3]


def test_the_policy_serves_nodes_that_join_return_or_are_let_in() -> None:
    w = cluster("n1", "n2", auto=True)
    w.service("web", 6)
    w.go(for_s=HOUR_S)
    w.node("n3")
    w.change_node("n3", lambda node: node.status.since.CopyFrom(stamps.stamp(w.clock.now())))
    w.go(for_s=20.0)
    assert "n3" not in w.spread("web")  # it has to stay for a while first
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 2, "n2": 2, "n3": 2}
    w.down("n3")
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 3, "n2": 3}
    w.revive("n3")
    w.change_node("n3", lambda node: node.status.since.CopyFrom(stamps.stamp(w.clock.now())))
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 2, "n2": 2, "n3": 2}
    w.drain("n1")
    w.go(for_s=HOUR_S)

    def activate(node: pb.Node) -> None:
        node.spec.availability = pb.NODE_AVAILABILITY_ACTIVE
        node.drain.ended_at.CopyFrom(stamps.stamp(w.clock.now()))

    w.change_node("n1", activate)
    w.go(for_s=HOUR_S)
    assert w.spread("web") == {"n1": 2, "n2": 2, "n3": 2}


# ------------------------------------------------------------------ laws


@hypothesis.settings(deadline=None, max_examples=30, derandomize=True)
@hypothesis.given(st.integers(0, 2**32))
def test_rebalancing_ends_even_and_never_below_the_wish(seed: int) -> None:
    """Whatever else happens meanwhile; and at its end nothing is left to move."""
    rng = random.Random(seed)
    w = cluster()
    zones = rng.random() < 0.5
    for number in range(rng.randrange(1, 4)):
        w.node(f"n{number}", labels={"zone": rng.choice("ab")})
    wanted: dict[str, int] = {}

    def prefer(spec: pb.ServiceSpec) -> None:
        spec.update.order = pb.UPDATE_ORDER_START_FIRST
        if zones:
            spec.task.placement.preferences.add().spread.spread_descriptor = "node.labels.zone"

    for number in range(rng.randrange(1, 5)):
        wanted[f"s{number}"] = rng.randrange(1, 7)
        w.service(f"s{number}", wanted[f"s{number}"], prefer)
    w.go(for_s=HOUR_S)
    for number in range(4, 4 + rng.randrange(1, 4)):
        w.node(f"n{number}", labels={"zone": rng.choice("ab")})
    floor(w, **wanted)
    ask(w, at_a_time=rng.randrange(1, 5), min_age=0)
    moves = 0
    for step in range(150):
        w.decide()
        w.agents(lambda task: rng.random() < 0.5)
        w.clock.time += rng.choice([0.0, 0.5, 2.0])
        if step == 20 and rng.random() < 0.3:
            w.drain(rng.choice([node.id for node in w.view.nodes]))
        if step == 30 and rng.random() < 0.3:
            w.deploy(rng.choice(sorted(wanted)), "demo:2")
        moves = max(moves, state(w).moves)
    w.go(for_s=HOUR_S)
    assert moves <= 4 * sum(wanted.values()), "it goes round in circles"
    if state(w).unhealthy:
        return
    ready = [node.id for node in w.view.nodes if node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE]
    ask(w, min_age=0)
    w.go(for_s=HOUR_S)
    ask(w, min_age=0)
    w.go(for_s=HOUR_S)
    assert (state(w).moves, state(w).message) == (0, "the load is even")
    if zones or not ready:
        return
    for name in wanted:
        counts = [w.spread(name).get(node_id, 0) for node_id in ready]
        assert max(counts) - min(counts) <= 1
