"""A manager's consensus, running: the asyncio driver around the core. The Committer of the real cluster.

One round of the driver: take what has come in, let the core tick, send what may leave at once, begin to write what is
new, and send the rest when that is durable. While a write is running the rounds go on; transactions that arrive
meanwhile gather for the next entry (group commit). The driver owns no decision of Raft, the core does no I/O.
"""

import asyncio
import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from manager.raft import changes, config, core, journal, machine, messages, offload, proposals, snapshot, transport
from manager.raft import log as logs
from manager.store import store
from skep import clock as clocks
from skep import errors, ids, pb, stamps

log = structlog.get_logger(__name__)

_LOST = "this manager stopped leading while the change was under way; whether it took effect is unknown: read and retry"


class RaftNode:
    """Consensus of one manager: `start`, then `commit` and `barrier` on the leader, `stop`.

    `bootstrap` makes a new cluster of these members when the log is empty; `join` are the members of an existing one,
    whose leader is to contact us; with a log on disk both are ignored, except that `join` still helps while the log
    knows no configuration.
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
        self._machine = machine.StoreMachine(store, log, self._worker, self._snapshot_finished)
        self._core: core.RaftCore | None = None
        self._journal: journal.Journal | None = None
        self._proposals = proposals.Proposals()
        self._readers: list[asyncio.Future[None]] = []
        self._inbox: collections.deque[tuple[str, pb.RaftFrame]] = collections.deque()
        self._held: collections.deque[tuple[int, str, pb.RaftFrame]] = collections.deque()
        self._writing: tuple[journal.Batch, asyncio.Task[None]] | None = None
        self._snapshot: asyncio.Task[snapshot.Snapshot] | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._subscribers: dict[Callable[[], None], None] = {}
        self._seen: object = None
        self._peers: dict[str, str] | None = None
        self._stopping = False
        self._paused = False  # a transfer of leadership is under way
        self.dropped_frames = 0

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Loads the log, restores the store and begins. Raises Damaged, or FailedPrecondition without a way to begin.

        `failure` is completed with the exception if this manager must stop (an unusable disk, a broken invariant).
        """
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.failure: asyncio.Future[BaseException] = loop.create_future()
        self._event = asyncio.Event()
        state = await self._worker.run(offload.LOG, self._log.load)
        if state is None and not self._bootstrap and not self._join:
            raise errors.FailedPrecondition("raft: the log is empty and there is neither a new cluster nor one to join")
        self._journal = journal.Journal(state, bootstrap=self._bootstrap)
        self._core = core.RaftCore(
            now=loop.time(),
            node_id=self.node_id,
            journal=self._journal,
            machine=self._machine,
            rng=self._rng,
            times=self._config,
            open_snapshot=self._log.open_snapshot,
        )
        self._changes = changes.Changes(self, self._core, self._config)
        await self._transport.start(self)
        self._update_peers()
        self._driver = loop.create_task(self._drive(self._core, self._journal), name=f"raft {self.node_id}")
        self._event.set()

    async def stop(self) -> None:
        """Hands leadership over if there is somebody to take it, then stops. Every waiting caller gets Unavailable."""
        if self._core is None or self._stopping:
            return
        if self.is_leader and len(self._core.members) > 1:
            try:
                await self.transfer_leadership()
            except errors.SkepError as error:
                log.info("raft.stop_without_transfer", reason=error.message)
        await self.abort()

    async def abort(self) -> None:
        """Stops at once, handing nothing over: for a manager that has failed or was removed."""
        if self._core is None or self._stopping:
            return
        self._stopping = True
        self._driver.cancel()
        await asyncio.gather(self._driver, return_exceptions=True)
        self._give_up("this manager is stopping")
        await self._transport.stop()
        await self._machine.stop()
        if self._writing is not None:
            await asyncio.gather(self._writing[1], return_exceptions=True)
        self._worker.close()
        self._log.close()

    # ---------------------------------------------------------------- state

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads and its store holds everything that was committed before it did."""
        return self._core is not None and self._core.in_charge and not self._stopping and not self.failure.done()

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
        """Calls `callback` when leadership, the leader, the members or `removed` change. Returns how to stop that."""
        self._subscribers[callback] = None
        return lambda: self._subscribers.pop(callback, None)

    # ---------------------------------------------------------------- committing and reading

    async def commit(self, ops: Sequence[pb.Op]) -> int:
        """See Committer.commit."""
        self._check_leading()
        transaction = pb.Transaction(ops=ops, at=stamps.stamp(self._clock.now()))
        future = self._proposals.add(transaction.SerializeToString())
        self._event.set()
        return await future

    async def barrier(self) -> None:
        """See Committer.barrier."""
        self._check_leading()
        if len(self._readers) >= config.READERS_MAX:
            raise errors.Unavailable("too many reads are waiting; try again later")
        future: asyncio.Future[None] = self._loop.create_future()
        self._readers.append(future)
        self._event.set()
        await future

    def _check_leading(self) -> None:
        if not self.is_leader:
            known = f"the leader is {self.leader_id}" if self.leader_id else "no leader is known"
            raise errors.Unavailable(f"this manager does not lead the cluster; {known}")

    # ---------------------------------------------------------------- membership

    async def add_member(self, node_id: str, addr: str) -> None:
        """Leader only: brings a manager in, after it has caught up; for a known one, sets its address.

        Raises Invalid, FailedPrecondition (another change is under way), Unavailable (it does not answer, or we lost
        the lead).
        """
        self._check_leading()
        await self._changes.add(node_id, addr)

    async def remove_member(self, node_id: str) -> None:
        """Leader only: takes a manager out; the leader itself then stops leading.

        Raises NotFound, FailedPrecondition (the rest would be without a quorum, or another change is under way),
        Unavailable.
        """
        self._check_leading()
        await self._changes.remove(node_id)

    async def transfer_leadership(self) -> None:
        """Leader only: lets the member that is best placed take over. Raises Unavailable when none does in time."""
        self._check_leading()
        self._paused = True
        try:
            await self._changes.transfer()
        finally:
            self._paused = False
            self._event.set()

    async def until(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Waits until `condition` holds after some round of the driver; False when it does not in time."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((condition, future))
        self._event.set()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        return True

    def change(self, members: Mapping[str, str], done: core.Done) -> None:
        """Proposes a configuration; `done` is called once with the outcome."""
        if self._core is None:
            done(core.Outcome.FAILED, None)
            return
        self._core.change(self._loop.time(), members, done)
        self._event.set()

    # ---------------------------------------------------------------- what the transport tells

    def frame_received(self, peer: str, frame: pb.RaftFrame) -> None:
        """See transport.Handler."""
        if len(self._inbox) >= config.INBOX_FRAMES_MAX:
            self.dropped_frames += 1
            return
        self._inbox.append((peer, frame))
        self._event.set()

    def link_changed(self, peer: str, *, up: bool) -> None:
        """See transport.Handler."""
        if self._core is not None:
            (self._core.link_up if up else self._core.link_down)(self._loop.time(), peer)
            self._event.set()

    def refused(self, peer: str, configuration: pb.RaftConfiguration) -> None:
        """See transport.Handler."""
        if self._core is not None:
            members = {member.node_id: member.addr for member in configuration.members}
            self._core.hear_of_configuration(self._loop.time(), configuration.index, members)
            self._event.set()

    def committed_configuration(self) -> pb.RaftConfiguration:
        """See transport.Handler."""
        if self._core is None:
            return pb.RaftConfiguration()
        index, members = self._core.committed_configuration
        listed = [pb.RaftMember(node_id=node_id, addr=addr) for node_id, addr in members.items()]
        return pb.RaftConfiguration(index=index, members=listed)

    # ---------------------------------------------------------------- the driver

    async def _drive(self, raft: core.RaftCore, entries: journal.Journal) -> None:
        try:
            while True:
                timer = self._loop.call_at(raft.wake_at, self._event.set)
                if self._event.is_set():
                    await asyncio.sleep(0)  # others get their turn however much comes in
                await self._event.wait()
                timer.cancel()
                self._event.clear()
                self._round(raft, entries)
        except Exception as error:  # whatever it is, this manager must not go on
            log.exception("raft.failed", node=self.node_id)
            self._fail(error)

    def _round(self, raft: core.RaftCore, entries: journal.Journal) -> None:
        now = self._loop.time()
        for _ in range(min(len(self._inbox), config.ROUND_FRAMES_MAX)):
            peer, frame = self._inbox.popleft()
            try:
                message = messages.decode(frame)
            except ValueError as error:
                log.warning("raft.frame_refused", peer=peer, reason=str(error))
                continue
            raft.receive(now, peer, message)
        if self._inbox:
            self._event.set()
        self._finish_snapshot(raft)
        self._finish_write(entries)
        self._propose(raft, now)
        self._read(raft, now)
        raft.tick(now)
        self._flush(raft, entries)
        self._begin_write(entries)
        self._notify()

    def _propose(self, raft: core.RaftCore, now: float) -> None:
        """Forms entries. While a write is running transactions gather, so that each write carries as many as wait."""
        if not raft.in_charge:
            self._proposals.fail_all("this manager stopped leading before the change was begun; try again")
            return
        if self._writing is not None or self._paused:
            return
        while raft.uncommitted_bytes < config.UNCOMMITTED_BYTES_MAX and (batch := self._proposals.next_batch()):
            body, waiting = batch
            raft.propose(now, body, functools.partial(_settle, waiting=waiting))

    def _read(self, raft: core.RaftCore, now: float) -> None:
        if not self._readers:
            return
        readers, self._readers = self._readers, []

        def done(outcome: core.Outcome, _: object) -> None:
            for reader in readers:
                if reader.done():
                    continue
                if outcome is core.Outcome.DONE:
                    reader.set_result(None)
                else:
                    reader.set_exception(errors.Unavailable("this manager stopped leading; ask again"))

        raft.read_barrier(now, done)

    def _flush(self, raft: core.RaftCore, entries: journal.Journal) -> None:
        """Sends what does not depend on an unfinished write and keeps the rest back."""
        needed = entries.needed_batch
        for peer, message in raft.outbox.take():
            frame = messages.encode(message)
            if needed <= entries.written_number or raft.may_leave_early(message):
                self._transport.send(peer, frame)
            else:
                self._held.append((needed, peer, frame))

    def _begin_write(self, entries: journal.Journal) -> None:
        if self._writing is not None or not entries.dirty:
            return
        batch = entries.take()
        task = self._loop.create_task(self._worker.run(offload.LOG, lambda: self._log.write(batch.operations)))
        task.add_done_callback(lambda _: self._event.set())
        self._writing = batch, task

    def _finish_write(self, entries: journal.Journal) -> None:
        if self._writing is None or not self._writing[1].done():
            return
        (batch, task), self._writing = self._writing, None
        task.result()  # an error ends this manager: what is on the disk is unknown
        entries.written(batch)
        while self._held and self._held[0][0] <= batch.number:
            _, peer, frame = self._held.popleft()
            self._transport.send(peer, frame)

    def _snapshot_finished(self, task: "asyncio.Task[snapshot.Snapshot]") -> None:
        self._snapshot = task
        self._event.set()

    def _finish_snapshot(self, raft: core.RaftCore) -> None:
        if self._snapshot is not None:
            task, self._snapshot = self._snapshot, None
            taken = task.result()
            log.info("raft.snapshot", node=self.node_id, index=taken.index, blocks=taken.blocks)
            raft.snapshot_done(taken)

    # ---------------------------------------------------------------- telling others

    def _update_peers(self) -> None:
        if self._core is None:
            return
        peers = self._core.peers
        if not self._core.members:
            peers = {**self._join, **peers}
            peers.pop(self.node_id, None)
        if peers != self._peers:
            self._peers = peers
            self._transport.set_peers(peers)

    def _notify(self) -> None:
        self._update_peers()
        seen = (self.is_leader, self.leader_id, self.members(), self.removed)
        if seen != self._seen:
            self._seen = seen
            log.info("raft.state", node=self.node_id, leading=self.is_leader, leader=self.leader_id, term=self.term)
            for callback in list(self._subscribers):
                callback()
        waiters, self._waiters = self._waiters, []
        for condition, future in waiters:
            if future.done():
                continue
            if condition():
                future.set_result(None)
            else:
                self._waiters.append((condition, future))

    def _fail(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_result(error)
        self._give_up("this manager has failed and takes no changes")
        for callback in list(self._subscribers):
            callback()

    def _give_up(self, message: str) -> None:
        """Gives everybody who waits an answer."""
        self._proposals.fail_all(message)
        for reader in self._readers:
            if not reader.done():
                reader.set_exception(errors.Unavailable(message))
        self._readers = []
        if self._core is not None:
            self._core.abandon()
        waiters, self._waiters = self._waiters, []
        for _, future in waiters:
            if not future.done():
                future.set_exception(errors.Unavailable(message))


def _settle(outcome: core.Outcome, result: Any, waiting: Sequence[proposals.Waiting]) -> None:
    if outcome is core.Outcome.DONE:
        index, refusals = result
        proposals.settle(waiting, index, refusals)
    elif outcome is core.Outcome.UNKNOWN:
        proposals.fail(waiting, _LOST)
    else:
        proposals.fail(waiting, "this manager does not lead the cluster; try again")
