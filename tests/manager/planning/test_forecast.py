"""The forecast of single changes: what becomes of each task, in which words, and what is left out."""

from collections.abc import Callable

import pytest

from manager import loops
from manager.control import defaults
from manager.control import services as intents
from manager.planning import fields, forecast, whatif
from manager.store import ops
from skep import errors, ids, pb, policies, stamps
from tests.manager.orchestrator import world

Action = forecast.Action


def cluster(nodes: int = 3) -> world.World:
    w = world.World()
    for number in range(nodes):
        w.node(f"n{number}")
    return w


def service(
    w: world.World, name: str, replicas: int, change: Callable[[pb.ServiceSpec], object] = lambda _: None
) -> None:
    """A service as control stores it."""

    def normalise(spec: pb.ServiceSpec) -> None:
        change(spec)
        spec.CopyFrom(defaults.normalised(spec))

    w.service(name, replicas, normalise)


def ask(w: world.World, change: list[pb.Op]) -> forecast.Forecast:
    w.store.verify()
    index = w.store.index
    found = forecast.simulate(
        w.store.copy(), change, now=w.clock.now(), rng=ids.seeded_rng(1), deciders=loops.default_deciders()
    )
    assert w.store.index == index
    w.store.verify()
    return found


def revised(w: world.World, name: str, **changes: object) -> list[pb.Op]:
    spec = pb.ServiceSpec()
    spec.CopyFrom(w.view.spec(w.the_service(name)))
    for path, value in changes.items():
        *parts, last = path.split("__")
        owner: object = spec
        for part in parts:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    request = intents.Update(spec=spec, version=w.the_service(name).version.index)
    return intents.update(w.view, name, request, revision_id=f"{name}@next", now=w.clock.now())


def drained(w: world.World, name: str) -> list[pb.Op]:
    node = pb.Node()
    found = w.view.nodes.get(name)
    assert found is not None
    node.CopyFrom(found)
    node.spec.availability = pb.NODE_AVAILABILITY_DRAIN
    return [ops.update(node)]


def actions(found: forecast.Forecast, name: str = "web") -> list[Action]:
    (service,) = [service for service in found.services if service.name == name]
    return [outcome.action for outcome in service.outcomes]


def test_nothing_to_do_is_said_so() -> None:
    w = cluster()
    service(w, "web", 3)
    w.go()
    found = ask(w, [])
    assert found.verdict is forecast.Verdict.NOTHING
    assert found.services == []
    assert found.at_rest


def test_scaling_keeps_what_runs() -> None:
    w = cluster()
    service(w, "web", 2)
    service(w, "other", 4)
    w.go()
    found = ask(w, revised(w, "web", mode__replicated__replicas=4))
    assert actions(found) == [Action.KEPT, Action.KEPT, Action.NEW, Action.NEW]
    assert [service.name for service in found.services] == ["web"], "what is not touched is not told"
    assert found.fields == [fields.Field("Mode.Replicated.Replicas", 2, 4)]
    assert found.services[0].status is None, "scaling is no update"
    assert sum(after - before for before, after in found.node_tasks.values()) == 2
    down = ask(w, revised(w, "web", mode__replicated__replicas=0))
    assert actions(down) == [Action.REMOVED, Action.REMOVED]


def test_an_update_tells_how_few_run_and_how_long_it_takes() -> None:
    w = cluster()
    service(w, "web", 3, lambda spec: spec.update.CopyFrom(pb.UpdateConfig(parallelism=1, delay=10 * stamps.NANOS)))
    w.go()
    found = ask(w, revised(w, "web", task__container__image="demo:2"))
    assert set(actions(found)) <= {Action.RESTARTED, Action.MOVED}
    (web,) = found.services
    assert (web.running, web.running_least) == (3, 2)
    assert web.status is not None
    assert web.status.state == pb.UPDATE_STATE_COMPLETED
    assert found.took_s >= 30.0
    gentle = revised(w, "web", task__container__image="demo:2", update__order=pb.UPDATE_ORDER_START_FIRST)
    assert ask(w, gentle).services[0].running_least == 3


def test_what_no_node_takes_is_infeasible_with_the_reason() -> None:
    w = cluster()
    service(w, "web", 2)
    w.go()
    found = ask(w, revised(w, "web", task__resources__reservations__memory_bytes=900 * world.GB))
    assert found.verdict is forecast.Verdict.INFEASIBLE
    assert actions(found) == [Action.INFEASIBLE, Action.HELD]
    assert "needs 900 GB memory" in found.services[0].outcomes[0].reason


def test_a_drain_moves_and_says_where_to() -> None:
    w = cluster(2)
    service(w, "web", 4)
    w.go()
    found = ask(w, drained(w, "n0"))
    assert sorted(action.value for action in actions(found)) == ["kept", "kept", "moved", "moved"]
    assert {each.target for each in found.services[0].outcomes} == {"n1"}
    assert found.fields == [fields.Field("Availability", "active", "drain", node="n0")]
    assert found.node_tasks == {"n0": (2, 0), "n1": (2, 4)}


