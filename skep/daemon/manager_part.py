"""The manager of this machine: store, Raft, certificate authority, dispatcher, leader's loop. Composition only."""

import asyncio
import contextlib
import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import prometheus_client
import structlog

from manager import loops
from manager.ca import authority, membership, membership_client, recovery, service
from manager.dispatcher import channels, dispatcher, logs
from manager.dispatcher import metrics as dispatcher_metrics
from manager.dispatcher import service as dispatcher_service
from manager.http import api, backend, forward
from manager.raft import config as raft_config
from manager.raft import disk, grpc_transport, node, rebuild
from manager.raft import log as raft_log
from manager.store import commit, store
from skep import clock, errors, ids, pb
from skep.daemon import leading, settings
from skep.security import datakey, tls
from skep.security import identity as identities
from skep.v1 import ca_pb2_grpc, dispatcher_pb2_grpc

log = structlog.get_logger(__name__)

STOP_GRACE_S = 1.0  # for calls in hand when the servers stop
LEADER_SILENT_S = 0.35  # it speaks every 0.1 s
LEAD_TIMEOUT_S = 15.0  # for the founder; an election of one takes a second


@dataclasses.dataclass(frozen=True)
class End:
    """Why a manager part ended by itself."""

    removed: bool  # from the group; otherwise it has failed
    reason: str
    disk: bool = False  # it failed because the disk did


