"""A machine for the Api without a daemon: a local store, logs from a list, and a stand-in for the leader's loop."""

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from typing_extensions import override

from manager import loops
from manager.ca import authority
from manager.http import api, backend, forward, messages
from manager.store import commit, ops, store
from skep import errors, ids, pb, stamps
from skep.security import keys, tokens
from tests.manager.http import fake_channels

START = 1_790_000_000.0
GB = 1000**3


class StillClock:
    """Wall-clock time that only tests move."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> float:
        return self.time


class FakeLogs:
    """Delivers what tests put in."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, pb.LogEntry]] = []
        self.queries: list[backend.LogQuery] = []
        self.closed = 0
        self.problem: errors.SkepError | None = None

    def add(self, task_id: str, data: bytes, *, stream: pb.LogStream.ValueType = pb.LOG_STREAM_STDOUT) -> None:
        entry = pb.LogEntry(timestamp=stamps.stamp(START), stream=stream, data=data)
        self.lines.append((task_id, entry))

    async def read(self, query: backend.LogQuery) -> AsyncGenerator[tuple[str, pb.LogEntry], None]:
        self.queries.append(query)
        try:
            for task_id, entry in self.lines:
                if task_id in query.task_ids:
                    yield task_id, entry
            if self.problem is not None:
                raise self.problem
        finally:
            self.closed += 1


class Committer(commit.LocalCommitter):
    """A local one whose lead can be taken away."""

    def __init__(self, target: store.Store, time: StillClock) -> None:
        super().__init__(target, time)
        self.problems: list[errors.SkepError] = []  # raised by the next commits, one each
        self.barriers: list[errors.SkepError] = []  # and by the next barriers
        self.commits = 0

    @override
    async def commit(self, operations: Sequence[pb.Op]) -> int:
        if self.problems:
            raise self.problems.pop(0)
        self.commits += 1
        return await super().commit(operations)

    @override
    async def barrier(self) -> None:
        if self.barriers:
            raise self.barriers.pop(0)


class FakeManager:
    """The manager part of the machine."""

    def __init__(self, node_id: str, state: store.Store, time: StillClock) -> None:
        self.node_id = node_id
        self.store = state
        self.committer = Committer(state, time)
        self.logs = FakeLogs()
        self.channels = fake_channels.FakeChannels()
        self.join_port = 2378
        self.leader_id = node_id
        self.behind_s: float | None = 0.0
        self.standing: dict[str, pb.ManagerStatus] = {}
        self.leader: api.Api | None = None  # where `forward` goes
        self.forwarded: list[pb.HttpRequest] = []

    def reachability(self) -> dict[str, pb.ManagerStatus]:
        return self.standing

    async def forward(self, request: pb.HttpRequest) -> AsyncIterator[pb.HttpResponsePart]:
        self.forwarded.append(request)
        if self.leader is None:
            raise commit.NotProposed("cannot reach the leader")
        asked = messages.Request(
            method=request.method,
            target=request.target,
            headers=dict(request.headers),
            body=request.body,
            forwarded=True,
        )
        async for part in forward._parts(await self.leader.handle(asked)):
            yield part

    def tunnel(self) -> backend.Tunnel:
        if self.leader is None:
            raise commit.NotProposed("cannot reach the leader")
        return fake_channels.MemoryTunnel(self.leader)


