"""Where tasks go, and what is said when they go nowhere."""

from collections.abc import Callable

import pytest

from manager.scheduler import filters, scheduler
from manager.store import ops, watching
from skep import pb, stamps
from tests.manager.orchestrator import world

Change = Callable[[pb.ServiceSpec], object]


def reserve(*, cpus: float = 0.0, memory: int = 0, **generic: int) -> Change:
    def change(spec: pb.ServiceSpec) -> None:
        wanted = spec.task.resources.reservations
        wanted.nano_cpus = stamps.to_nanos(cpus)
        wanted.memory_bytes = memory
        for kind, count in generic.items():
            wanted.generic.add().discrete.CopyFrom(pb.GenericResource.Discrete(kind=kind, value=count))

    return change


def constrain(*expressions: str) -> Change:
    return lambda spec: spec.task.placement.constraints.extend(expressions)


def publish(port: int, mode: pb.PublishMode.ValueType = pb.PUBLISH_MODE_HOST) -> Change:
    return lambda spec: spec.endpoint.ports.add(target_port=80, published_port=port, publish_mode=mode)


def at_most(count: int) -> Change:
    return lambda spec: setattr(spec.task.placement, "max_replicas", count)


def spread_over(*descriptors: str) -> Change:
    def change(spec: pb.ServiceSpec) -> None:
        for descriptor in descriptors:
            spec.task.placement.preferences.add().spread.spread_descriptor = descriptor

    return change


def platform(os: str, architecture: str) -> Change:
    return lambda spec: spec.task.placement.platforms.add(os=os, architecture=architecture)


def nodes(count: int) -> world.World:
    w = world.World()
    for number in range(1, count + 1):
        w.node(f"n{number}")
    return w


def waiting(w: world.World, name: str) -> list[str]:
    return [task.status.err for task in w.wished(name) if task.status.state == pb.TASK_STATE_PENDING]


def test_services_of_one_task_each_spread_over_all_nodes() -> None:
    w = nodes(4)
    for number in range(10):
        w.service(f"s{number}", 1)
    w.decide()
    counts: dict[str, int] = {}
    for task in w.view.tasks:
        counts[task.node_id] = counts.get(task.node_id, 0) + 1
    assert sorted(counts.values()) == [2, 2, 3, 3]


def test_the_service_counts_before_the_total() -> None:
    w = nodes(2)
    w.service("a", 2)
    w.drain("n2")
    w.go()
    w.service("b", 5)
    w.go()
    w.change_node("n2", lambda node: setattr(node.spec, "availability", pb.NODE_AVAILABILITY_ACTIVE))
    w.service("c", 3)
    w.decide()
    assert w.spread("c") == {"n1": 1, "n2": 2}
    w.scale("b", 6)
    w.decide()
    assert w.spread("b") == {"n1": 5, "n2": 1}


def test_only_ready_and_active_nodes_take_tasks() -> None:
    w = nodes(5)
    w.drain("n1")
    w.down("n2")
    w.change_node("n3", lambda node: setattr(node.spec, "availability", pb.NODE_AVAILABILITY_PAUSE))
    w.change_node("n4", lambda node: setattr(node.status, "state", pb.NODE_STATE_UNKNOWN))
    w.service("web", 3)
    w.go()
    assert w.spread("web") == {"n5": 3}
    w.drain("n5")
    w.decide()
    # Nobody can take over, so the first one to move waits and all run on.
    assert waiting(w, "web") == ["no suitable node (2 drained; 1 down; 1 paused; 1 not heard from)"]
    assert len(w.running("web")) == 3


def test_a_paused_node_keeps_what_it_has() -> None:
    w = nodes(1)
    w.service("web", 2)
    w.go()
    w.change_node("n1", lambda node: setattr(node.spec, "availability", pb.NODE_AVAILABILITY_PAUSE))
    assert w.decide() == 0


def test_a_node_that_is_not_well_keeps_what_it_has_and_takes_nothing_new() -> None:
    w = nodes(2)
    w.service("web", 2)
    w.everywhere("everywhere")
    w.go()
    full = pb.NodeCondition(kind="disk", summary="low on disk", message="1.0 GB of 10 GB are free on the disk of /x")
    w.change_node("n1", lambda node: node.description.conditions.append(full))
    assert w.decide() == 0
    w.service("more", 3)
    w.go()
    assert w.spread("more") == {"n2": 3}
    assert (w.spread("web"), w.spread("everywhere")) == ({"n1": 1, "n2": 1}, {"n1": 1, "n2": 1})
    w.drain("n2")
    w.service("late", 1)
    w.decide()
    assert waiting(w, "late") == ["no suitable node (1 low on disk; 1 drained)"]
    w.change_node("n1", lambda node: node.description.ClearField("conditions"))
    w.go()
    assert w.spread("late") == {"n1": 1}


