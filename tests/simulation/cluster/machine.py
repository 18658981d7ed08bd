"""One machine: its engine, its disk and its files outlive the daemon, which is the real manager and agent, composed.

The composition is that of skep.daemon, with the simulated network, disk and clock underneath; what happens while a
manager leads is the daemon's own code.
"""

import asyncio
import dataclasses
import pathlib
import random
from collections.abc import AsyncIterator, Callable

import prometheus_client
from typing_extensions import override

from agent import managers as manager_book
from agent import session, worker
from agent.tasks import record
from manager import loops, plan
from manager.dispatcher import channels, dispatcher, logs
from manager.http import api, backend, forward, messages
from manager.raft import config, memory_transport, node
from manager.store import commit, ops
from skep import errors, ids, link, pb
from skep.daemon import leading, manager_part, settings
from skep.security import identity as identities
from tests import virtual_time
from tests.simulation import managers, memory_disk, process, shadow
from tests.simulation.cluster import engine as engines
from tests.simulation.cluster import ledger, network, running, timing

CLUSTER_ID = "cluster"
FOUNDED = "founded"  # a node's first version
NEVER = pathlib.Path("/nonexistent")  # no file system is touched
PATIENCE_S = 4.0  # of the API with the election of a leader


class WallClock:
    """What a machine takes for the time: right but for an offset."""

    def __init__(self) -> None:
        self.offset_s = 0.0
        self._true = virtual_time.LoopClock()

    def now(self) -> float:
        return self._true.now() + self.offset_s


@dataclasses.dataclass
class Site:
    """What all machines have in common."""

    seed: int
    times: config.RaftConfig
    network: network.Network
    ledger: ledger.Ledger
    checker: shadow.Checker
    running: running.Running
    managers: dict[str, str]  # addresses by name; the first of them founds the cluster
    calm: bool  # nothing goes wrong but what users ask for
    drift: float  # by how much a clock may be too fast or too slow
    checking: bool  # stores look for objects that were changed in place
    machines: "dict[str, Machine]" = dataclasses.field(default_factory=dict)

    def version_of(self, revision_id: str) -> str:
        """The label that users tell a service's specifications apart by."""
        return str(self.ledger.get("revision", revision_id).spec.labels["v"])

    def join(self) -> "Machine":
        """One more worker, not started yet."""
        joining = Machine(f"n{len(self.machines)}", self, manages=False)
        joining.joined_at = asyncio.get_running_loop().time()
        return joining

    async def admit(self, leader: node.RaftNode, name: str) -> None:
        """Makes the node of a machine that joins, as the certificate authority does."""
        await leader.commit([node_of(name, pb.NODE_ROLE_WORKER)])

    @property
    def founder(self) -> str:
        """The machine that the cluster begins with."""
        return next(iter(self.managers))


def node_of(name: str, role: pb.NodeRole.ValueType) -> pb.Op:
    """A new node, as joining makes it. Its label `v` tells its specifications apart."""
    wish = pb.NodeSpec(role=role, availability=pb.NODE_AVAILABILITY_ACTIVE, labels={"v": FOUNDED, "zone": "a"})
    return ops.create(pb.Node(id=name, spec=wish, role=role))