def test_what_is_unplaced_anyway_is_not_blamed_on_the_change() -> None:
    w = cluster(2)
    service(w, "web", 2)
    service(w, "huge", 1, lambda spec: setattr(spec.task.resources.reservations, "memory_bytes", 99 * world.GB))
    w.go()
    found = ask(w, revised(w, "web", mode__replicated__replicas=3))
    assert [service.name for service in found.services] == ["web"]
    assert found.verdict is forecast.Verdict.CHANGES


def test_what_is_under_way_anyway_is_not_blamed_on_the_change() -> None:
    w = cluster(2)
    service(w, "web", 2)
    service(w, "other", 2, lambda spec: spec.task.placement.constraints.append("node.hostname==n1"))
    w.go()
    w.deploy("other", "demo:2")
    found = ask(w, revised(w, "web", mode__replicated__replicas=3))
    assert not found.at_rest
    assert any("under way" in note for note in found.notes)
    assert [service.name for service in found.services] == ["web"]


def test_losing_a_node_and_adding_one() -> None:
    w = cluster(2)
    service(w, "web", 4, lambda spec: setattr(spec.task.resources.reservations, "memory_bytes", 4 * world.GB))
    w.go()
    node = w.view.nodes.get("n0")
    assert node is not None
    lost = ask(w, whatif.lose([node]))
    assert lost.verdict is forecast.Verdict.INFEASIBLE
    assert actions(lost).count(Action.INFEASIBLE) == 2
    assert lost.services[0].running_least == 2
    w.scale("web", 6)
    w.go()
    more = ask(w, whatif.add(w.view, [whatif.Addition(2, 2 * stamps.NANOS, 4 * world.GB)]))
    assert actions(more) == [Action.KEPT] * 4 + [Action.NEW] * 2
    assert {each.target for each in more.services[0].outcomes[4:]} == {"added-1", "added-2"}
    with pytest.raises(errors.Invalid):
        whatif.add(w.view, [whatif.Addition(1001, 1, 1)])
    with pytest.raises(errors.Invalid):
        whatif.add(w.view, [whatif.Addition(0, 1, 1)])


def test_what_waits_for_a_lost_node_waits_from_the_loss_on() -> None:
    w = cluster(2)
    service(w, "web", 2, lambda spec: spec.labels.update({policies.REPLACE_AFTER: "60s"}))
    w.go()
    w.change_node("n0", lambda node: node.status.since.CopyFrom(stamps.stamp(w.clock.now())))  # it became ready then
    w.clock.time += 3600.0
    node = w.view.nodes.get("n0")
    assert node is not None
    lost = ask(w, whatif.lose([node]))
    assert lost.took_s >= 60.0


@pytest.mark.parametrize(
    ("managers", "lost", "words"),
    [
        (3, ["n0"], ""),
        (3, ["n0", "n1"], "1 of 3 managers would be left, 2 are needed"),
        (0, ["n0"], ""),
        (2, ["n1"], "1 of 2"),
    ],
)
def test_losing_the_quorum_is_told(managers: int, lost: list[str], words: str) -> None:
    w = cluster()
    for number in range(managers):
        w.change_node(f"n{number}", lambda node: setattr(node, "role", pb.NODE_ROLE_MANAGER))
    said = whatif.quorum_lost(w.view, lost)
    assert said.startswith(words)
    assert bool(said) == bool(words)


def test_too_much_to_compute_is_told() -> None:
    w = cluster()
    w.service(
        "web", 3, lambda spec: spec.update.CopyFrom(pb.UpdateConfig(parallelism=1, delay=20 * 3600 * stamps.NANOS))
    )
    w.go()
    found = ask(w, revised(w, "web", task__container__image="demo:2"))
    assert not found.complete
    assert actions(found).count(Action.HELD) == 1
    assert found.notes


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, []),
        ({"image": "a"}, {"image": "b"}, [("TaskTemplate.ContainerSpec.Image", "a", "b")]),
        ({"env": ["A=1", "B=2"]}, {"env": ["B=2", "C=3"]}, [("TaskTemplate.ContainerSpec.Env", ["A=1"], ["C=3"])]),
        ({"env": ["A", "B"]}, {"env": ["B", "A"]}, [("TaskTemplate.ContainerSpec.Env", ["A", "B"], ["B", "A"])]),
        ({}, {"env": ["A=1"]}, [("TaskTemplate.ContainerSpec.Env", None, ["A=1"])]),
        ({"labels": {"a": "1"}}, {"labels": {"a": "2"}}, [("TaskTemplate.ContainerSpec.Labels.a", "1", "2")]),
    ],
)
def test_fields(
    before: dict[str, object], after: dict[str, object], expected: list[tuple[str, object, object]]
) -> None:
    def spec(container: dict[str, object]) -> pb.ServiceSpec:
        return pb.ServiceSpec(task=pb.TaskSpec(container=pb.ContainerSpec(**container)))  # type: ignore[arg-type]

    found = fields.difference(spec(before), spec(after))
    assert [(each.path, each.before, each.after) for each in found] == expected


def test_fields_of_a_list_of_objects() -> None:
    old, new = pb.ServiceSpec(), pb.ServiceSpec()
    old.endpoint.ports.add(target_port=80, published_port=8080)
    new.endpoint.ports.add(target_port=80, published_port=8081)
    (found,) = fields.difference(old, new)
    assert (found.path, found.before, found.after) == ("EndpointSpec.Ports[0].PublishedPort", 8080, 8081)
    assert fields.difference(None, new)