@pytest.mark.parametrize(
    ("change", "placed", "sentence"),
    [
        (reserve(cpus=2.0), 4, "needs 2 CPUs, most free is 0 on n1"),
        (reserve(cpus=1.5), 4, "needs 1.5 CPUs, most free is 1 on n1"),
        (reserve(memory=900 * world.GB), 0, "needs 900 GB memory, most free is 8 GB on n1"),
        (reserve(memory=5 * world.GB), 2, "needs 5 GB memory, most free is 3 GB on n1"),
        (reserve(gpu=1), 0, "needs 1 gpu, most free is 0 on n1"),
        (constrain("node.hostname==n2", "node.role==worker"), 5, ""),
        (constrain("node.labels.disk==ssd"), 0, "2 not node.labels.disk==ssd"),
        (constrain("node.platform.os!=linux"), 0, "2 excluded by node.platform.os!=linux"),
        (platform("linux", "amd64"), 5, ""),
        (platform("linux", "arm64"), 0, "2 of another platform than linux/arm64"),
        (platform("windows", ""), 0, "2 of another platform than windows/any"),
        (publish(8080), 2, "host port 8080/tcp taken on 2"),
        (publish(8080, pb.PUBLISH_MODE_INGRESS), 5, ""),
        (at_most(1), 2, "2 at the limit of 1 per node"),
        (constrain("nonsense"), 0, "constraint expected one operator from ==, !="),
    ],
)
def test_filters(change: Change, placed: int, sentence: str) -> None:
    w = nodes(2)
    w.service("web", 5, change)
    w.decide()
    assert sum(w.spread(name).get(node, 0) for name in ("web",) for node in ("n1", "n2")) == placed
    assert waiting(w, "web") == [f"no suitable node ({sentence})"] * (5 - placed)
    assert w.decide() == 0


def test_no_nodes() -> None:
    w = world.World()
    w.service("web", 1)
    w.decide()
    (task,) = w.tasks("web")
    assert task.status.err == "no suitable node (the cluster has no nodes)"
    assert task.status.message == "pending task scheduling"
    w.node("n1")
    w.go()
    (task,) = w.running("web")
    assert task.status.err == ""


def test_a_node_is_counted_under_the_first_filter_it_fails() -> None:
    w = nodes(3)
    w.drain("n1")
    w.drain("n2")
    w.service("web", 1, lambda spec: (reserve(memory=900 * world.GB)(spec), constrain("node.role==manager")(spec)))
    w.decide()
    assert waiting(w, "web") == ["no suitable node (2 drained; needs 900 GB memory, most free is 8 GB on n3)"]


def test_the_sentence_is_written_only_when_it_changes() -> None:
    w = nodes(1)
    w.service("web", 1, reserve(memory=100 * world.GB))
    w.decide()
    index = w.store.index
    w.clock.time += 100.0
    assert w.decide() == 0
    assert w.store.index == index
    w.node("n2", memory=50 * world.GB)
    w.decide()
    assert waiting(w, "web") == ["no suitable node (needs 100 GB memory, most free is 50 GB on n2)"]


def test_room_is_held_until_a_task_has_really_ended() -> None:
    w = nodes(1)
    w.service("a", 1, publish(8080))
    w.go()
    w.hung["n1"] = None
    w.scale("a", 0)
    w.service("b", 1, publish(8080))
    w.go()
    assert waiting(w, "b") == ["no suitable node (host port 8080/tcp taken on 1)"]
    w.hung.clear()
    w.go()
    assert len(w.running("b")) == 1


def test_named_and_counted_generic_resources() -> None:
    w = world.World()
    w.node("n1")

    def equip(node: pb.Node) -> None:
        generic = node.description.resources.generic
        generic.add().discrete.CopyFrom(pb.GenericResource.Discrete(kind="ssd", value=3))
        for value in ("one", "two"):
            generic.add().named.CopyFrom(pb.GenericResource.Named(kind="gpu", value=value))

    w.change_node("n1", equip)
    w.service("a", 3, reserve(gpu=1))
    w.service("b", 3, reserve(ssd=2))
    w.decide()
    assert waiting(w, "a") == ["no suitable node (needs 1 gpu, most free is 0 on n1)"]
    assert waiting(w, "b") == ["no suitable node (needs 2 ssd, most free is 1 on n1)"] * 2


