"""Links to other managers over gRPC and mutual TLS. Moves frames; looks into none.

Every manager dials every other and sends on the stream it dialled. Who is at the other end of an accepted stream is
read from its certificate, never from a message: a manager's role and an ID that the configuration knows. A stranger
is told the committed configuration, so that a removed manager learns of its removal.
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import structlog
from typing_extensions import override

from manager.raft import transport
from skep import errors, pb
from skep.security import identity
from skep.v1 import raft_pb2_grpc

log = structlog.get_logger(__name__)

# For the channels that `dial` makes: a peer that comes back is found at once, and no frame exceeds the default limit.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
TO_KEY = "skep-to"  # call metadata: the manager that is meant
CONNECT_TIMEOUT_S = 3.0
ACK_PERIOD_S = 1.0  # the accepting side says that it is still there
ACK_TIMEOUT_S = 4.0  # without that the link is given up: TCP alone would take minutes to notice a silent machine
REDIAL_MIN_S = 0.1
REDIAL_MAX_S = 1.0
QUEUE_BYTES_MAX = 24 << 20  # frames waiting for one peer: above what replication keeps in flight; more are dropped


class GrpcTransport:
    """The Transport of real managers."""

    def __init__(
        self,
        *,
        node_id: str,
        dial: Callable[[str], grpc.aio.Channel],
        peer_of: Callable[[Any], identity.Peer],
    ) -> None:
        """`dial` makes a channel to an address; `peer_of` reads the caller's identity from a servicer's context."""
        self._node_id = node_id
        self._dial = dial
        self._peer_of = peer_of
        self._handler: transport.Handler | None = None
        self._peers: dict[str, str] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._outgoing: dict[str, _Outgoing] = {}
        self._incoming: dict[str, asyncio.Future[None]] = {}  # done: the link is to be closed
        self.dropped_frames = 0

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the Raft service to a server that has not been started."""
        raft_pb2_grpc.add_RaftServicer_to_server(_Servicer(self), server)

    async def start(self, handler: transport.Handler) -> None:
        self._handler = handler

    def set_peers(self, peers: Mapping[str, str]) -> None:
        loop = asyncio.get_running_loop()
        for peer in list(self._dialling):
            if peers.get(peer) != self._peers.get(peer):
                self._dialling.pop(peer).cancel()
        for peer in list(self._incoming):
            if peer not in peers:
                _close(self._incoming.pop(peer))
        self._peers = dict(peers)
        for peer, addr in self._peers.items():
            if peer not in self._dialling:
                self._dialling[peer] = loop.create_task(self._keep_dialling(peer, addr), name=f"raft link {peer}")

    def send(self, peer: str, frame: pb.RaftFrame) -> None:
        link = self._outgoing.get(peer)
        if link is None or not link.put(frame):
            self.dropped_frames += 1

    async def stop(self) -> None:
        tasks = list(self._dialling.values())
        self.set_peers({})
        self._handler = None
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---------------------------------------------------------------- dialling

    async def _keep_dialling(self, peer: str, addr: str) -> None:
        delay_s = REDIAL_MIN_S
        while True:
            try:
                if await self._link(peer, addr):
                    delay_s = REDIAL_MIN_S
            except (grpc.RpcError, OSError, TimeoutError, asyncio.InvalidStateError, errors.SkepError) as error:
                log.debug("raft.link_failed", peer=peer, addr=addr, reason=type(error).__name__)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, REDIAL_MAX_S)

    async def _link(self, peer: str, addr: str) -> bool:
        """Dials, sends until the link breaks, and says whether there was one."""
        channel = self._dial(addr)
        try:
            stub: raft_pb2_grpc.RaftAsyncStub = raft_pb2_grpc.RaftStub(channel)
            call = stub.Link(metadata=((TO_KEY, peer),))
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    first = await call.read()
                if not self._accepted(peer, first):
                    return False
                await self._run_link(peer, addr, call)
            finally:
                call.cancel()
        finally:
            await channel.close()
        return True

    async def _run_link(self, peer: str, addr: str, call: Any) -> None:
        link = self._outgoing[peer] = _Outgoing()
        sender = asyncio.create_task(link.pump(call))
        listener = asyncio.create_task(self._listen(peer, call))
        log.info("raft.link_up", peer=peer, addr=addr)
        if self._handler is not None:
            self._handler.link_changed(peer, up=True)
        try:
            await asyncio.wait({sender, listener}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sender.cancel()
            listener.cancel()
            if self._outgoing.get(peer) is link:
                del self._outgoing[peer]
                log.info("raft.link_down", peer=peer, addr=addr)
                if self._handler is not None:
                    self._handler.link_changed(peer, up=False)
            await asyncio.gather(sender, listener, return_exceptions=True)

    async def _listen(self, peer: str, call: Any) -> None:
        while True:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                ack = await call.read()
            if not self._accepted(peer, ack):
                return

    def _accepted(self, peer: str, ack: Any) -> bool:
        if not isinstance(ack, pb.RaftAck):  # the end of the stream
            return False
        if not ack.accepted and self._handler is not None:
            self._handler.refused(peer, ack.configuration)
        return ack.accepted

    # ---------------------------------------------------------------- accepting

    async def serve(self, frames: AsyncIterator[pb.RaftFrame], context: Any) -> None:
        """One accepted stream, from its admission to its end."""
        caller = await self._admit(context)
        if caller.node_id not in self._peers or self._handler is None:
            known = self._handler.committed_configuration() if self._handler is not None else None
            await context.write(pb.RaftAck(accepted=False, configuration=known))
            return
        peer = caller.node_id
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if peer in self._incoming:
            _close(self._incoming[peer])  # it has dialled anew; the old stream is dead
        self._incoming[peer] = closed
        await context.write(pb.RaftAck(accepted=True))
        receiver = asyncio.create_task(self._receive(peer, frames, closed))
        try:
            while not receiver.done() and not closed.done():
                done, _ = await asyncio.wait(
                    {receiver, closed}, timeout=ACK_PERIOD_S, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    await context.write(pb.RaftAck(accepted=True))
        finally:
            receiver.cancel()
            if self._incoming.get(peer) is closed:
                del self._incoming[peer]
            await asyncio.gather(receiver, return_exceptions=True)

    async def _receive(self, peer: str, frames: AsyncIterator[pb.RaftFrame], closed: "asyncio.Future[None]") -> None:
        async for frame in frames:
            if closed.done() or self._handler is None:
                return
            self._handler.frame_received(peer, frame)

    async def _admit(self, context: Any) -> identity.Peer:
        try:
            caller = self._peer_of(context)
        except errors.Denied as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message)
            raise
        if caller.role != pb.NODE_ROLE_MANAGER:
            log.warning("raft.caller_refused", caller=caller.node_id, reason="not a manager")
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "managers only")
        meant = dict(context.invocation_metadata() or ()).get(TO_KEY, "")
        if meant != self._node_id:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this is not the manager {meant}")
        return caller


class _Outgoing:
    """Frames for one peer, in order."""

    def __init__(self) -> None:
        self._frames: collections.deque[tuple[pb.RaftFrame, int]] = collections.deque()
        self._size_bytes = 0
        self._filled = asyncio.Event()

    def put(self, frame: pb.RaftFrame) -> bool:
        """False when too much is waiting: the peer is too slow, and what it lacks will be sent again."""
        size_bytes = frame.ByteSize()
        if self._frames and self._size_bytes + size_bytes > QUEUE_BYTES_MAX:
            return False
        self._frames.append((frame, size_bytes))
        self._size_bytes += size_bytes
        self._filled.set()
        return True

    async def pump(self, call: Any) -> None:
        """Writes frames until the link breaks."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._frames:
                frame, size_bytes = self._frames.popleft()
                self._size_bytes -= size_bytes
                await call.write(frame)


class _Servicer(raft_pb2_grpc.RaftServicer):
    def __init__(self, owner: GrpcTransport) -> None:
        self._owner = owner

    @override
    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """The coroutine form of a gRPC stream: answers are written to the context."""
        await self._owner.serve(request_iterator, context)


def _close(link: "asyncio.Future[None]") -> None:
    if not link.done():
        link.set_result(None)
