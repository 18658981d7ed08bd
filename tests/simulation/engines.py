"""Agents with engines that fail, hang and lie, under a real dispatcher and the leader's loop, in virtual time.

Engines refuse calls, hang, do what they were asked and deny it, claim to have done what they did not, show a container
as it was a while ago, and lose events; containers die, machines lose power, agents are killed, links are cut, the lead
changes; meanwhile services are created, changed and scaled. Every moment: no task is ever started twice. In the end,
with everything mended: every slot of every service runs exactly once, and the machines hold nothing else.
"""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import random
from collections.abc import AsyncIterator, Callable

from agent.runtime import base, memory
from manager import loops
from manager.control import services as intents
from skep import errors, ids, pb
from tests import virtual_time
from tests.agent import joined
from tests.simulation import alarm, shadow

NODES, SERVICES = 4, 3
FAULTS_S = 180.0
STEP_S = 6.0  # at most, between two deeds
SETTLED_WITHIN_S, QUIET_S = 3000.0, 120.0  # how soon all must be well, and for how long it must stay so
HANG_S = 45.0  # more than an observation may take
REFUSED, DENIED, FATAL, HUNG, STALE = 0.08, 0.05, 0.01, 0.04, 0.05


class Engine(memory.MemoryRuntime):
    """A memory runtime that is not to be trusted while it is `mad`."""

    def __init__(self, node_id: str, rng: random.Random) -> None:
        super().__init__(node_id=node_id, clock=virtual_time.LoopClock(), rng=ids.seeded_rng(rng.randrange(2**32)))
        self.chance = rng
        self.mad = False
        self.starts: collections.Counter[str] = collections.Counter()
        self._shown: dict[str, base.Observation] = {}

    async def _moody(self) -> None:
        if not self.mad:
            return
        if self.chance.random() < HUNG:
            await asyncio.sleep(self.chance.uniform(0, HANG_S))
        if self.chance.random() < REFUSED:
            raise base.TaskTemporary("the engine has no time")

    def _deny(self) -> None:
        """What was asked is done by now, all the same."""
        if self.mad and self.chance.random() < DENIED:
            raise errors.Unavailable("the engine broke off")

    async def prepare(self, workload: base.Workload, progress: Callable[[str], None]) -> None:  # type: ignore[explicit-override]
        await self._moody()
        if self.mad and self.chance.random() < FATAL:
            raise base.TaskFatal("no such image")
        await super().prepare(workload, progress)
        self._deny()

    async def start(self, workload: base.Workload) -> None:  # type: ignore[explicit-override]
        await self._moody()
        if self.mad and self.chance.random() < FATAL:
            raise base.TaskFatal("exec format error")
        await super().start(workload)
        self._deny()

    async def stop(self, workload: base.Workload) -> None:  # type: ignore[explicit-override]
        await self._moody()
        if self.mad and self.chance.random() < DENIED:
            return  # it says so, and has stopped nothing
        await super().stop(workload)
        self._deny()

    async def remove(self, task_id: str) -> None:  # type: ignore[explicit-override]
        await self._moody()
        if self.mad and self.chance.random() < DENIED:
            return
        await super().remove(task_id)
        self._deny()

    async def observe(self, task_id: str) -> base.Observation:  # type: ignore[explicit-override]
        await self._moody()
        if self.mad and self.chance.random() < STALE:
            return self._shown.get(task_id, base.ABSENT)
        self._shown[task_id] = await super().observe(task_id)
        return self._shown[task_id]

    async def list(self) -> list[str]:  # type: ignore[explicit-override]
        await self._moody()
        return await super().list()

    async def _heard(self) -> AsyncIterator[str]:
        async for task_id in super().events():
            if not self.mad or self.chance.random() > STALE:
                yield task_id

    def events(self) -> AsyncIterator[str]:  # type: ignore[explicit-override]
        return self._heard()

    def _run(self, task_id: str, entry: memory._Entry) -> None:  # type: ignore[explicit-override]
        self.starts[task_id] += 1
        if self.starts[task_id] > 1:
            raise shadow.Violation(f"task {task_id} was started twice")
        super()._run(task_id, entry)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run amounted to."""

    seed: int
    trace: str  # digest over all tasks that ever were and all that was done to them
    virtual_s: float
    tasks: int  # that ever were
    deeds: collections.Counter[str]
    settled_s: float

    def summary(self) -> str:
        """See kinds.Report."""
        return f"{self.tasks} tasks, {sum(self.deeds.values())} deeds, settled after {self.settled_s:.0f} s"


class World:
    """One leader and its agents."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"{seed} engines")
        self.network = joined.Network()
        self.cluster = joined.Cluster(self.network)
        self.agents: list[joined.Agent] = []
        self.deeds: collections.Counter[str] = collections.Counter()
        self.everything: dict[str, None] = {}
        self._leading: asyncio.Task[None] | None = None
        self._numbers = 0
        self._lead_lock = asyncio.Lock()
        self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)  # one mishap at a time and agent

    async def start(self) -> None:
        names = [f"n{number}" for number in range(NODES)]
        await self.cluster.create(*(joined.node(name) for name in names))
        for name in names:
            agent = joined.Agent(self.network, name)
            agent.runtime = Engine(name, random.Random(self.rng.randrange(2**32)))
            self.agents.append(agent)
        await self.lead()
        for agent in self.agents:
            await agent.start()
        await virtual_time.until(lambda: all(agent.session.manager for agent in self.agents))

    async def lead(self) -> None:
        await self.cluster.dispatcher.start()
        loop = loops.LeaderLoop(
            store=self.cluster.store, committer=self.cluster.committer, deciders=loops.default_deciders(),
            clock=self.cluster.clock, rng=ids.seeded_rng(self.rng.randrange(2**32)),
        )  # fmt: skip
        self._leading = asyncio.create_task(loop.run())

    async def lose_lead(self) -> None:
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.gather(self._leading, return_exceptions=True)
        await self.cluster.dispatcher.stop()

    async def stop(self) -> None:
        for agent in self.agents:
            await agent.stop()
        await self.lose_lead()
        await self.network.close()

    def engine(self, agent: joined.Agent) -> Engine:
        assert isinstance(agent.runtime, Engine)
        return agent.runtime

    # ---------------------------------------------------------------- what people do

    async def wish(self) -> None:
        """A service is created, changed, scaled or removed."""
        view = self.cluster.store.view()
        existing = list(view.services)
        self._numbers += 1
        revision_id, now = f"r{self._numbers}", self.cluster.clock.now()
        if len(existing) < SERVICES:
            name = f"s{self._numbers}"
            made = intents.create(
                view, self.spec(name), service_id=name, revision_id=revision_id, registry_auth="", now=now
            )
        else:
            service = self.rng.choice(existing)
            request = intents.Update(spec=self.spec(service.name), version=service.version.index)
            made = intents.update(view, service.id, request, revision_id=revision_id, now=now)
        with contextlib.suppress(errors.Conflict):
            if made:
                await self.cluster.committer.commit(made)

    def spec(self, name: str) -> pb.ServiceSpec:
        made = pb.ServiceSpec(name=name)
        made.task.container.image = f"demo:{self.rng.randrange(3)}"
        made.mode.replicated.replicas = self.rng.randrange(1, 6)
        made.update.parallelism = self.rng.randrange(3)
        made.update.order = self.rng.choice([pb.UPDATE_ORDER_STOP_FIRST, pb.UPDATE_ORDER_START_FIRST])
        made.update.failure_action = pb.FAILURE_ACTION_CONTINUE
        made.task.restart.delay = self.rng.choice([0, 10**9, 5 * 10**9])
        return made

    # ---------------------------------------------------------------- what happens to them

    async def crash_agent(self) -> None:
        agent = self.rng.choice(self.agents)
        async with self._locks[agent.node_id]:
            await agent.stop()
            await asyncio.sleep(self.rng.uniform(0, 30))
            await agent.start()

    async def cut(self) -> None:
        agent = self.rng.choice(self.agents)
        async with self._locks[agent.node_id]:
            self.network.cut[agent.node_id] = None
            await self.network.open[agent.node_id].close()
            await asyncio.sleep(self.rng.uniform(0, 40))
            del self.network.cut[agent.node_id]

    async def kill_container(self) -> None:
        engine = self.engine(self.rng.choice(self.agents))
        for task_id in engine.running()[:1]:
            engine.crash(task_id)

    async def reboot(self) -> None:
        self.engine(self.rng.choice(self.agents)).reboot()

    async def hang(self) -> None:
        engine = self.engine(self.rng.choice(self.agents))
        engine.hang()
        await asyncio.sleep(self.rng.uniform(0, 90))
        engine.resume()

    async def change_lead(self) -> None:
        async with self._lead_lock:
            await self.lose_lead()
            await asyncio.sleep(self.rng.uniform(0, 10))
            await self.lead()

    async def trouble(self, seconds: float) -> None:
        deeds = [self.wish, self.wish, self.crash_agent, self.cut, self.kill_container, self.reboot, self.hang,
                 self.change_lead]  # fmt: skip
        for agent in self.agents:
            self.engine(agent).mad = True
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(SERVICES):
                await self.wish()
            while loop.time() < end:
                await asyncio.sleep(self.rng.uniform(0, STEP_S))
                deed = self.rng.choice(deeds)
                self.deeds[deed.__name__] += 1
                group.create_task(deed())
                self.everything.update(dict.fromkeys(task.id for task in self.cluster.store.view().tasks))

    async def mend(self) -> None:
        for agent in self.agents:
            self.engine(agent).mad = False
        await self.change_lead()  # all agents come anew, and with them what they hold is compared

    # ---------------------------------------------------------------- what must be in the end

    def unsettled(self) -> str:
        """What is not yet as it must be."""
        view = self.cluster.store.view()
        wanted = {service.name: view.spec(service).mode.replicated.replicas for service in view.services}
        running = [task for task in view.tasks if task.desired_state == pb.TASK_STATE_RUNNING]
        slots = {(task.service_name, task.slot) for task in running if task.status.state == pb.TASK_STATE_RUNNING}
        there = collections.Counter(name for name, _ in slots)
        if len(running) != sum(wanted.values()) or there != wanted:
            return f"wanted {wanted}, running {dict(there)} of {len(running)} tasks"
        places = {task.id: task.node_id for task in running}
        found = {task_id: agent.node_id for agent in self.agents for task_id in self.engine(agent).running()}
        count = sum(len(self.engine(agent).running()) for agent in self.agents)
        if found != places or count != len(places):
            return f"containers run as {found} where tasks are {places}"
        held = {task_id for agent in self.agents for task_id in self.engine(agent)._entries}
        unknown = held - {task.id for task in view.tasks}
        return f"unknown containers are left: {sorted(unknown)}" if unknown else ""


async def _simulate(seed: int) -> Report:
    world = World(seed)
    await world.start()
    try:
        await world.trouble(FAULTS_S)
        await world.mend()
        loop = asyncio.get_running_loop()
        began = since = loop.time()
        while loop.time() < since + QUIET_S:
            if world.unsettled():
                since = loop.time()
            if since > began + SETTLED_WITHIN_S:
                raise shadow.Violation(f"not settled: {world.unsettled()}")
            await asyncio.sleep(1.0)
        everything = repr((list(world.everything), sorted(world.deeds.items()), since)).encode()
        return Report(
            seed=seed, trace=hashlib.sha256(everything).hexdigest()[:16], virtual_s=loop.time(),
            tasks=len(world.everything), deeds=world.deeds, settled_s=since - began,
        )  # fmt: skip
    finally:
        await world.stop()


def simulate(seed: int) -> Report:
    """Runs one seed. Raises Violation when an invariant does not hold."""
    loop = virtual_time.VirtualLoop()
    with alarm.armed(), alarm.listening(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(_simulate(seed))