class SimulatedManager(manager_part.ManagerPart):
    """The daemon's manager part on simulated ground."""

    def __init__(self, machine: "Machine", site: Site, *, front: api.Api, rng: random.Random) -> None:
        config = settings.Settings(
            state_dir=NEVER, socket=NEVER, name=machine.name, runtime="memory", docker_socket="", labels={}
        )
        identity = identities.Identity(machine.name, CLUSTER_ID, pb.NODE_ROLE_MANAGER, b"", b"", key_pem=b"")
        super().__init__(
            config=config,
            place=settings.Membership(listen_addr=machine.addr, advertise_addr=machine.addr, members=site.managers),
            identity=lambda: identity,
            front=front,
            metrics=manager_part.Metrics(prometheus_client.CollectorRegistry()),
            time=machine.clock,
            rng=rng,
        )
        self._machine = machine
        self._site = site
        self.store = ledger.WatchedStore(machine.name, site.ledger, checking=site.checking)
        self.transport = memory_transport.MemoryTransport(node_id=machine.name, network=site.network.raft)
        self.seen = shadow.Applied(0)

    @property
    def raft(self) -> node.RaftNode:
        """The consensus of this manager."""
        return self._raft

    @property
    def sessions(self) -> dispatcher.Dispatcher:
        """Where agents register."""
        assert self._dispatcher is not None
        return self._dispatcher

    @override
    async def start(self, *, found: bool = False) -> None:
        del found
        site, machine = self._site, self._machine
        self._raft = node.RaftNode(
            node_id=machine.name,
            store=self.store,
            log=managers.WatchedLog(machine.name, machine.handle, site.checker),
            transport=self.transport,
            clock=machine.clock,
            rng=self._rng,
            config=site.times,
            bootstrap={machine.name: machine.addr} if machine.name == site.founder else None,
            join=None if machine.name == site.founder else site.managers,
            worker=machine.offload,
        )
        self._dispatcher = dispatcher.Dispatcher(
            store=self.store,
            committer=self._raft,
            clock=machine.clock,
            rng=self._rng,
            leader_addr=self.leader_addr,
            managers=lambda: sorted(self._raft.members().values()),
            sure_to_lead=lambda: self._raft.sure_to_lead,
            counters=self._metrics.dispatcher,
        )
        self.committer = self._raft
        self.logs = logs.Logs(store=self.store, session_of=self._dispatcher.session_of, clock=machine.clock)
        self.channels = channels.Channels(store=self.store, session_of=self._dispatcher.session_of)
        await self._raft.start()
        self._watch_applied()
        lead = leading.Leading(
            raft=self._raft,
            state=self.store,
            sessions=self._dispatcher,
            changing=self._changing,
            metrics=self._metrics.loop,
            time=machine.clock,
            rng=self._rng,
        )
        self._raft.subscribe(lead.look)
        self._raft.subscribe(self._raft_moved)
        assert machine.daemon is not None
        machine.daemon.run(lead.run())

    def _watch_applied(self) -> None:
        machine = self._raft._machine
        apply, checker, name = machine.apply, self._site.checker, self._machine.name

        def applying(index: int, body: bytes) -> object:
            checker.applying(name, index, body)
            return apply(index, body)

        machine.apply = applying  # type: ignore[method-assign,assignment]

    @override
    async def forward(self, request: pb.HttpRequest) -> AsyncIterator[pb.HttpResponsePart]:
        target = self._raft.leader_id
        if target not in self._site.machines:
            raise commit.NotProposed(api.NO_LEADER)
        asked = messages.Request(
            method=request.method, target=request.target, headers=dict(request.headers), body=request.body,
            forwarded=True,
        )  # fmt: skip

        async def serve() -> list[pb.HttpResponsePart]:
            response = await self._site.machines[target].api.handle(asked)
            return [part async for part in forward._parts(response)]

        for part in await self._site.network.call(self._machine.name, target, serve):
            yield part

    @override
    def tunnel(self) -> backend.Tunnel:
        raise commit.NotProposed("nothing streams here")