class Metrics:
    """One set for the life of the process: a registry takes each name once, leadership comes and goes."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self.loop = loops.Metrics(registry)
        self.dispatcher = dispatcher_metrics.Metrics(registry)


class ManagerPart:
    """Provides what http.backend.Manager asks for, and owns everything behind it."""

    def __init__(
        self,
        *,
        config: settings.Settings,
        place: settings.Membership,
        identity: Callable[[], identities.Identity],
        front: api.Api,
        metrics: Metrics,
        time: clock.Clock,
        rng: ids.Rng,
    ) -> None:
        """`identity` gives the present one; `front` answers what other managers forward."""
        self._config = config
        self._place = place
        self._identity = identity
        self._front = front
        self._metrics = metrics
        self._clock = time
        self._rng = rng
        self._stack = contextlib.AsyncExitStack()
        self._changing = asyncio.Lock()  # who changes the group
        self._told: dict[str, str] = {}  # the members that agents were told of
        self._channels: dict[str, tuple[identities.Identity, grpc.aio.Channel]] = {}
        self.node_id = identity().node_id
        self.store = store.Store()
        self.join_port = settings.split_addr(place.advertise_addr, default_port=0)[1] + settings.JOIN_PORT_OFFSET
        self.committer: commit.Committer
        self.logs: backend.LogSource
        self.channels: backend.ChannelSource
        self._dispatcher: dispatcher.Dispatcher | None = None

    # ---------------------------------------------------------------- life

    async def start(self, *, found: bool = False) -> None:
        """Opens the log and serves the cluster and join ports. `found` makes this node the first member of a new group.

        Raises Unavailable when a port is taken, and what the log says when it is damaged.
        """
        own = {self.node_id: self._place.advertise_addr}
        transport = grpc_transport.GrpcTransport(node_id=self.node_id, dial=self.dial, peer_of=self._peer_of)
        self._raft = node.RaftNode(
            node_id=self.node_id,
            store=self.store,
            log=open_log(self._config, self._identity(), rng=self._rng),
            transport=transport,
            clock=self._clock,
            rng=self._rng,
            config=raft_config.RaftConfig(),
            bootstrap=own if found else None,
            join=None if found else self._place.members,
        )
        self._dispatcher = dispatcher.Dispatcher(
            store=self.store,
            committer=self._raft,
            clock=self._clock,
            rng=self._rng,
            leader_addr=self._live_leader_addr,
            managers=lambda: sorted(self._raft.members().values()),
            sure_to_lead=lambda: self._raft.sure_to_lead,
            counters=self._metrics.dispatcher,
        )
        self.committer = self._raft
        sessions = self._dispatcher
        self.logs = logs.Logs(
            store=self.store, session_of=sessions.session_of, clock=self._clock, leading=lambda: sessions.leading
        )
        self.channels = channels.Channels(store=self.store, session_of=self._dispatcher.session_of)
        try:
            await self._serve(transport, self._dispatcher)
            self._stack.push_async_callback(self._raft.stop)  # also what a start that fails leaves open
            await self._raft.start()
            lead = leading.Leading(
                raft=self._raft,
                state=self.store,
                sessions=self._dispatcher,
                changing=self._changing,
                metrics=self._metrics.loop,
                time=self._clock,
                rng=self._rng,
            )
            self._raft.subscribe(lead.look)
            self._raft.subscribe(self._raft_moved)
            following = asyncio.create_task(lead.run(), name="manager.leadership")
            self._stack.push_async_callback(leading.cancelled, following)
        except BaseException:
            await self._stack.aclose()
            raise
        log.info("manager.started", node=self.node_id, addr=self._place.advertise_addr)

    async def stop(self) -> None:
        """Hands over the lead if it has it, then closes everything."""
        await self._stack.aclose()
        for _, channel in self._channels.values():
            await channel.close()

    async def join(self, addrs: Sequence[str]) -> None:
        """Becomes a member of the group that the managers at `addrs` (cluster addresses) form. Safe to repeat."""
        await membership_client.join_raft(self.dial, addrs, own_addr=self._place.advertise_addr)

    async def lead(self) -> None:
        """Returns once this manager leads; for the founder of a cluster. Raises Unavailable when it does not."""
        try:
            async with asyncio.timeout(LEAD_TIMEOUT_S):
                while not self._raft.is_leader:
                    await self._raft_changed()
        except TimeoutError:
            raise errors.Unavailable(
                "the new cluster's only manager did not become its leader; its log says why"
            ) from None

    async def hand_over(self) -> None:
        """Passes the lead on if this manager has it; a failure is only logged."""
        if not self._raft.is_leader or len(self._raft.members()) == 1:
            return
        try:
            await self._raft.transfer_leadership()
        except errors.SkepError as error:
            log.warning("manager.lead_not_handed_over", reason=error.message)

    async def forget_other_managers(self) -> None:
        """After a rebuild: the store says that this node is the only manager. Raises as commit does."""
        own_addr = self.advertise_addr
        while changes := recovery.alone(self.store.view(), node_id=self.node_id, addr=own_addr):
            with contextlib.suppress(errors.Conflict):
                await self._raft.commit(changes)

    async def ended(self) -> End:
        """Waits for something that ends this manager part for good."""
        moved = asyncio.Event()
        unsubscribe = self._raft.subscribe(moved.set)
        try:
            while not self._raft.removed and not self._raft.failure.done():
                moved.clear()
                await moved.wait()
        finally:
            unsubscribe()
        if self._raft.failure.done():
            error = self._raft.failure.result()
            reason = f"{error} (log in {self._config.raft_dir})"
            return End(removed=False, reason=reason, disk=isinstance(error, OSError))
        return End(removed=True, reason="this manager was removed from the cluster")

    async def _raft_changed(self) -> None:
        event = asyncio.Event()
        unsubscribe = self._raft.subscribe(event.set)
        try:
            await event.wait()
        finally:
            unsubscribe()

    def _raft_moved(self) -> None:
        members = self._raft.members()
        if self._dispatcher is None:
            return
        self._dispatcher.lead_moved()
        if members != self._told:
            self._told = members
            self._dispatcher.managers_changed()

    # ---------------------------------------------------------------- http.backend.Manager

    @property
    def advertise_addr(self) -> str:
        """This manager's own cluster address."""
        return self._place.advertise_addr

    @property
    def is_member_as_advertised(self) -> bool:
        """Whether the newest configuration names this node, and at the address that it has now."""
        return self._raft.members().get(self.node_id) == self._place.advertise_addr

    @property
    def behind_s(self) -> float | None:
        """See backend.Manager."""
        return self._raft.heard_of_leader_ago_s

    @property
    def leader_id(self) -> str:
        """Node ID of the leader; empty while none is known."""
        return self._raft.leader_id

    def leader_addr(self) -> str:
        """Cluster address of the leader; empty while none is known."""
        return self._raft.members().get(self._raft.leader_id, "")

    def _live_leader_addr(self) -> str:
        """As leader_addr, but empty too when that leader has gone silent: agents must not be sent to a dead one."""
        silent_s = self._raft.heard_of_leader_ago_s
        return "" if silent_s is None or silent_s > LEADER_SILENT_S else self.leader_addr()

    def members(self) -> Mapping[str, str]:
        """Cluster address by node ID of the Raft group."""
        return self._raft.members()

    def reachability(self) -> dict[str, pb.ManagerStatus]:
        """Leadership, reachability and address of every Raft member, by node ID."""
        reachable = self._raft.reachable()
        return {
            node_id: pb.ManagerStatus(
                leader=node_id == self._raft.leader_id,
                reachability=pb.REACHABILITY_REACHABLE if reachable.get(node_id) else pb.REACHABILITY_UNREACHABLE,
                addr=addr,
            )
            for node_id, addr in self._raft.members().items()
        }

    async def forward(self, request: pb.HttpRequest) -> AsyncIterator[pb.HttpResponsePart]:
        """Has the leader answer a request. Raises as `_answering_leader`, and Unavailable when it breaks off."""
        addr = self._answering_leader()
        parts = forward.forward(self._channel(addr), request, target=f"the leader at {addr}")
        async with contextlib.aclosing(parts):  # a user who leaves a followed log ends the call at once
            async for part in parts:
                yield part

    def tunnel(self) -> backend.Tunnel:
        """A call to the leader that streams both ways. Raises as `_answering_leader`."""
        addr = self._answering_leader()
        return forward.GrpcTunnel(self._channel(addr), target=f"the leader at {addr}")

    def _answering_leader(self) -> str:
        """Where a leader is that answers this manager. Raises NotProposed, which is worth another try."""
        if self.node_id not in self._raft.members():  # it would be denied
            raise commit.NotProposed("this node is not a member of the managers' group yet: try again in a moment")
        addr = self.leader_addr()
        if not addr:
            raise commit.NotProposed(api.NO_LEADER)
        return addr

    def _channel(self, addr: str) -> grpc.aio.Channel:
        """A channel that is kept for the next request, renewed with the identity."""
        identity = self._identity()
        kept = self._channels.get(addr)
        if kept is None or kept[0] is not identity:
            kept = self._channels[addr] = (identity, self.dial(addr))
        return kept[1]

    # ---------------------------------------------------------------- ports

    def dial(
        self, addr: str, *, options: tls.Options = (), server_name: str = identities.MANAGER_NAME
    ) -> grpc.aio.Channel:
        """A channel to another manager's cluster port, as this node."""
        return tls.channel(self._identity(), addr, options=options, server_name=server_name)

    def _peer_of(self, context: Any) -> identities.Peer:
        return tls.peer_of(context, cluster_id=self._identity().cluster_id)

    def _member_of(self, context: Any) -> identities.Peer:
        """Managers that are one no more keep their certificate until it expires: what counts is the group."""
        peer = self._peer_of(context)
        if peer.node_id not in self._raft.members():
            raise errors.Denied(f"Permission denied: node {peer.node_id} is not one of the managers any more")
        return peer

    async def _serve(self, transport: grpc_transport.GrpcTransport, sessions: dispatcher.Dispatcher) -> None:
        cluster_id = self._identity().cluster_id
        ca = authority.Authority(state=self.store, committer=self._raft, time=self._clock, rng=self._rng)
        cluster = grpc.aio.server(options=list(tls.SERVER_OPTIONS))
        transport.register(cluster)
        dispatcher_pb2_grpc.add_DispatcherServicer_to_server(
            dispatcher_service.DispatcherServicer(sessions, peer_of=self._peer_of), cluster
        )
        ca_pb2_grpc.add_CAServicer_to_server(
            service.CAServicer(ca=ca, group=self._raft, dial=self.dial, cluster_id=cluster_id), cluster
        )
        ca_pb2_grpc.add_MembershipServicer_to_server(
            membership.MembershipServicer(
                state=self.store,
                committer=self._raft,
                group=self._raft,
                dial=self.dial,
                cluster_id=cluster_id,
                changing=self._changing,
            ),
            cluster,
        )
        ca_pb2_grpc.add_ForwardServicer_to_server(
            forward.ForwardServicer(self._front, peer_of=self._member_of), cluster
        )
        joining = grpc.aio.server(options=list(tls.SERVER_OPTIONS))
        ca_pb2_grpc.add_JoinServicer_to_server(service.JoinServicer(ca=ca, group=self._raft, dial=self.dial), joining)
        host, port = settings.split_addr(self._place.listen_addr, default_port=settings.CLUSTER_PORT)
        await self._listen(cluster, settings.join_addr(host, port), tls.server_credentials(self._identity))
        await self._listen(
            joining,
            settings.join_addr(host, port + settings.JOIN_PORT_OFFSET),
            tls.join_server_credentials(self._identity),
        )

    async def _listen(self, server: grpc.aio.Server, addr: str, credentials: grpc.ServerCredentials) -> None:
        try:
            server.add_secure_port(addr, credentials)
        except RuntimeError as error:
            raise errors.Unavailable(
                f"cannot listen on {addr}: is it taken by another process? Choose another with --listen-addr"
            ) from error
        await server.start()
        self._stack.push_async_callback(server.stop, STOP_GRACE_S)


