"""The leader's side of all agents' sessions: who is alive, what each is to run, what each reports.

Runs while this manager leads; at other times agents are sent on to the leader. It writes nodes' descriptions and
states and tasks' observed states, and decides nothing about what should run.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import structlog

from manager.dispatcher import admission, assignments, heartbeats, metrics, nodes, session, statuses
from manager.orchestrator import tasks
from manager.store import commit, store, watching
from skep import clock, errors, ids, link, pb, stamps
from skep.security import identity

log = structlog.get_logger(__name__)

REGISTER_TIMEOUT_S = 10.0  # from the opening of the stream to the first message
STOP_TIMEOUT_S = 2.0  # for agents to take their redirects
RETRY_S = 0.5
LEADERLESS_S = 3.0  # an agent is kept waiting this long for a leader; elections take a second
LEADER_LOOK_S = 0.25
MESSAGES_PER_TURN = 100  # of one agent, before others get their turn


class Dispatcher:
    """Agents' sessions. Needs a running event loop."""

    def __init__(
        self,
        *,
        store: store.Store,
        committer: commit.Committer,
        clock: clock.Clock,
        rng: ids.Rng,
        leader_addr: Callable[[], str],
        managers: Callable[[], Sequence[str]],
        sure_to_lead: Callable[[], bool] = lambda: True,
        counters: metrics.Metrics | None = None,
    ) -> None:
        """`leader_addr` gives the leader's cluster address (empty while unknown), `managers` those of all managers.

        `sure_to_lead` says whether nobody else can lead at this moment, as far as time-outs tell.
        Call `lead_moved` when the leader changes.
        """
        self._store = store
        self._rng = rng
        self._leader_addr = leader_addr
        self._managers = managers
        self._sure_to_lead = sure_to_lead
        self._metrics = counters or metrics.Metrics()
        self._nodes = nodes.NodeWriter(target=store, committer=committer, clock=clock)
        self._statuses = statuses.StatusWriter(target=store, committer=committer, clock=clock, metrics=self._metrics)
        self._heartbeats = heartbeats.Heartbeats(
            target=store, rng=rng, writer=self._nodes, counters=self._metrics, silenced=self._silenced
        )
        self._admission = admission.Admission(rng.uniform)
        self._lead_moved = asyncio.Event()
        self._sessions: dict[str, session.Session] = {}  # by node ID
        self._serving: dict[asyncio.Future[None], None] = {}
        self._descriptions: dict[str, pb.NodeDescription] = {}  # new ones that are not written yet, by node ID
        self._described = asyncio.Event()
        self._watch: watching.Watch | None = None
        self._changed = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []

    @property
    def leading(self) -> bool:
        """Whether sessions are served here now."""
        return self._watch is not None

    def session_of(self, node_id: str) -> session.Session | None:
        """The node's open session, if it has one."""
        return self._sessions.get(node_id)

    async def start(self) -> None:
        """This manager leads from now on, and its store holds everything that was committed before."""
        if self._watch is not None:
            return
        self._watch = self._store.watch({"cluster", "node", "task"}, self._changed.set)
        self._admission = admission.Admission(self._rng.uniform)
        self._heartbeats.begin()
        self._statuses.forget()
        self._descriptions.clear()
        self._background = [
            asyncio.create_task(self._supervised(name, loop), name=f"dispatcher.{name}")
            for name, loop in (
                ("changes", self._follow_changes),
                ("liveness", self._heartbeats.run),
                ("silence", self._heartbeats.silence.run),
                ("statuses", self._statuses.run),
                ("descriptions", self._write_descriptions),
            )
        ]
        self.lead_moved()
        log.info("dispatcher.started")

    async def stop(self) -> None:
        """This manager does not lead any more: every agent is sent to the leader, if it is known."""
        if self._watch is None:
            return
        self._watch.close()
        self._watch = None
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._background = []
        addr = self._leader_addr()
        for open_session in self._sessions.values():
            open_session.end(redirect=addr)
        serving = list(self._serving)
        if serving:
            _, stuck = await asyncio.wait(serving, timeout=STOP_TIMEOUT_S)
            for each in serving:
                if each in stuck:
                    each.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
        log.info("dispatcher.stopped")

    def lead_moved(self) -> None:
        """Another manager leads now, or none: agents that wait for a leader look again."""
        moved, self._lead_moved = self._lead_moved, asyncio.Event()
        moved.set()

    def managers_changed(self) -> None:
        """The list of managers has changed: tell all agents."""
        for open_session in self._sessions.values():
            open_session.managers_changed()

    # ---------------------------------------------------------------- one session

    async def serve(self, peer: identity.Peer, stream: link.ManagerLink) -> None:
        """Serves one agent until its session ends, and closes the stream; `peer` is who its certificate says it is."""
        serving = asyncio.ensure_future(self._serve(peer, stream))
        self._serving[serving] = None
        serving.add_done_callback(lambda ended: self._serving.pop(ended, None))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            raise

    async def _serve(self, peer: identity.Peer, stream: link.ManagerLink) -> None:
        try:
            opened = await self._open(peer, stream)
        except asyncio.CancelledError:
            await stream.close(errors.Unavailable("this manager is shutting down"))
            raise
        except errors.SkepError as error:
            log.warning("session.refused", node=peer.node_id, error=str(error))
            await stream.close(error)
            return
        except TimeoutError:
            await stream.close(errors.Unavailable("no registration came over the session"))
            return
        if opened is None:
            await stream.close()
            return
        self._metrics.sessions.inc()
        try:
            await opened.run(self._read(opened, stream))
        except Exception as error:
            log.exception("session.crashed", node=peer.node_id, error=type(error).__name__)
        finally:
            self._metrics.sessions.dec()
            if self._sessions.get(peer.node_id) is opened:
                del self._sessions[peer.node_id]
            log.info("session.closed", node=peer.node_id, session=opened.id)

    async def _open(self, peer: identity.Peer, stream: link.ManagerLink) -> session.Session | None:
        """Registers the agent; None when it was sent elsewhere or went away by itself."""
        if not await self._admitted(peer, stream):
            return None
        async with asyncio.timeout(REGISTER_TIMEOUT_S):
            first = await stream.receive()
        if first is None:
            return None
        if not first.HasField("register"):
            raise errors.Invalid("the first message of a session must be Register")
        self._heartbeats.heard(peer.node_id)  # before the write: no verdict may come after it
        self._admission.registering += 1
        try:
            await self._heartbeats.settled(peer.node_id)
            node = await self._nodes.register(peer.node_id, first.register.description, peer.address)
        except errors.Denied:
            self._heartbeats.drop(peer.node_id)
            raise
        finally:
            self._admission.registering -= 1
        if not self.leading:
            await self._redirect(stream)
            return None
        opened = session.Session(
            session_id=ids.new_id(self._rng),
            node=node,
            stream=stream,
            target=self._store,
            period=self._heartbeats.next_s,
            spread=self._heartbeats.spread_s,
            managers=self._managers,
            metrics=self._metrics,
        )
        replaced = self._sessions.get(peer.node_id)
        if replaced is not None:
            replaced.end(errors.Unavailable(f"node {peer.node_id} has opened another session"))
        self._sessions[peer.node_id] = opened
        self._heartbeats.heard(peer.node_id)
        self._metrics.registrations.inc()
        log.info("session.opened", node=peer.node_id, session=opened.id, addr=peer.address)
        return opened

    async def _admitted(self, peer: identity.Peer, stream: link.ManagerLink) -> bool:
        """Whether the agent may register here now; when not, it has been told where or when."""
        await self._until_led()
        if not self.leading:
            await self._redirect(stream)
            return False
        wait_s = self._admission.wait_s(peer.node_id, asyncio.get_running_loop().time())
        if wait_s > admission.HOLD_S:
            self._metrics.postponed.inc()
            await stream.send(pb.ManagerMessage(later=pb.Later(retry_after=stamps.to_nanos(wait_s))))
            return False
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return True

    async def _redirect(self, stream: link.ManagerLink) -> None:
        """Sends the agent to the leader, or on its way when none is known."""
        await stream.send(pb.ManagerMessage(redirect=pb.Redirect(addr=self._leader_addr())))

    async def _until_led(self) -> None:
        """Waits a while for a leader to be known: cheaper than agents that go round and ask everybody."""
        deadline = asyncio.get_running_loop().time() + LEADERLESS_S
        while not self.leading and not self._leader_addr():
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LEADER_LOOK_S)):
                    await self._lead_moved.wait()

    async def _read(self, opened: session.Session, stream: link.ManagerLink) -> None:
        taken = 0
        while True:
            message = await stream.receive()
            if message is None:
                return
            current = self._sessions.get(opened.node_id) is opened
            if current:
                self._heartbeats.heard(opened.node_id)
            match message.WhichOneof("body"):
                case "heartbeat":
                    # A sign of life that tasks which must never run twice may live on?
                    proves = current and self._sure_to_lead() and not self._heartbeats.doubted(opened.node_id)
                    opened.heartbeat(message.heartbeat.number if proves else 0)
                case "statuses":
                    self._statuses.offer(opened.node_id, message.statuses)
                case "log":
                    opened.take_log(message.log)
                case "channel":
                    opened.channels.take(message.channel)
                case "description":
                    # Not awaited: what comes after it, heartbeats above all, must not wait for a commit.
                    self._descriptions[opened.node_id] = message.description
                    self._described.set()
                case _:
                    log.debug("session.message_unknown", node=opened.node_id)
            taken += 1
            if taken % MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _write_descriptions(self) -> None:
        while True:
            await self._described.wait()
            self._described.clear()
            batch, self._descriptions = self._descriptions, {}
            try:
                await self._nodes.describe(batch)
            except errors.Unavailable:
                self._descriptions = batch | self._descriptions
                self._described.set()
                await asyncio.sleep(RETRY_S)

    def _silenced(self, node_id: str) -> None:
        """Ends the session of a node that was declared down; if it speaks again it registers again and is READY."""
        silent = self._sessions.get(node_id)
        if silent is not None:
            silent.end(errors.Unavailable(f"node {node_id} was silent for too long"))

    # ---------------------------------------------------------------- changes in the store

    async def _follow_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._watch is None:
                return
            try:
                changes = self._watch.take()
            except watching.Lagged:
                self._heartbeats.configure()
                self._heartbeats.silence.missed()
                for open_session in self._sessions.values():
                    open_session.mark_all()
                    open_session.node_changed()
                continue
            for change in changes:
                if change.kind == "task":
                    self._task_changed(change)
                elif change.kind == "node":
                    self._node_changed(change)
                else:
                    self._heartbeats.configure()

    def _task_changed(self, change: watching.Change) -> None:
        for node_id in assignments.concerned(change):
            concerned = self._sessions.get(node_id)
            if concerned is not None:
                concerned.mark(change.id)

    def _node_changed(self, change: watching.Change) -> None:
        old = change.old if isinstance(change.old, pb.Node) else None
        new = change.new if isinstance(change.new, pb.Node) else None
        concerned = self._sessions.get(change.id)
        if new is None:
            self._heartbeats.drop(change.id)
            if concerned is not None:
                concerned.end(errors.Denied(f"node {change.id} was removed from the cluster"))
            return
        if tasks.lost(new) and not tasks.lost(old):
            self._heartbeats.silence.count(new)
        if old is None and concerned is None:
            self._heartbeats.expect(change.id)  # it has its certificate and should register now
        if old is not None and concerned is not None and (old.spec != new.spec or old.role != new.role):
            concerned.node_changed()

    async def _supervised(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await loop()
                return
            except Exception:
                log.exception("dispatcher.loop_crashed", loop=name)
                await asyncio.sleep(RETRY_S)
