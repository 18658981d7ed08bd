"""A dispatcher and agents joined in memory, for tests: real sessions, the memory runtime, one local store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from agent import managers, session, worker
from agent.runtime import access, memory
from agent.tasks import record
from manager.dispatcher import dispatcher
from manager.store import commit, ops, store
from skep import errors, ids, link, pb
from skep.security import identity
from tests import virtual_time

RUN = pb.TASK_STATE_RUNNING
PERIOD_S = 5.0


def node(node_id: str, *, state: pb.NodeState.ValueType = pb.NODE_STATE_UNKNOWN) -> pb.Node:
    made = pb.Node(id=node_id)
    made.status.state = state
    return made


def revision(revision_id: str = "r1", *, image: str = "web:1") -> pb.Revision:
    spec = pb.ServiceSpec(name="web")
    spec.task.container.image = image
    return pb.Revision(id=revision_id, service_id="s1", number=1, spec=spec)


def task(
    task_id: str,
    node_id: str,
    *,
    desired: pb.TaskState.ValueType = RUN,
    state: pb.TaskState.ValueType = pb.TASK_STATE_ASSIGNED,
    revision_id: str = "r1",
) -> pb.Task:
    made = pb.Task(
        id=task_id, service_id="s1", service_name="web", slot=1, node_id=node_id, revision_id=revision_id,
        desired_state=desired,
    )  # fmt: skip
    made.status.state = state
    return made


class Network:
    """Where agents find managers; managers can be taken away and links be cut or frozen."""

    def __init__(self) -> None:
        self.managers: dict[str, dispatcher.Dispatcher] = {}
        self.dialled: list[str] = []
        self.open: dict[str, link.ManagerLink] = {}  # by node ID
        self.cut: dict[str, None] = {}  # nodes that reach nobody
        self._serving: list[asyncio.Task[None]] = []

    async def connect(self, node_id: str, addr: str) -> link.AgentLink:
        self.dialled.append(addr)
        served = self.managers.get(addr)
        if served is None or node_id in self.cut:
            raise errors.Unavailable(f"cannot reach {addr}: connection refused")
        agents, managers_ = link.memory_pair()
        self.open[node_id] = managers_
        peer = identity.Peer(node_id=node_id, cluster_id="c", role=pb.NODE_ROLE_WORKER, address="10.0.0.1")
        self._serving.append(asyncio.create_task(served.serve(peer, managers_)))
        return agents

    async def close(self) -> None:
        await asyncio.gather(*self._serving)


class Cluster:
    """One manager's store and dispatcher."""

    def __init__(self, network: Network, *, addr: str = "m1:4000", addrs: Sequence[str] = ("m1:4000",)) -> None:
        self.clock = virtual_time.LoopClock()
        self.store = store.Store(checking=True)
        self.committer = CountingCommitter(commit.LocalCommitter(self.store, self.clock))
        self.addr = addr
        self.leader = addr
        self.addrs = list(addrs)
        self.dispatcher = dispatcher.Dispatcher(
            store=self.store,
            committer=self.committer,
            clock=self.clock,
            rng=ids.seeded_rng(1),
            leader_addr=lambda: self.leader,
            managers=lambda: self.addrs,
        )
        network.managers[addr] = self.dispatcher

    async def create(self, *rows: ops.AnyRow) -> None:
        await self.committer.commit([ops.create(row) for row in rows])

    def task(self, task_id: str) -> pb.Task:
        found = self.store.view().tasks.get(task_id)
        assert found is not None
        return found

    def state(self, task_id: str) -> pb.TaskState.ValueType:
        return self.task(task_id).status.state

    def node(self, node_id: str) -> pb.Node:
        found = self.store.view().nodes.get(node_id)
        assert found is not None
        return found

    async def wish(self, task_id: str, desired: pb.TaskState.ValueType) -> None:
        changed = pb.Task()
        changed.CopyFrom(self.task(task_id))
        changed.desired_state = desired
        await self.committer.commit([ops.update(changed)])


