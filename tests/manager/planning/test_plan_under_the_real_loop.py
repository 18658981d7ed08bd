"""The plan against the leader's own loop in virtual time, with agents that answer one by one, late and out of order."""

import asyncio
import contextlib
import random

import hypothesis
from hypothesis import strategies as st

from manager import loops
from manager.control import defaults
from manager.control import services as intents
from manager.planning import forecast, whatif
from manager.store import commit, ops, store
from skep import errors, ids, pb, stamps
from tests import virtual_time
from tests.manager.orchestrator import world

NODES = 4
QUIET_S = 700.0  # longer than any deadline of ours
LATENCY_S = (0.05, 2.0)


class Cluster:
    """A store, the loop over it, and agents."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.clock = virtual_time.LoopClock()
        self.store = store.Store(checking=True)
        self.committer = commit.LocalCommitter(self.store, self.clock)
        self._loop = loops.LeaderLoop(
            store=self.store, committer=self.committer, deciders=loops.default_deciders(), clock=self.clock,
            rng=ids.seeded_rng(rng.randrange(2**32)),
        )  # fmt: skip
        self._agents: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Leads, and has every task looked after by an agent of its own."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop.run())
            changed = asyncio.Event()
            watch = self.store.watch(("task",), changed.set)
            with contextlib.closing(watch):
                while True:
                    await changed.wait()
                    changed.clear()
                    for change in watch.take():
                        known = self._agents.get(change.id)
                        if known is None or known.done():
                            self._agents[change.id] = group.create_task(self._look_after(change.id))

    async def _look_after(self, task_id: str) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(*LATENCY_S))
            task = self.store.view().tasks.get(task_id)
            following = None if task is None else self._next(task)
            if task is None or following is None:
                return  # the next change wakes us
            reported = pb.Task()
            reported.CopyFrom(task)
            reported.status.state = pb.TaskState.ValueType(following)
            reported.status.timestamp.CopyFrom(stamps.stamp(self.clock.now()))
            reported.status.applied_at.CopyFrom(stamps.stamp(self.clock.now()))
            with contextlib.suppress(errors.Conflict):
                await self.committer.commit([ops.update(reported)])

    def _next(self, task: pb.Task) -> int | None:
        node = self.store.view().nodes.get(task.node_id)
        state = task.status.state
        if node is None or node.status.state != pb.NODE_STATE_READY:
            return None
        if not pb.TASK_STATE_ASSIGNED <= state <= pb.TASK_STATE_RUNNING:
            return None
        if task.desired_state > pb.TASK_STATE_RUNNING:
            return pb.TASK_STATE_SHUTDOWN
        if state == pb.TASK_STATE_READY and task.desired_state < pb.TASK_STATE_RUNNING:
            return None
        return world.FORWARD.get(state)

    async def rest(self) -> None:
        """Returns when nothing has changed for long."""
        index = -1
        while index != self.store.index:
            index = self.store.index
            await asyncio.sleep(QUIET_S)

    def places(self) -> dict[tuple[str, int], str]:
        """The node of every running task that is wished."""
        return {
            (task.service_name, task.slot): task.node_id
            for task in self.store.view().tasks
            if task.desired_state <= pb.TASK_STATE_RUNNING and task.status.state == pb.TASK_STATE_RUNNING
        }


def node(number: int, rng: random.Random) -> pb.Node:
    """A node with room for everything."""
    made = pb.Node(id=f"n{number}")
    made.status.state = pb.NODE_STATE_READY
    made.status.addr = "127.0.0.1"
    made.description.hostname = f"n{number}"
    made.description.resources.nano_cpus = 64 * stamps.NANOS
    made.description.resources.memory_bytes = 512 * world.GB
    made.spec.labels["zone"] = rng.choice(["east", "west"])
    return made


def spec(name: str, rng: random.Random) -> pb.ServiceSpec:
    made = pb.ServiceSpec(name=name)
    made.task.container.image = f"demo:{rng.randrange(3)}"
    made.task.resources.reservations.memory_bytes = rng.choice([0, 1, 2]) * world.GB
    made.mode.replicated.replicas = rng.randrange(1, 6)
    made.update.parallelism = 1
    made.update.order = rng.choice([pb.UPDATE_ORDER_STOP_FIRST, pb.UPDATE_ORDER_START_FIRST])
    if rng.random() < 0.3:
        made.task.placement.constraints.append(f"node.labels.zone=={rng.choice(['east', 'west'])}")
    return made


def change(cluster: Cluster) -> list[pb.Op]:
    rng, view, now = cluster.rng, cluster.store.view(), cluster.clock.now()
    match rng.randrange(4):
        case 0:
            return intents.create(
                view, spec("new", rng), service_id="new", revision_id="new@1", registry_auth="", now=now
            )
        case 1:
            lost = view.nodes.get(f"n{rng.randrange(NODES)}")
            assert lost is not None
            return whatif.lose([lost])
        case _:
            service = rng.choice(list(view.services))
            request = intents.Update(spec=spec(service.name, rng), version=service.version.index)
            return intents.update(view, service.id, request, revision_id="next", now=now)


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(st.integers(0, 2**32))
def test_the_loop_does_what_was_planned(seed: int) -> None:
    async def main() -> None:
        cluster = Cluster(random.Random(seed))
        running = asyncio.create_task(cluster.run())
        await cluster.committer.commit([ops.create(node(number, cluster.rng)) for number in range(NODES)])
        for name in ("a", "b"):
            wanted = defaults.normalised(spec(name, cluster.rng))
            view = cluster.store.view()
            await cluster.committer.commit(
                intents.create(
                    view, wanted, service_id=name, revision_id=f"{name}@1", registry_auth="", now=cluster.clock.now()
                )
            )
            await cluster.rest()
        asked = change(cluster)
        plan = forecast.simulate(
            cluster.store.copy(), asked, now=cluster.clock.now(), rng=ids.seeded_rng(1),
            deciders=loops.default_deciders(),
        )  # fmt: skip
        assert plan.at_rest
        before = cluster.places()
        if asked:
            await cluster.committer.commit(asked)
        await cluster.rest()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        expected = dict(before)
        for service in plan.services:
            for outcome in service.outcomes:
                key = service.name, outcome.slot
                expected.pop(key, None)
                if outcome.target:
                    expected[key] = outcome.target
        assert cluster.places() == expected

    virtual_time.run(main)