def open_log(config: settings.Settings, identity: identities.Identity, *, rng: ids.Rng) -> raft_log.DurableLog:
    """This machine's log, not loaded yet, with the key that opens it.

    Raises Denied when that key does not open, FailedPrecondition when there is a log, or was one, and no key.
    """
    target = disk.OsDisk(config.raft_dir)
    mark = disk.OsMark(config.raft_mark)
    key = datakey.load(config.identity_dir, identity)
    if key is None and (target.names() or mark.is_set()):
        raise errors.FailedPrecondition(
            f"{config.identity_dir / datakey.FILE} is missing, and nothing else opens the log in {config.raft_dir}. "
            "Restore the whole state directory from one backup"
        )
    seal = datakey.RecordSeal(key or datakey.make(config.identity_dir, identity, rng=rng), rng)
    return raft_log.DurableLog(target, seal, mark=mark)


def remove_log(config: settings.Settings) -> None:
    """Removes this machine's log and the key that opens it; the next one is a new one. Blocking.

    The mark goes first: cut off after any of the steps, this can be repeated, and the next start is not refused.
    """
    disk.OsMark(config.raft_mark).clear()
    shutil.rmtree(config.raft_dir, ignore_errors=True)
    datakey.remove(config.identity_dir)


async def make_alone(
    config: settings.Settings, place: settings.Membership, identity: identities.Identity, *, rng: ids.Rng
) -> None:
    """Rewrites this machine's stopped log so that it is the only manager. Raises as rebuild.make_alone does."""

    def rewrite() -> rebuild.Rebuilt:
        opened = open_log(config, identity, rng=rng)
        try:
            return rebuild.make_alone(opened, node_id=identity.node_id, addr=place.advertise_addr)
        finally:
            opened.close()

    rebuilt = await asyncio.to_thread(rewrite)
    log.warning("manager.log_rebuilt", last_index=rebuilt.last_index, left_behind=sorted(rebuilt.others))
