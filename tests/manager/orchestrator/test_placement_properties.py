"""Where tasks go, on random clusters: as evenly as the filters allow, and never where they must not."""

import random

import hypothesis
from hypothesis import strategies as st

from manager.store import views
from skep import pb
from tests.manager.orchestrator import world

SETTINGS = hypothesis.settings(deadline=None, max_examples=60, derandomize=True)


def random_cluster(rng: random.Random) -> world.World:
    """Nodes of all sizes and zones with something on them already."""
    w = world.World()
    for number in range(rng.randrange(1, 7)):
        w.node(f"n{number}", memory=rng.randrange(1, 8) * world.GB, labels={"zone": rng.choice("abc")})
    for number in range(rng.randrange(3)):
        taken = rng.randrange(2) * world.GB
        w.service(
            f"old{number}",
            rng.randrange(6),
            lambda spec, taken=taken: setattr(spec.task.resources.reservations, "memory_bytes", taken),  # type: ignore[misc]
        )
    w.go()
    return w


def free_memory(view: views.View, node: pb.Node) -> int:
    used = sum(
        view.revision(task.revision_id).spec.task.resources.reservations.memory_bytes
        for task in view.tasks.where("node", node.id)
        if pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING
    )
    return node.description.resources.memory_bytes - used


@SETTINGS
@hypothesis.given(st.integers(0, 2**32))
def test_tasks_spread_as_evenly_as_the_filters_allow(seed: int) -> None:
    """A node has two tasks more than another only where that one can take none: full, at its limit, of another zone."""
    rng = random.Random(seed)
    w = random_cluster(rng)
    memory = rng.choice([0, 1]) * world.GB
    limit = rng.choice([0, 0, 1, 2])
    zone = rng.choice(["", "", "a"])

    def change(spec: pb.ServiceSpec) -> None:
        spec.task.resources.reservations.memory_bytes = memory
        spec.task.placement.max_replicas = limit
        if zone:
            spec.task.placement.constraints.append(f"node.labels.zone=={zone}")

    w.service("web", rng.randrange(1, 6), change)
    w.go()
    if rng.random() < 0.5:
        w.scale("web", rng.randrange(1, 16))
        w.go()
    counts = w.spread("web")
    able = [node for node in w.view.nodes if not zone or node.spec.labels["zone"] == zone]
    room = [
        node for node in able if free_memory(w.view, node) >= memory and (not limit or counts.get(node.id, 0) < limit)
    ]
    assert counts.get("", 0) == 0 or not room, "nothing waits while there is room"
    for node in able:
        assert not limit or counts.get(node.id, 0) <= limit
        assert free_memory(w.view, node) >= 0
        for other in room:
            assert counts.get(node.id, 0) - counts.get(other.id, 0) <= 1
    assert not any(node.id in counts for node in w.view.nodes if node not in able)