class FakeMachine:
    """A machine in no cluster, until `found` makes one."""

    def __init__(self, *, seed: int = 1) -> None:
        self.clock = StillClock()
        self.rng = ids.seeded_rng(seed)
        self.manager: FakeManager | None = None
        self.state = "inactive"
        self.inits: list[backend.InitRequest] = []
        self.joins: list[backend.JoinRequest] = []
        self.leaves: list[bool] = []

    def info(self) -> backend.MachineInfo:
        manager = self.manager
        description = pb.NodeDescription(
            hostname="n0", platform=pb.Platform(architecture="x86_64", os="linux"),
            resources=pb.Resources(nano_cpus=4_000_000_000, memory_bytes=8 * GB),
            engine=pb.EngineDescription(engine_version="1.0", runtime="memory"),
        )  # fmt: skip
        return backend.MachineInfo(
            state=self.state,
            error="",
            hostname="n0",
            node_id=manager.node_id if manager else "",
            node_addr="127.0.0.1" if manager else "",
            cluster_id="c" if manager else "",
            managers=[pb.RaftMember(node_id=manager.node_id, addr="127.0.0.1:2377")] if manager else [],
            description=description,
        )

    async def init(self, request: backend.InitRequest) -> str:
        self.inits.append(request)
        return await self.found()

    async def join(self, request: backend.JoinRequest) -> None:
        self.joins.append(request)

    async def leave(self, *, force: bool) -> None:
        self.leaves.append(force)

    async def found(self) -> str:
        """Makes a cluster of one manager and two workers, all ready."""
        state = store.Store(checking=True)
        node_id = ids.new_id(self.rng)
        manager = self.manager = FakeManager(node_id, state, self.clock)
        self.state = "active"
        root = keys.new_root(now=START)
        root_ca = pb.RootCA(
            cert_pem=root.cert_pem, key_pem=root.key_pem,
            worker_secret=tokens.new_secret(self.rng), manager_secret=tokens.new_secret(self.rng),
        )  # fmt: skip
        cluster = pb.Cluster(id=ids.new_id(self.rng), spec=authority.default_spec(), root_ca=root_ca)
        nodes = [ready_node(node_id, "n0", role=pb.NODE_ROLE_MANAGER)]
        nodes += [ready_node(ids.new_id(self.rng), name) for name in ("n1", "n2")]
        await manager.committer.commit([ops.create(cluster), *(ops.create(node) for node in nodes)])
        manager.standing[node_id] = pb.ManagerStatus(
            leader=True, reachability=pb.REACHABILITY_REACHABLE, addr="127.0.0.1:2377"
        )
        return node_id

    async def settle(self) -> None:
        """Lets the deciders and obedient agents work until nothing changes any more; time passes as it must."""
        assert self.manager is not None
        state, committer = self.manager.store, self.manager.committer
        deciders = loops.default_deciders()
        for _ in range(1000):
            moved = False
            wake_at: float | None = None
            for decider in deciders:
                plan = decider.decide(state.view(), self.clock.now(), self.rng, None)
                if plan.ops:
                    await committer.commit(plan.ops)
                    moved = True
                if plan.wake_at is not None:
                    wake_at = plan.wake_at if wake_at is None else min(wake_at, plan.wake_at)
            steps = [ops.update(task) for task in map(self._obey, state.view().tasks) if task is not None]
            if steps:
                await committer.commit(steps)
            elif not moved and wake_at is None:
                return
            elif not moved and wake_at is not None:
                self.clock.time = max(self.clock.time, wake_at) + 0.001
        raise AssertionError("the cluster does not settle")

    def _obey(self, task: pb.Task) -> pb.Task | None:
        """What an obedient agent would report next."""
        now, wish = task.status.state, task.desired_state
        if not task.node_id or now >= pb.TASK_STATE_COMPLETE:
            return None
        if wish > pb.TASK_STATE_RUNNING:
            return self._moved(task, pb.TASK_STATE_SHUTDOWN, "shutdown")
        if now < pb.TASK_STATE_READY:
            return self._moved(task, pb.TASK_STATE_READY, "prepared")
        if wish == pb.TASK_STATE_RUNNING and now < pb.TASK_STATE_RUNNING:
            return self._moved(task, pb.TASK_STATE_RUNNING, "started")
        return None

    def _moved(self, task: pb.Task, state: pb.TaskState.ValueType, message: str) -> pb.Task:
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.status.state = state
        changed.status.message = message
        changed.status.timestamp.CopyFrom(stamps.stamp(self.clock.now()))
        changed.status.applied_at.CopyFrom(stamps.stamp(self.clock.now()))
        changed.status.container.container_id = "c" + task.id
        if state == pb.TASK_STATE_RUNNING:
            changed.running_at.CopyFrom(stamps.stamp(self.clock.now()))
        return changed


def ready_node(node_id: str, name: str, *, role: pb.NodeRole.ValueType = pb.NODE_ROLE_WORKER) -> pb.Node:
    """A node that takes tasks."""
    node = pb.Node(id=node_id, spec=pb.NodeSpec(role=role), role=role)
    node.description.hostname = name
    node.description.platform.CopyFrom(pb.Platform(architecture="x86_64", os="linux"))
    node.description.resources.CopyFrom(pb.Resources(nano_cpus=4_000_000_000, memory_bytes=8 * GB))
    node.description.engine.engine_version = "1.0"
    node.status.CopyFrom(pb.NodeStatus(state=pb.NODE_STATE_READY, addr="127.0.0.1"))
    return node


@dataclasses.dataclass
class Answer:
    """A response whose body has been read."""

    status: int
    headers: dict[str, str]
    body: bytes


async def read(response: messages.Response) -> Answer:
    """The response with its stream drained."""
    body = response.body
    if response.stream is not None:
        pieces = [piece async for piece in response.stream]
        body = b"".join(pieces)
    return Answer(response.status, response.headers, body)