class Machine:
    """A machine through all runs of its daemon. Is the backend.Machine of its API."""

    def __init__(self, name: str, site: Site, *, manages: bool) -> None:
        self.name = name
        self.addr = f"{name}:2377"
        self.manages = manages
        self.site = site
        self.clock = WallClock()
        self.uptime = virtual_time.LoopUptime()
        self.boots = 1
        self.disk = memory_disk.MemoryDisk(random.Random(f"{site.seed} {name} disk"))
        self.handle = self.disk.handle()
        self.offload = managers.SlowDisk(random.Random(f"{site.seed} {name} offload"))
        chance = random.Random(f"{site.seed} {name} rate")
        self.rate = 1.0 + chance.uniform(-site.drift, site.drift)
        self.engine = engines.Engine(
            site.running,
            moods=random.Random(f"{site.seed} {name} moods"),
            now=lambda: timing.loop().true_time(),
            node_id=name,
            clock=self.clock,
            rng=random.Random(f"{site.seed} {name} engine"),
        )
        self.lost = False  # for good
        self.joined_at: float | None = None  # when it was to join; None = with the others, at the beginning
        self.removed = ""  # why the cluster does not want this machine any more; as the daemon remembers it in a run
        self.runs = 0
        self.daemon: process.Process | None = None
        self.part: SimulatedManager | None = None
        self.session: session.AgentSession | None = None
        self.rng: ids.Rng = random.Random(f"{site.seed} {name}")
        self.api = api.Api(self, leader_patience_s=PATIENCE_S)
        self.failure = ""
        self._record = record.Record(record.IN_MEMORY)
        self._saved = self._record._db.serialize()
        self._book = manager_book.ManagerBook(None, seeds=[f"{each}:2377" for each in site.managers])
        self._worker: worker.Worker | None = None
        site.machines[name] = self

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self.daemon is not None

    # ---------------------------------------------------------------- runs

    def start(self) -> None:
        """The daemon begins a new run on whatever is there."""
        assert self.daemon is None
        self.runs += 1
        self.failure = self.removed = ""
        self.handle = self.disk.handle()
        self.rng = random.Random(f"{self.site.seed} {self.name} run {self.runs}")
        self.api = api.Api(self, leader_patience_s=PATIENCE_S)
        self.daemon = process.Process(f"{self.name} run {self.runs}", rate=self.rate)
        self.site.network.started(self.name, self.daemon)
        self.daemon.run(self._run(self.daemon))

    async def _run(self, own: process.Process) -> None:
        try:
            if self.manages:
                part = SimulatedManager(self, self.site, front=self.api, rng=_fork(self.rng))
                await part.start()
                self.part = part
                own.run(self._watch_failure(part))
            await self._run_agent()
        except memory_disk.Crashed:
            self.failure = "power"
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.failure = repr(error)
            raise

    async def _watch_failure(self, part: SimulatedManager) -> None:
        self._note_failure(await asyncio.shield(part.raft.failure))

    def _note_failure(self, error: BaseException) -> None:
        self.failure = "power" if isinstance(error, memory_disk.Crashed) else repr(error)

    async def _run_agent(self) -> None:
        await self.engine.open()
        self._worker = worker.Worker(
            runtime=self.engine, record=self._record, clock=self.clock, uptime=self.uptime, rng=_fork(self.rng)
        )
        await self._worker.open()
        self.session = session.AgentSession(
            connect=self._connect, managers=self._book, worker=self._worker, describe=self._describe,
            rng=_fork(self.rng), on_removed=self._node_removed,
        )  # fmt: skip
        await self.session.run()

    def _node_removed(self, reason: str) -> None:
        """As skep.daemon.daemon does."""
        if self.removed or self.manages:  # no manager is ever removed here: its agent came before its node was there
            return
        self.removed = reason
        assert self.daemon is not None
        assert self._worker is not None
        self.daemon.run(self._worker.remove_all())

    async def _connect(self, addr: str) -> link.AgentLink:
        target = self.site.machines[addr.partition(":")[0]]
        near, far = await self.site.network.connect(self.name, target.name)
        part, daemon = target.part, target.daemon
        if part is None or daemon is None:
            raise errors.Unavailable(f"{addr} is not a manager")
        peer = identities.Peer(self.name, CLUSTER_ID, pb.NODE_ROLE_WORKER, address=self.name)
        daemon.run(part.sessions.serve(peer, far))
        return near

    async def _describe(self) -> pb.NodeDescription:
        description = await self.engine.describe()
        description.hostname = self.name
        return description

    def save(self) -> None:
        """What the agent has recorded is on the disk for good now."""
        self._saved = self._record._db.serialize()

    async def kill(self, *, power: bool) -> None:
        """The daemon is killed, or the machine loses power: its tasks end, and what was not synced may be lost."""
        daemon, part = self.daemon, self.part
        if daemon is None:
            if power:
                self._go_dark()  # the tasks of a daemon that is dead run on, until now
            return
        if part is not None and part.raft.failure.done():
            self._note_failure(part.raft.failure.result())
        shadow.require(self.failure in {"", "power"}, f"{self.name} stopped: {self.failure}")
        self.daemon = self.part = self.session = None
        self.handle.dead = True
        if part is not None:
            part.transport.kill()
        self.site.network.stopped(self.name, power=power)
        daemon.kill()
        timing.loop().resume(daemon)
        if power:
            self.disk.lose_power()
            self._go_dark()
        else:
            self.disk.settle()
        await daemon.gone()
        await self.engine.close()

    def _go_dark(self) -> None:
        self.boots += 1
        self.uptime.boot = f"boot {self.boots}"
        self.site.running.lost_power(self.name)
        self.engine.resume()
        self.engine.reboot()
        self._record._db.deserialize(self._saved)

    # ---------------------------------------------------------------- backend.Machine

    @property
    def manager(self) -> backend.Manager | None:
        """The manager part, once it runs."""
        return self.part

    def info(self) -> backend.MachineInfo:
        """See backend.Machine."""
        return backend.MachineInfo(
            state="active" if self.manages and self.part is not None else "pending", error="", hostname=self.name,
            node_id=self.name, node_addr=self.name, cluster_id=CLUSTER_ID, managers=[],
            description=pb.NodeDescription(hostname=self.name),
        )  # fmt: skip

    async def init(self, request: backend.InitRequest) -> str:
        """Nothing that is simulated."""
        raise errors.Unimplemented("init")

    async def join(self, request: backend.JoinRequest) -> None:
        """Nothing that is simulated."""
        raise errors.Unimplemented("join")

    async def leave(self, *, force: bool) -> None:
        """Nothing that is simulated."""
        raise errors.Unimplemented("leave")


def _fork(rng: ids.Rng) -> random.Random:
    return random.Random(rng.getrandbits(64))


def watched_deciders(kept: ledger.Ledger) -> Callable[[], list[plan.Decider]]:
    """`loops.default_deciders`, whose decisions the ledger is told of."""
    original = loops.default_deciders
    return lambda: [kept.watch_decider(decider) for decider in original()]
