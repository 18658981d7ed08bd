"""Explanations: every failing rule of every node, what is waited for, and the nearest remedy."""

import functools
from collections.abc import Callable

import pytest

from manager import loops
from manager.planning import explaining
from skep import ids, pb, stamps
from tests.manager.orchestrator import world

GB = world.GB
GIB = 1024**3
Change = Callable[[pb.ServiceSpec], object]


def cluster() -> world.World:
    w = world.World()
    w.node("n0", memory=3 * GIB, labels={"disk": "hdd"})
    w.node("n1", memory=1 * GB, cpus=1.0)
    return w


def explainer(w: world.World) -> explaining.Explainer:
    return explaining.Explainer(w.view, now=w.clock.now(), rng=ids.seeded_rng(1), deciders=loops.default_deciders())


def task_of(w: world.World, name: str = "web") -> explaining.Explanation:
    return explainer(w).task(w.wished(name)[0])


def reserve_memory(spec: pb.ServiceSpec) -> None:
    spec.task.resources.reservations.memory_bytes = 4 * GIB


def reserve_cpus(spec: pb.ServiceSpec) -> None:
    spec.task.resources.reservations.nano_cpus = 6 * stamps.NANOS


def constrain(*expressions: str) -> Change:
    return lambda spec: spec.task.placement.constraints.extend(expressions)


def other_platform(spec: pb.ServiceSpec) -> None:
    spec.task.placement.platforms.add(os="linux", architecture="s390x")


def gpus(spec: pb.ServiceSpec) -> None:
    spec.task.resources.reservations.generic.add().discrete.CopyFrom(pb.GenericResource.Discrete(kind="gpu", value=2))


@pytest.mark.parametrize(
    ("change", "n0", "fix"),
    [
        (reserve_memory, ["needs 4.3 GB memory: 3.2 GB free"], "free 1.1 GB on n0, or lower --reserve-memory to 3g"),
        (reserve_cpus, ["needs 6 CPUs: 4 free"], "free 2 CPUs on n0, or lower --reserve-cpu to 4"),
        (
            constrain("node.labels.disk==ssd"),
            ["needs node.labels.disk==ssd: node.labels.disk=hdd"],
            "skep node update --label-add disk=ssd n0",
        ),
        (
            constrain("node.labels.disk!=hdd", "node.labels.zone==a"),
            ["needs node.labels.disk!=hdd: node.labels.disk=hdd", "needs node.labels.zone==a: no node.labels.zone"],
            "skep node update --label-add zone=a n1",
        ),
        (
            constrain("node.hostname==n7"),
            ["needs node.hostname==n7: node.hostname=n0"],
            "drop it with --constraint-rm node.hostname==n7",
        ),
        (
            constrain("node.colour==red"),
            ["needs node.colour==red: no such property on any node"],
            "drop it with --constraint-rm node.colour==red",
        ),
        (constrain("node.ip==10.0.0.0/8"), ["needs node.ip==10.0.0.0/8: node.ip=127.0.0.1"], None),
        (other_platform, ["needs platform linux/s390x: linux/amd64"], "an image for linux/amd64"),
        (gpus, ["needs 2 gpu: 0 free"], "free 2 gpu on n0"),
    ],
)  # fmt: skip
def test_every_rule_says_need_and_have_and_a_remedy(change: Change, n0: list[str], fix: str | None) -> None:
    w = cluster()
    w.service("web", 1, change)
    w.go()
    found = task_of(w)
    assert found.summary == w.wished("web")[0].status.err, "one truth"
    assert [each.text for each in found.nodes[0].failing] == n0
    assert fix is None or found.fix == fix
    assert [wait.reason for wait in found.waits] == ["a node"]


def test_all_failing_rules_of_a_node_are_told_and_the_nearest_node_is_chosen() -> None:
    w = cluster()

    def change(spec: pb.ServiceSpec) -> None:
        reserve_memory(spec)
        constrain("node.labels.disk==ssd")(spec)

    w.service("web", 1, change)
    w.drain("n1")
    w.go()
    found = task_of(w)
    assert [[each.rule for each in node.failing] for node in found.nodes] == [
        ["memory", "constraint"],
        ["ready", "memory", "constraint"],
    ]
    assert found.fix == (
        "free 1.1 GB on n0, or lower --reserve-memory to 3g; and skep node update --label-add disk=ssd n0"
    )


def test_ports_and_replicas_per_node_name_who_is_in_the_way() -> None:
    w = cluster()

    def change(spec: pb.ServiceSpec) -> None:
        spec.endpoint.ports.add(target_port=80, published_port=8080, publish_mode=pb.PUBLISH_MODE_HOST)

    w.service("first", 2, change)
    w.go()
    w.service("web", 1, change)
    w.service("few", 3, lambda spec: setattr(spec.task.placement, "max_replicas", 1))
    w.go()
    holder = next(f"first.{task.slot}" for task in w.wished("first") if task.node_id == "n0")
    assert task_of(w).nodes[0].failing[0].text == f"needs host port 8080/tcp: taken by {holder}"
    few = explainer(w).service(w.the_service("few"))
    assert few.summary.startswith("2 of 3 wished tasks run; 1 have no node: no suitable node")
    assert few.nodes[0].failing[0].text == "needs fewer than 1 tasks of the service: 1 there"
    assert few.fix == "raise --replicas-max-per-node, or add a node"


def _describe(more: pb.NodeDescription, node: pb.Node) -> None:
    node.description.MergeFrom(more)


