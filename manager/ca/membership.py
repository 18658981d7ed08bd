"""Membership of the managers' group, at its RPC edge: a manager comes in, a node of either role leaves for good.

Only the leader acts; any other manager answers with the leader's address. What the group itself guards (one change at a
time, the quorum) stays with the group.
"""

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc.aio
import structlog
from typing_extensions import override

from manager.ca import group as groups
from manager.store import commit, ops, store
from skep import errors, pb
from skep.security import identity as identities
from skep.security import rpc_errors, tls
from skep.v1 import ca_pb2_grpc

log = structlog.get_logger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

DIAL_BACK_TIMEOUT_S = 5.0
COMMIT_ATTEMPTS = 5  # against other writers of the same node
ADDR_CHARS_MAX = 300

LEFT = "node left the swarm"


class MembershipServicer(ca_pb2_grpc.MembershipServicer):
    """For the cluster port."""

    def __init__(
        self,
        *,
        state: store.Store,
        committer: commit.Committer,
        group: groups.Group,
        dial: tls.Dial,
        cluster_id: str,
        changing: asyncio.Lock | None = None,
    ) -> None:
        """`changing` is shared by all who change the group: it takes one change at a time, the others wait there."""
        self._store = state
        self._committer = committer
        self._group = group
        self._dial = dial
        self._cluster_id = cluster_id
        self._changing = changing or asyncio.Lock()

    @override
    async def JoinRaft(self, request: pb.JoinRaftRequest, context: Context) -> pb.JoinRaftResponse:
        """Makes the calling manager a member, once the leader has reached it at the address it gives."""
        async with rpc_errors.reported(context):
            peer = tls.peer_of(context, cluster_id=self._cluster_id)
            tls.require(peer, [pb.NODE_ROLE_MANAGER])
            if not self._group.is_leader:
                return pb.JoinRaftResponse(leader_addr=groups.leader_addr(self._group))
            await self._committer.barrier()
            self._check_manager(peer)
            addr = advertised(request.addr, observed=peer.address)
            await self._dial_back(addr, node_id=peer.node_id)
            await self._add(peer.node_id, addr)
            await self._change(peer.node_id, lambda node: _set_addr(node, addr))
            return pb.JoinRaftResponse(
                members=[pb.RaftMember(node_id=node_id, addr=at) for node_id, at in sorted(self._members(peer, addr))]
            )

    @override
    async def LeaveCluster(self, request: pb.LeaveClusterRequest, context: Context) -> pb.LeaveClusterResponse:
        """Takes the calling node out: of the group if it is a member, then out of work."""
        async with rpc_errors.reported(context):
            peer = tls.peer_of(context, cluster_id=self._cluster_id)
            if not self._group.is_leader:
                return pb.LeaveClusterResponse(leader_addr=groups.leader_addr(self._group))
            await self._committer.barrier()
            if peer.node_id in self._group.members():
                if peer.node_id == self._group.leader_id:
                    return pb.LeaveClusterResponse(leader_addr=await self._hand_over())
                await self._remove(peer.node_id)
            await self._change(peer.node_id, _set_left)
            log.info("membership.left", node=peer.node_id)
            return pb.LeaveClusterResponse()

    async def _add(self, node_id: str, addr: str) -> None:
        async with self._changing:
            if self._group.members().get(node_id) == addr:
                return
            try:
                await self._group.add_member(node_id, addr)
            except errors.FailedPrecondition as error:
                raise errors.Unavailable(error.message) from None  # another change is under way: that passes
            log.info("membership.joined", node=node_id, addr=addr)

    async def _remove(self, node_id: str) -> None:
        async with self._changing:
            if node_id in self._group.members():
                await self._group.remove_member(node_id)

    def _members(self, peer: identities.Peer, addr: str) -> list[tuple[str, str]]:
        return list((self._group.members() | {peer.node_id: addr}).items())

    def _check_manager(self, peer: identities.Peer) -> None:
        """The certificate says manager; the cluster must still say so too."""
        node = self._store.view().nodes.get(peer.node_id)
        if node is None:
            raise errors.Denied(f"Permission denied: node {peer.node_id} was removed from the cluster")
        if pb.NODE_ROLE_WORKER in (node.role, node.spec.role):
            raise errors.Denied(f"Permission denied: node {peer.node_id} is not a manager any more")

    async def _dial_back(self, addr: str, *, node_id: str) -> None:
        """A member that the others cannot reach would cost the group its quorum: try first, and insist on the name."""
        async with self._dial(addr, server_name=node_id) as channel:
            try:
                async with asyncio.timeout(DIAL_BACK_TIMEOUT_S):
                    await channel.channel_ready()
            except TimeoutError:
                raise errors.FailedPrecondition(
                    "could not connect to prospective new cluster member using its advertised address: no answer from "
                    f"node {node_id} at {addr} within {DIAL_BACK_TIMEOUT_S:.0f} s. Give the right one with "
                    "--advertise-addr, and let the managers through the firewall."
                ) from None

    async def _hand_over(self) -> str:
        """Passes the lead on and returns the new leader's address."""
        own_id = self._group.leader_id
        if len(self._group.members()) == 1:
            raise errors.FailedPrecondition(
                "this node is the last manager: if it leaves, all state of the swarm is gone. Leave with --force to "
                "accept that."
            )
        await self._group.transfer_leadership()
        if self._group.leader_id == own_id:
            raise errors.Unavailable("the lead is being handed over: try again in a moment")
        return groups.leader_addr(self._group)

    async def _change(self, node_id: str, change: Callable[[pb.Node], None]) -> None:
        """Changes the node's object; a node that is gone needs no change."""
        for attempt in range(1, COMMIT_ATTEMPTS + 1):
            stored = self._store.view().nodes.get(node_id)
            if stored is None:
                return
            node = pb.Node()
            node.CopyFrom(stored)
            change(node)
            if node == stored:
                return
            try:
                await self._committer.commit([ops.update(node)])
            except errors.Conflict:
                if attempt == COMMIT_ATTEMPTS:
                    raise
            else:
                return


def advertised(addr: str, *, observed: str) -> str:
    """The address (host:port) to reach the caller at: an unspecified host becomes the one it was seen from.

    Raises Invalid for what is not an address.
    """
    host, _, port = addr.rpartition(":")
    if len(addr) > ADDR_CHARS_MAX or not addr.isprintable() or not port.isascii() or not port.isdigit():
        raise errors.Invalid("the advertised address must be HOST:PORT")
    host = host.strip("[]")
    if not host or _unspecified(host):
        host = observed
    if not host:
        raise errors.Invalid("the advertised address has no host, and the caller's own cannot be seen")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _set_addr(node: pb.Node, addr: str) -> None:
    node.manager.addr = addr


def _set_left(node: pb.Node) -> None:
    """Its tasks are replaced, and `node rm` will take it, as a worker that is down."""
    node.status.state = pb.NODE_STATE_DOWN
    node.status.message = LEFT
    node.status.ClearField("since")  # = since this very change
    node.role = pb.NODE_ROLE_WORKER
    node.spec.role = pb.NODE_ROLE_WORKER
    node.ClearField("manager")