def test_a_node_where_the_service_keeps_failing_comes_last() -> None:
    w = nodes(2)
    w.service("web", 4)
    w.decide()
    for count in range(4):
        for task in w.wished("web"):
            if task.node_id == "n1":
                w.report(task.id, pb.TASK_STATE_FAILED)
        del count
        w.go(for_s=6.0)
    assert w.spread("web")["n2"] > w.spread("web").get("n1", 0)
    w.go(for_s=400.0)
    w.scale("web", 9)
    w.decide()
    counts = w.spread("web")
    assert abs(counts["n1"] - counts["n2"]) <= 1


@pytest.mark.parametrize(
    ("zones", "replicas", "expected"),
    [
        (["east", "east", "east", "west"], 6, {"east": 3, "west": 3}),
        (["east", "east", "", "west"], 7, {"": 3, "east": 2, "west": 2}),
        (["east", "west"], 5, {"east": 3, "west": 2}),
    ],
)
def test_a_preference_evens_out_branches_not_nodes(zones: list[str], replicas: int, expected: dict[str, int]) -> None:
    w = world.World()
    for number, zone in enumerate(zones):
        w.node(f"n{number}", labels={"zone": zone} if zone else {})
    w.service("web", replicas, spread_over("node.labels.zone"))
    w.decide()
    counts: dict[str, int] = {}
    for node_id, count in w.spread("web").items():
        zone = zones[int(node_id[1:])]
        counts[zone] = counts.get(zone, 0) + count
    assert counts == expected


def test_two_preferences_make_a_tree_and_full_branches_give_way() -> None:
    w = world.World()
    for zone in ("east", "west"):
        for rack in ("1", "2"):
            w.node(f"{zone}{rack}", memory=4 * world.GB, labels={"zone": zone, "rack": rack})

    def change(spec: pb.ServiceSpec) -> None:
        spread_over("node.labels.zone", "node.labels.rack", "node.nonsense")(spec)
        reserve(memory=2 * world.GB)(spec)

    w.service("web", 4, change)
    w.decide()
    assert w.spread("web") == {"east1": 1, "east2": 1, "west1": 1, "west2": 1}
    w.drain("west2")
    w.go()
    w.scale("web", 6)
    w.decide()
    assert w.spread("web") == {"east1": 2, "east2": 2, "west1": 2}


@pytest.mark.parametrize("fits", [True, False])
def test_a_task_that_comes_with_a_node_is_only_checked(fits: bool) -> None:
    w = nodes(1)
    w.service("web", 0, reserve(memory=(1 if fits else 100) * world.GB))
    task = pb.Task(id="t", service_id="web", revision_id="web@1", node_id="n1", desired_state=pb.TASK_STATE_RUNNING)
    task.status.state = pb.TASK_STATE_PENDING
    w.write(ops.create(task))
    result = scheduler.Scheduler().decide(w.view, w.clock.now(), w.rng, None)
    (op,) = result.ops
    status = op.object.task.status
    if fits:
        assert status.state == pb.TASK_STATE_ASSIGNED
        assert status.message == "scheduler confirmed task can run on preassigned node"
    else:
        assert (status.state, status.err) == (
            pb.TASK_STATE_PENDING,
            "no suitable node (needs 100 GB memory, most free is 8 GB on n1)",
        )


def test_tasks_nobody_wants_any_more_get_no_node() -> None:
    w = nodes(1)
    w.service("web", 0)
    task = pb.Task(id="t", service_id="web", revision_id="web@1", desired_state=pb.TASK_STATE_SHUTDOWN)
    task.status.state = pb.TASK_STATE_PENDING
    w.write(ops.create(task))
    assert scheduler.Scheduler().decide(w.view, w.clock.now(), w.rng, None).ops == []


def test_what_wakes_the_scheduler() -> None:
    w = nodes(1)
    w.service("web", 1)
    watch = w.store.watch({"node", "task"}, lambda: None)
    decider = scheduler.Scheduler()

    def keys() -> list[str]:
        found: dict[str, None] = {}
        for change in watch.take():
            assert isinstance(change, watching.Change)
            found.update(dict.fromkeys(decider.touches(w.view, change)))
        return list(found)

    w.decide()
    assert keys() == ["web"]
    w.agents()
    assert keys() == []  # an agent going on frees nothing
    w.go()
    keys()
    w.change_node("n1", lambda node: setattr(node.manager, "addr", "127.0.0.1:1"))
    assert keys() == []
    w.report(w.running("web")[0].id, pb.TASK_STATE_FAILED)
    assert keys() == [scheduler.CAPACITY]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (-5, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (14 * 1000**3, "14 GB"), (10**12, "1 TB")],
)
def test_sizes_read_well(size_bytes: int, text: str) -> None:
    assert filters.size(size_bytes) == text