class CountingCommitter:
    """A committer that counts, and refuses when it is told to."""

    def __init__(self, inner: commit.LocalCommitter) -> None:
        self._inner = inner
        self.commits = 0
        self.is_leader = True
        self.refusals: list[errors.SkepError] = []
        self.before: list[pb.Op] = []  # committed by "somebody else" just before the next commit
        self.before_barrier: list[pb.Op] = []  # and before the next barrier is through
        self.takes_s = 0.0  # from a proposal until it is applied
        self.waiting = 0  # commits that are not applied yet
        self._order = asyncio.Lock()

    async def commit(self, operations: Sequence[pb.Op]) -> int:
        if self.refusals:
            raise self.refusals.pop(0)
        if self.before:
            raced, self.before = self.before, []
            await self._inner.commit(raced)
        self.commits += 1
        self.waiting += 1
        try:
            async with self._order:
                await asyncio.sleep(self.takes_s)
                return await self._inner.commit(operations)
        finally:
            self.waiting -= 1

    async def barrier(self) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        await asyncio.sleep(self.takes_s / 4)  # a read overtakes what is being written
        if self.before_barrier:
            raced, self.before_barrier = self.before_barrier, []
            await self._inner.commit(raced)


class Agent:
    """One node's agent on a memory runtime that outlives it."""

    def __init__(self, network: Network, node_id: str, *, seeds: Sequence[str] = ("m1:4000",)) -> None:
        self.node_id = node_id
        self._network = network
        self._clock = virtual_time.LoopClock()
        self.uptime = virtual_time.LoopUptime()
        self._rng = ids.seeded_rng(sum(node_id.encode()))
        self.runtime = memory.MemoryRuntime(node_id=node_id, clock=self._clock, rng=self._rng)
        self.record = record.Record(record.IN_MEMORY)
        self.book = managers.ManagerBook(None, seeds=seeds)
        self.nodes: list[pb.Node] = []
        self.access: access.Access = access.NoAccess()  # tests put theirs here before `start`
        self._running: asyncio.Task[None] | None = None
        self.worker = self._worker()
        self.session = self._session()

    def _worker(self) -> worker.Worker:
        return worker.Worker(
            runtime=self.runtime, record=self.record, clock=self._clock, uptime=self.uptime, rng=self._rng
        )

    def _session(self) -> session.AgentSession:
        return session.AgentSession(
            connect=lambda addr: self._network.connect(self.node_id, addr),
            managers=self.book,
            worker=self.worker,
            describe=self.describe,
            rng=self._rng,
            access=self.access,
            on_node=self.nodes.append,
        )

    async def describe(self) -> pb.NodeDescription:
        description = await self.runtime.describe()
        description.hostname = self.node_id
        return description

    async def start(self) -> None:
        """Starts, or starts again as after a crash: what was in memory is gone, runtime and record are not."""
        await self.runtime.open()
        self.worker = self._worker()
        self.session = self._session()
        await self.worker.open()
        self._running = asyncio.create_task(self.session.run())

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        await self.worker.close()
        await self.runtime.close()


@contextlib.asynccontextmanager
async def joined(*node_ids: str) -> AsyncIterator[tuple[Network, Cluster, list[Agent]]]:
    """A leading manager with these nodes, and their agents registered."""
    network = Network()
    cluster = Cluster(network)
    await cluster.create(*(node(node_id) for node_id in node_ids), revision())
    await cluster.dispatcher.start()
    agents = [Agent(network, node_id) for node_id in node_ids]
    for each in agents:
        await each.start()
    await virtual_time.until(lambda: all(each.session.manager for each in agents))
    try:
        yield network, cluster, agents
    finally:
        for each in agents:
            await each.stop()
        await cluster.dispatcher.stop()
        await network.close()
