"""Plugins, names of generic resources, failing nodes, trees of preferences, and what the ledger looks at when."""

from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from manager.scheduler import filters, nodes, placing, scheduler
from manager.store import ops, tables
from skep import pb, stamps
from tests.manager.orchestrator import world


def volume(driver: str) -> Callable[[pb.ServiceSpec], object]:
    def change(spec: pb.ServiceSpec) -> None:
        mount = spec.task.container.mounts.add(type=pb.MOUNT_TYPE_VOLUME, source="v", target="/v")
        mount.volume_options.driver_config.name = driver

    return change


def log_driver(name: str) -> Callable[[pb.ServiceSpec], object]:
    return lambda spec: setattr(spec.task.log_driver, "name", name)


def with_plugins(w: world.World, name: str, **plugins: str) -> None:
    def change(node: pb.Node) -> None:
        for kind, plugin in plugins.items():
            node.description.engine.plugins.add(type=kind, name=plugin)

    w.change_node(name, change)


@pytest.mark.parametrize(
    ("change", "taken_by"),
    [
        (volume("rexray"), ["n1"]),
        (volume("rexray:latest"), ["n1"]),
        (volume("local"), ["n2"]),
        (volume("nfs"), []),
        (volume(""), ["n1", "n2"]),
        (log_driver("splunk"), ["n2"]),
        (log_driver("none"), ["n1", "n2"]),
    ],
)
def test_plugins_that_a_task_uses_must_be_there(
    change: Callable[[pb.ServiceSpec], object], taken_by: list[str]
) -> None:
    w = world.World()
    w.node("n1")
    w.node("n2")
    with_plugins(w, "n1", Volume="rexray:latest", Log="json-file")
    with_plugins(w, "n2", Volume="local", Log="splunk")
    w.service("web", 4, change)
    w.decide()
    assert sorted(node for node in w.spread("web") if node) == taken_by
    if not taken_by:
        assert w.tasks("web")[0].status.err == "no suitable node (2 without plugin nfs (Volume))"


def test_a_node_that_reports_no_plugins_of_a_kind_is_not_excluded() -> None:
    w = world.World()
    w.node("n1")
    w.service("web", 1, log_driver("splunk"))
    w.decide()
    assert w.spread("web") == {"n1": 1}


def equipped() -> world.World:
    w = world.World()
    w.node("n1")

    def equip(node: pb.Node) -> None:
        generic = node.description.resources.generic
        generic.add().discrete.CopyFrom(pb.GenericResource.Discrete(kind="ssd", value=3))
        for value in ("uuid1", "uuid2", "uuid3"):
            generic.add().named.CopyFrom(pb.GenericResource.Named(kind="gpu", value=value))

    w.change_node("n1", equip)
    return w


def wants(**counts: int) -> Callable[[pb.ServiceSpec], object]:
    def change(spec: pb.ServiceSpec) -> None:
        for kind, count in counts.items():
            wanted = pb.GenericResource.Discrete(kind=kind, value=count)
            spec.task.resources.reservations.generic.add().discrete.CopyFrom(wanted)

    return change


def names(task: pb.Task) -> list[str]:
    return [resource.named.value for resource in task.assigned_generic if resource.HasField("named")]


def test_each_named_resource_is_given_to_one_task_and_comes_back() -> None:
    w = equipped()
    w.service("a", 2, wants(gpu=1, ssd=1))
    w.go()
    assert sorted(name for task in w.running("a") for name in names(task)) == ["uuid1", "uuid2"]
    assert {r.discrete.value for t in w.running("a") for r in t.assigned_generic if r.HasField("discrete")} == {1}
    w.service("b", 1, wants(gpu=1))
    w.go()
    assert names(w.running("b")[0]) == ["uuid3"]
    (freed,) = names(w.running("a")[1])
    w.scale("a", 1)
    w.go()
    w.service("c", 1, wants(gpu=1))
    w.go()
    assert names(w.running("c")[0]) == [freed]


def test_a_global_task_gets_names_too() -> None:
    w = equipped()
    w.everywhere("agent", wants(gpu=2))
    w.go()
    assert names(w.running("agent")[0]) == ["uuid1", "uuid2"]


@pytest.mark.parametrize(("failures", "age_s", "avoided"), [(5, 0.0, True), (4, 0.0, False), (5, 301.0, False)])
def test_five_failures_in_five_minutes_speak_against_a_node(failures: int, age_s: float, avoided: bool) -> None:
    w = world.World()
    for name in ("n1", "n2"):
        w.node(name)
    w.service("web", 0)
    for number in range(failures):
        task = pb.Task(id=f"t{number}", service_id="web", revision_id="web@1", slot=9, node_id="n1")
        task.desired_state = pb.TASK_STATE_SHUTDOWN
        task.status.state = pb.TASK_STATE_FAILED
        task.status.timestamp.CopyFrom(stamps.stamp(w.clock.now() - age_s))
        w.write(pb.Op(kind=pb.OP_KIND_CREATE, object=pb.Object(task=task)))
    for slot in (1, 2):
        task = pb.Task(id=f"p{slot}", service_id="web", revision_id="web@1", slot=slot)
        task.desired_state = pb.TASK_STATE_RUNNING
        task.status.state = pb.TASK_STATE_PENDING
        w.write(pb.Op(kind=pb.OP_KIND_CREATE, object=pb.Object(task=task)))
    result = scheduler.Scheduler().decide(w.view, w.clock.now(), w.rng, None)
    chosen = sorted(op.object.task.node_id for op in result.ops)
    assert chosen == (["n2", "n2"] if avoided else ["n1", "n2"])