def test_what_is_wrong_with_a_node_is_told_with_numbers() -> None:
    w = cluster()
    for name, kind, words in (("n0", "disk", "1.0 GB of 10 GB are free"), ("n1", "engine", "it does not answer")):
        wrong = pb.NodeDescription(conditions=[pb.NodeCondition(kind=kind, summary=f"low on {kind}", message=words)])
        w.change_node(name, functools.partial(_describe, wrong))
    w.service("web", 1, reserve_memory)
    w.go()
    found = task_of(w)
    assert found.summary == "no suitable node (1 low on disk; 1 low on engine)"
    assert [[each.text for each in node.failing] for node in found.nodes] == [
        ["needs a node that is well: 1.0 GB of 10 GB are free", "needs 4.3 GB memory: 3.2 GB free"],
        ["needs a node that is well: it does not answer", "needs 4.3 GB memory: 1 GB free"],
    ]
    assert found.fix == "free disk space on n0; and free 1.1 GB on n0, or lower --reserve-memory to 3g"
    node = w.view.nodes.get("n0")
    assert node is not None
    assert explainer(w).node(node).summary == "ready, active, 0 tasks, low on disk: 1.0 GB of 10 GB are free"


def test_a_cluster_without_nodes() -> None:
    w = world.World()
    w.service("web", 1)
    w.go()
    found = task_of(w)
    assert "the cluster has no nodes" in found.summary
    assert "add a node" in found.fix


def test_why_not_another_node() -> None:
    w = cluster()
    w.service("web", 1)
    w.go()
    (task,) = w.wished("web")
    n0, n1 = w.view.nodes.get("n0"), w.view.nodes.get("n1")
    assert n0 is not None
    assert n1 is not None
    here, other = (n0, n1) if task.node_id == "n0" else (n1, n0)
    explain = explainer(w)
    assert explain.task(task, why_not=here).why_not == f"web.1 is on {here.id}"
    assert explain.task(task, why_not=other).why_not.startswith(f"{other.id} would take it now. {here.id} was better")
    w.drain(other.id)
    drained = w.view.nodes.get(other.id)
    found = explainer(w).task(w.wished("web")[0], why_not=drained)
    assert found.why_not == f"{other.id} does not take it: needs an active node: drained"
    assert found.fix == f"skep node activate {other.id}"
    assert [node.node_id for node in found.nodes] == [other.id]
    service = explainer(w).service(w.the_service("web"), why_not=here)
    assert service.why_not == f"{here.id} would take it now: it has 1 tasks of the service and 1 in all"


def test_a_restart_delay_is_waited_for() -> None:
    w = cluster()
    w.service("web", 1)
    w.go()
    w.report(w.wished("web")[0].id, pb.TASK_STATE_FAILED, err="exit 1")
    w.decide()
    (waiting,) = w.wished("web")
    (wait, *_) = explainer(w).task(waiting).waits
    assert (wait.reason, wait.until) == ("its restart delay", w.clock.now() + 5.0)
    failed = next(task for task in w.tasks("web") if task.status.state == pb.TASK_STATE_FAILED)
    assert explainer(w).task(failed).summary.startswith("failed on n")
    assert explainer(w).task(failed).summary.endswith(": exit 1")


def test_a_successor_waits_for_its_predecessor_to_stop() -> None:
    w = cluster()
    w.service("web", 1)
    w.go()
    (old,) = w.wished("web")
    w.deploy("web", "demo:2")
    w.decide()
    (successor,) = [task for task in w.wished("web") if task.id != old.id]
    waits = explainer(w).task(successor).waits
    assert f"task {old.id} on {old.node_id}, which it replaces, to stop" in [wait.reason for wait in waits]
    for _ in range(4):  # until the image is there, and the old task has been told to stop
        w.agents(lambda task: task.id != old.id)
        w.decide()
    stopping = next(task for task in w.tasks("web") if task.id == old.id)
    assert stopping.desired_state > pb.TASK_STATE_RUNNING
    assert [wait.reason for wait in explainer(w).task(stopping).waits] == [f"its stop on {old.node_id}"]
    found = explainer(w).service(w.the_service("web"))
    assert found.waits[0].reason.startswith("its update: ")


def test_an_update_waits_for_its_monitor_and_a_paused_one_for_people() -> None:
    w = cluster()
    w.service("web", 1)
    w.go()
    w.deploy("web", "demo:2")
    for _ in range(20):
        w.decide()
        w.agents()
    (wait,) = explainer(w).service(w.the_service("web")).waits
    assert wait.until is not None
    assert wait.until > w.clock.now()
    w.refuse["web@3"] = pb.TASK_STATE_FAILED
    w.deploy("web", "demo:3")
    w.go()
    assert w.status("web")[0] == pb.UPDATE_STATE_PAUSED
    reasons = [wait.reason for wait in explainer(w).service(w.the_service("web")).waits]
    assert reasons[0].startswith("you: update paused due to failure")


def test_a_lost_node_and_a_drained_one() -> None:
    w = cluster()
    w.service("web", 2)
    w.go()
    w.drain("n1")
    n1 = w.view.nodes.get("n1")
    assert n1 is not None
    found = explainer(w).node(n1)
    assert found.summary == "ready, drain, 1 tasks"
    assert any("before it leaves n1" in wait.reason for wait in found.waits)
    w.down("n1")
    lost = w.view.nodes.get("n1")
    assert lost is not None
    reasons = [wait.reason for wait in explainer(w).node(lost).waits]
    assert any("to come back" in reason for reason in reasons)


def test_a_node_names_the_tasks_that_it_turns_away() -> None:
    w = cluster()
    w.service("web", 1, reserve_memory)
    w.go()
    n0 = w.view.nodes.get("n0")
    assert n0 is not None
    found = explainer(w).node(n0)
    assert [(wait.subject, wait.reason) for wait in found.waits] == [
        ("web.1", "a node; not here: needs 4.3 GB memory: 3.2 GB free")
    ]
    assert found.fix.startswith("free 1.1 GB on n0")
