"""What a drain cannot move without a gap: told beforehand, with the reason and the gap."""

from collections.abc import Callable

import pytest

from manager.control import draining
from manager.planning import gaps
from skep import pb, stamps
from tests.manager.orchestrator import world

Change = Callable[[pb.ServiceSpec], object]


def told(w: world.World, *names: str) -> list[gaps.Gap]:
    """The gaps of draining these nodes, asked before anything is done."""
    after = w.store.copy()
    change = draining.start(w.view, names, deadline_s=600.0, now=w.clock.now())
    (refusal,) = after.apply(after.index + 1, [pb.Transaction(ops=change, at=stamps.stamp(w.clock.now()))])
    assert refusal is None
    view = after.view()
    return gaps.of(view, [node for node in view.nodes if node.id in names])


def host_port(spec: pb.ServiceSpec) -> None:
    spec.endpoint.ports.add(target_port=80, published_port=8080, publish_mode=pb.PUBLISH_MODE_HOST)


def volume(spec: pb.ServiceSpec) -> None:
    spec.task.container.mounts.add(type=pb.MOUNT_TYPE_VOLUME, source="data", target="/data")


def at_most_once(spec: pb.ServiceSpec) -> None:
    spec.labels["io.skep.at-most-once"] = "true"
    spec.task.container.stop_grace_period = stamps.to_nanos(7.0)


def never_again(spec: pb.ServiceSpec) -> None:
    spec.task.restart.condition = pb.RESTART_CONDITION_NONE


def pinned(spec: pb.ServiceSpec) -> None:
    spec.task.placement.constraints.append("node.hostname==n1")


@pytest.mark.parametrize(
    ("change", "replicas", "why", "expected"),
    [
        (host_port, 2, "host port 8080/tcp taken on 1", "until a node takes it"),
        (pinned, 1, "not node.hostname==n1", "until a node takes it"),
        (volume, 2, "has its volume data on this node", "up to 10 s to stop"),
        (at_most_once, 2, "must never run twice", "up to 7 s to stop"),
        (never_again, 2, "is never restarted", "for good"),
    ],
)
def test_each_kind_is_told(change: Change, replicas: int, why: str, expected: str) -> None:
    w = world.World()
    w.node("n1")
    w.node("n2")
    w.service("web", replicas, change)
    w.service("plain", 4)
    w.go()
    (gap,) = told(w, "n1")
    assert gap.name.startswith("web.")
    assert gap.node_id == "n1"
    assert why in gap.why
    assert expected in gap.expected


def test_what_is_on_every_node_and_jobs_are_told() -> None:
    w = world.World()
    w.node("n1")
    w.node("n2")
    w.everywhere("agent")
    w.endless = True
    w.job("batch", 2, 2)
    w.go()
    assert [(gap.name, gap.expected_s is None) for gap in told(w, "n1")] == [("agent", True), ("batch.0", False)]


def test_several_nodes_give_each_other_no_place() -> None:
    w = world.World()
    for name in ("n1", "n2", "n3"):
        w.node(name)
    w.service("web", 2, host_port)
    w.go()
    holders = [task.node_id for task in w.running("web")]
    assert told(w, holders[0]) == []
    (gap,) = told(w, *holders)
    assert "no place elsewhere" in gap.why


def test_a_plain_service_has_none() -> None:
    w = world.World()
    w.node("n1")
    w.node("n2")
    w.service("web", 5)
    w.go()
    assert told(w, "n1") == []


def test_the_time_to_start_is_the_last_ones_without_its_waiting() -> None:
    w = world.World()
    w.node("n1")
    w.node("n2")
    w.service("web", 1, at_most_once)
    w.decide()
    w.clock.time += 20.0
    w.go()
    first = told(w, w.running("web")[0].node_id)
    assert first[0].expected == "up to 7 s to stop, then about 20 s to start, as last time"
    w.drain(w.running("web")[0].node_id)
    w.go(for_s=100.0)
    again = told(w, w.running("web")[0].node_id)
    assert "start" not in again[0].expected or "about 1 s" in again[0].expected