@pytest.mark.parametrize(
    ("wished", "has", "fits"),
    [("amd64", "x86_64", True), ("x86_64", "amd64", True), ("arm64", "aarch64", True), ("", "riscv64", True),
     ("amd64", "aarch64", False)],
)  # fmt: skip
def test_architectures_have_two_spellings(wished: str, has: str, fits: bool) -> None:
    w = world.World()
    w.node("n1")
    w.change_node("n1", lambda node: setattr(node.description.platform, "architecture", has))
    w.service("web", 1, lambda spec: spec.task.placement.platforms.add(os="linux", architecture=wished))
    w.decide()
    assert bool(w.tasks("web")[0].node_id) == fits


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=8),
    st.lists(st.integers(0, 12), min_size=1, max_size=3),
)
def test_branches_of_a_tree_differ_by_at_most_one(places: list[tuple[str, str]], replicas: list[int]) -> None:
    w = world.World()
    for number, (zone, rack) in enumerate(places):
        w.node(f"n{number}", labels={"zone": zone, "rack": rack})

    def spread(spec: pb.ServiceSpec) -> None:
        for descriptor in ("node.labels.zone", "node.labels.rack"):
            spec.task.placement.preferences.add().spread.spread_descriptor = descriptor

    for service, count in enumerate(replicas):  # several services share one tree
        w.service(f"s{service}", count, spread)
    w.decide()
    for service in range(len(replicas)):
        zones = dict.fromkeys((zone for zone, _ in places), 0)
        racks = dict.fromkeys(places, 0)
        on_nodes = dict.fromkeys((f"n{number}" for number in range(len(places))), 0)
        for node_id, count in w.spread(f"s{service}").items():
            place = places[int(node_id[1:])]
            zones[place[0]] += count
            racks[place] += count
            on_nodes[node_id] += count
        assert max(zones.values()) - min(zones.values()) <= 1
        for zone in zones:
            below = [count for place, count in racks.items() if place[0] == zone]
            assert max(below) - min(below) <= 1
        for place in racks:
            leaf = [on_nodes[f"n{number}"] for number, other in enumerate(places) if other == place]
            assert max(leaf) - min(leaf) <= 1


def test_a_small_decision_looks_only_at_nodes_that_come_into_question() -> None:
    w = world.World()
    for number in range(10):
        w.node(f"n{number}")
    w.service("busy", 30)
    w.go()
    eager = nodes.Ledger(w.view, w.clock.now())
    lazy = nodes.Ledger(w.view, w.clock.now(), eager=False)
    assert [load.total for load in lazy.all()] == [load.total for load in eager.all()] == [3] * 10
    assert not any(load.filled for load in lazy.all())
    for mine, other in zip(lazy.all(), eager.all(), strict=True):
        lazy.fill(mine)
        assert (mine.cpus_free, mine.memory_free, mine.ports) == (other.cpus_free, other.memory_free, other.ports)
    lazy.of_service("busy")
    assert [load.services for load in lazy.all()] == [load.services for load in eager.all()]


def test_the_store_and_the_filter_agree_on_which_nodes_take_tasks() -> None:
    w = world.World()
    for state in pb.NodeState.values():
        for availability in pb.NodeAvailability.values():
            for ill in (False, True):
                node = pb.Node(id=f"n{state}-{availability}-{ill}")
                node.status.state = state
                node.spec.availability = availability
                if ill:
                    node.description.conditions.add(kind="disk", summary="low on disk")
                w.write(ops.create(node))
    willing = [node.id for node in w.view.nodes if not filters.unready(node)]
    assert willing == ["n2-0-False"]
    assert list(w.view.nodes.ids("takes", tables.TAKES)) == willing


def test_one_task_looks_at_few_nodes_however_many_there_are() -> None:
    w = world.World()
    for number in range(200):
        w.node(f"n{number:03d}")
    w.service("busy", 300)
    w.decide()
    ledger = nodes.Ledger(w.view, w.clock.now(), eager=False)
    looked: dict[str, None] = {}
    original = ledger.of

    def watched(node_id: str) -> nodes.NodeLoad | None:
        looked[node_id] = None
        return original(node_id)

    ledger.of = watched  # type: ignore[method-assign]
    (load,) = placing.Group(ledger, ("new", "busy@1")).place(1)
    assert load.total == 2
    assert list(looked) == [load.node_id]
