"""A manager's consensus: the real cluster's Committer, its start and stop, its members. Puts the parts together."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from manager.raft import changes, commands, config, core, driver, journal, machine, offload, transport
from manager.raft import log as logs
from manager.store import commit, store
from skep import clock as clocks
from skep import errors, ids, pb, stamps

log = structlog.get_logger(__name__)


class RaftNode:
    """Consensus of one manager: `start`, then `commit` and `barrier` on the leader, `stop`.

    `bootstrap` makes a new cluster of these members when the log is empty; `join` are the members of an existing one,
    whose leader is to contact us. With a log on disk `bootstrap` is ignored, and `join` only helps while that log
    knows no configuration yet. `worker` is where blocking calls run, threads if not given.
    """

    def __init__(
        self,
        *,
        node_id: str,
        store: store.Store,
        log: logs.Log,
        transport: transport.Transport,
        clock: clocks.Clock,
        rng: ids.Rng,
        config: config.RaftConfig,
        bootstrap: Mapping[str, str] | None = None,
        join: Mapping[str, str] | None = None,
        worker: offload.Offload | None = None,
    ) -> None:
        self.node_id = node_id
        self._log = log
        self._transport = transport
        self._clock = clock
        self._rng = rng
        self._config = config
        self._bootstrap = dict(bootstrap or {})
        self._join = dict(join or {})
        self._worker = worker or offload.ThreadOffload()
        self._machine = machine.StoreMachine(store, log, self._worker)
        self._core: core.RaftCore | None = None
        self._driver: driver.Driver | None = None
        self._subscribers: dict[Callable[[], None], None] = {}
        self._seen: object = None
        self._peers: dict[str, str] | None = None
        self._stopping = False

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Loads the log, restores the store and begins. Raises Damaged, or FailedPrecondition without a way to begin.

        From then on `failure` is a future that is completed with an exception if this manager must stop (an unusable
        disk, a broken invariant).
        """
        loop = asyncio.get_running_loop()
        self.failure: asyncio.Future[BaseException] = loop.create_future()
        state = await self._worker.run(offload.LOG, self._log.load)
        if state is None and not self._bootstrap and not self._join:
            raise errors.FailedPrecondition("raft: the log is empty and there is neither a new cluster nor one to join")
        entries = journal.Journal(state, bootstrap=self._bootstrap)
        if entries.snapshot.blocks:
            await self._machine.load(entries.snapshot)
        if self._stopping:
            return  # meanwhile
        self._core = core.RaftCore(
            now=loop.time(),
            node_id=self.node_id,
            journal=entries,
            machine=self._machine,
            rng=self._rng,
            times=self._config,
            open_snapshot=self._log.open_snapshot,
        )
        self._driver = driver.Driver(
            raft=self._core,
            entries=entries,
            backend=self._log,
            network=self._transport,
            worker=self._worker,
            on_round=self._notify,
            on_failure=self._fail,
        )
        self._machine.stored = self._driver.snapshot_stored
        self._machine.received = self._driver.snapshot_received
        self._changes = changes.Changes(self._driver, self._core, self._config)
        await self._transport.start(self)
        self._update_peers(self._core)
        self._driver.start()

    async def stop(self) -> None:
        """Hands leadership over if there is somebody to take it, then stops. Every waiting caller gets Unavailable."""
        if self.is_leader and len(self.members()) > 1:
            try:
                await self.transfer_leadership()
            except errors.SkepError as error:
                log.info("raft.stop_without_transfer", reason=error.message)
        await self.abort()

    async def abort(self) -> None:
        """Stops at once, handing nothing over: for a manager that has failed or was removed."""
        if self._stopping:
            return
        self._stopping = True
        if self._driver is not None:
            await self._transport.stop()
            await self._driver.stop("this manager is stopping")
            await self._machine.stop()
        self._worker.close()
        self._log.close()

    # ---------------------------------------------------------------- state

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads and its store holds everything that was committed before it did."""
        return self._core is not None and self._core.in_charge and not self._stopping and not self.failure.done()

    @property
    def sure_to_lead(self) -> bool:
        """Whether it leads, and no other manager can have been elected yet, as far as time-outs tell."""
        return self.is_leader and self._core is not None and self._core.sure_to_lead(asyncio.get_running_loop().time())

    @property
    def leader_id(self) -> str:
        """Who leads, as far as this manager knows; '' when it knows of nobody."""
        return "" if self._core is None else self._core.leader_id

    @property
    def term(self) -> int:
        """The current term; 0 before `start`."""
        return 0 if self._core is None else self._core.term

    @property
    def applied_index(self) -> int:
        """The last entry that was applied here."""
        return 0 if self._core is None else self._core.applied_index

    @property
    def removed(self) -> bool:
        """Whether the cluster has told this manager that it was removed: its manager part is to be stopped."""
        return self._core is not None and self._core.removed

    @property
    def heard_of_leader_ago_s(self) -> float | None:
        """How long ago this manager's state was known to be current: 0 while it leads, None when it never was."""
        if self._core is None:
            return None
        return 0.0 if self.is_leader else self._core.leader_heard_ago_s(asyncio.get_running_loop().time())

    def members(self) -> dict[str, str]:
        """The managers in the newest configuration, ID to address."""
        return {} if self._core is None else dict(self._core.members)

    def reachable(self) -> dict[str, bool]:
        """For each member whether it answers: known exactly on the leader, elsewhere whether a link is up."""
        if self._core is None:
            return {}
        alive = self._core.responsive if self._core.leading else self._core.outbox.up
        return {member: member == self.node_id or member in alive for member in self._core.members}

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` when leadership, the leader, the members, `removed` or `failure` change.

        Returns how to stop that.
        """
        self._subscribers[callback] = None

        def unsubscribe() -> None:
            self._subscribers.pop(callback, None)

        return unsubscribe

    # ---------------------------------------------------------------- committing and reading

    async def commit(self, ops: Sequence[pb.Op]) -> int:
        """See Committer.commit."""
        running = self._leading()
        transaction = pb.Transaction(ops=ops, at=stamps.stamp(self._clock.now()))
        future = running.proposals.add(transaction.SerializeToString())
        running.wake()
        return await future

    async def barrier(self) -> None:
        """See Committer.barrier."""
        await self._leading().read()

    def _leading(self) -> driver.Driver:
        if self._driver is None or not self.is_leader:
            known = f"the leader is {self.leader_id}" if self.leader_id else "no leader is known"
            raise commit.NotProposed(f"this manager does not lead the cluster; {known}")
        return self._driver

    # ---------------------------------------------------------------- membership

    async def add_member(self, node_id: str, addr: str) -> None:
        """Leader only: brings a manager in, after it has caught up; for a known one, sets its address.

        Raises Invalid, FailedPrecondition (another change is under way), Unavailable (it does not answer, or we lost
        the lead).
        """
        self._leading()
        await self._changes.add(node_id, addr)

    async def remove_member(self, node_id: str) -> None:
        """Leader only: takes a manager out; the leader itself then stops leading.

        Raises NotFound, FailedPrecondition (the rest would be without a quorum, or another change is under way),
        Unavailable.
        """
        self._leading()
        await self._changes.remove(node_id)

    async def transfer_leadership(self) -> None:
        """Leader only: lets the member that is best placed take over. Raises Unavailable when none does in time."""
        running = self._leading()
        running.paused = True
        try:
            await self._changes.transfer()
        finally:
            running.paused = False
            running.wake()

    # ---------------------------------------------------------------- what the transport tells

    def frame_received(self, peer: str, frame: pb.RaftFrame) -> None:
        """See transport.Handler."""
        if self._driver is not None:
            self._driver.frame_received(peer, frame)

    def link_changed(self, peer: str, *, up: bool) -> None:
        """See transport.Handler."""
        if self._core is not None and self._driver is not None:
            now = asyncio.get_running_loop().time()
            (self._core.link_up if up else self._core.link_down)(now, peer)
            self._driver.wake()

    def refused(self, peer: str, configuration: pb.RaftConfiguration) -> None:
        """See transport.Handler."""
        if self._core is not None and self._driver is not None:
            now = asyncio.get_running_loop().time()
            self._core.hear_of_configuration(now, configuration.index, commands.from_configuration(configuration))
            self._driver.wake()

    def committed_configuration(self) -> pb.RaftConfiguration:
        """See transport.Handler."""
        if self._core is None:
            return pb.RaftConfiguration()
        return commands.configuration(*self._core.committed_configuration)

    # ---------------------------------------------------------------- telling others

    def _update_peers(self, raft: core.RaftCore) -> None:
        peers = raft.peers
        if not raft.members:
            peers = {**self._join, **peers}
            peers.pop(self.node_id, None)
        if peers != self._peers:
            self._peers = peers
            self._transport.set_peers(peers)

    def _notify(self) -> None:
        """After every round."""
        if self._core is None:
            return
        self._update_peers(self._core)
        seen = (self.is_leader, self.leader_id, self._core.journal.configuration_version, self.removed)
        if seen != self._seen:
            self._seen = seen
            log.info("raft.state", node=self.node_id, leading=self.is_leader, leader=self.leader_id, term=self.term)
            self._call_subscribers()

    def _fail(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_result(error)
        self._call_subscribers()

    def _call_subscribers(self) -> None:
        for callback in list(self._subscribers):
            callback()
