"""What is applied to an unchanged cluster comes out as planned, nodes included."""

import random
from collections.abc import Callable, Sequence

import hypothesis
from hypothesis import strategies as st

from manager import loops
from manager.control import defaults
from manager.control import services as intents
from manager.planning import forecast, whatif
from manager.store import ops
from skep import ids, pb
from tests.manager.orchestrator import test_decider_properties as chaos
from tests.manager.orchestrator import world

NODES = 4
SERVICES = ("a", "b", "c")
HOUR_S = 3600.0


def cluster(rng: random.Random) -> world.World:
    """Services at rest on nodes that have had a life before."""
    w = world.World()
    for number in range(NODES):
        w.node(f"n{number}", memory=rng.choice([2, 4, 8]) * world.GB, labels={"zone": rng.choice(["east", "west"])})
    for name in SERVICES:
        w.service(name, rng.randrange(6), shape(rng))
    w.go(for_s=HOUR_S)
    if rng.random() < 0.5:
        w.scale(rng.choice(SERVICES), rng.randrange(6))
        w.go(for_s=HOUR_S)
    if rng.random() < 0.3:
        w.drain(f"n{rng.randrange(NODES)}")
        w.go(for_s=HOUR_S)
    return w


def shape(rng: random.Random) -> Callable[[pb.ServiceSpec], object]:
    """A random wish as control stores it."""
    inner = chaos.shape(rng)

    def make(spec: pb.ServiceSpec) -> None:
        inner(spec)
        spec.CopyFrom(defaults.normalised(spec))

    return make


def change(w: world.World, rng: random.Random) -> Sequence[pb.Op]:
    """Something that a user may ask for or that may happen."""
    name = rng.choice(SERVICES)
    node = w.view.nodes.get(f"n{rng.randrange(NODES)}")
    assert node is not None
    match rng.randrange(6):
        case 0:
            drained = pb.Node()
            drained.CopyFrom(node)
            drained.spec.availability = pb.NODE_AVAILABILITY_DRAIN
            return [ops.update(drained)]
        case 1:
            return whatif.lose([node])
        case 2:
            return whatif.add(w.view, [whatif.Addition(2, 4_000_000_000, 8 * world.GB, {"zone": "east"})])
        case 3:
            spec = pb.ServiceSpec(name="new")
            spec.task.container.image = "demo:1"
            spec.mode.replicated.replicas = rng.randrange(6)
            chaos.shape(rng)(spec)
            return intents.create(
                w.view, spec, service_id="new", revision_id="new@1", registry_auth="", now=w.clock.now()
            )
        case 4:
            return update(w, name, lambda spec: setattr(spec.mode.replicated, "replicas", rng.randrange(8)))
        case _:
            return update(w, name, shape(rng))


def update(w: world.World, name: str, make: Callable[[pb.ServiceSpec], object]) -> list[pb.Op]:
    service = w.the_service(name)
    spec = pb.ServiceSpec()
    spec.CopyFrom(w.view.spec(service))
    make(spec)
    request = intents.Update(spec=spec, version=service.version.index)
    return intents.update(w.view, name, request, revision_id=f"{name}@next", now=w.clock.now())


def wished(w: world.World) -> dict[tuple[str, int], tuple[str, str, bool]]:
    """Task, node and whether it runs, for each slot in which one is wished."""
    found: dict[tuple[str, int], tuple[str, str, bool]] = {}
    for name in (*SERVICES, "new"):
        for task in w.wished(name):
            if task.status.state <= pb.TASK_STATE_RUNNING:
                runs = task.status.state == pb.TASK_STATE_RUNNING
                found[name, task.slot] = (task.id, task.node_id, runs)
    return found


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(st.integers(0, 2**32))
def test_what_is_applied_equals_the_plan(seed: int) -> None:
    rng = random.Random(seed)
    w = cluster(rng)
    wanted = change(w, rng)
    before = wished(w)
    plan = forecast.simulate(
        w.store.copy(), wanted, now=w.clock.now(), rng=ids.seeded_rng(99), deciders=loops.default_deciders()
    )
    again = forecast.simulate(
        w.store.copy(), wanted, now=w.clock.now(), rng=ids.seeded_rng(4711), deciders=loops.default_deciders()
    )
    for service in (*plan.services, *again.services):
        if service.status is not None:
            service.status.ClearField("message")  # of several tasks that failed alike it names any one
    assert plan == again, "chance has no say"
    assert plan.at_rest
    assert plan.complete
    if not wanted:
        assert plan.verdict is forecast.Verdict.NOTHING
        return
    w.write(*wanted)
    for node in w.view.nodes:
        if node.status.state == pb.NODE_STATE_DOWN:
            w.hung[node.id] = None
    w.go(for_s=24 * HOUR_S)
    after = wished(w)
    told: dict[tuple[str, int], forecast.Outcome] = {}
    for service in plan.services:
        told.update({(service.id, outcome.slot): outcome for outcome in service.outcomes})
    for key in {**before, **after}:
        check(told.get(key), before.get(key), after.get(key))
    assert any(not same(before.get(key), after.get(key)) for key in {**before, **after}) == any(
        outcome.action not in {forecast.Action.KEPT, forecast.Action.INFEASIBLE, forecast.Action.HELD}
        for outcome in told.values()
    )


Here = tuple[str, str, bool] | None


def same(before: Here, after: Here) -> bool:
    return before == after or (after is not None and not after[2])


def check(outcome: forecast.Outcome | None, before: Here, after: Here) -> None:
    """The plan's word on one slot against what came about."""
    if outcome is None:
        assert before == after
        return
    match outcome.action:
        case forecast.Action.KEPT | forecast.Action.LOST | forecast.Action.HELD:
            assert before == after
        case forecast.Action.RESTARTED | forecast.Action.MOVED | forecast.Action.NEW:
            assert after is not None
            assert after[2]
            assert after[1] == outcome.target, outcome
            assert before is None or before[0] != after[0] or not before[2]
        case forecast.Action.REMOVED:
            assert after is None
        case forecast.Action.INFEASIBLE:
            assert outcome.reason
