"""The RPC edge of the certificate authority: the join port's Join and the cluster port's CA.

Any manager answers. One that does not lead passes the request to the leader over the cluster port, once and no
further. Owns nothing but the count of wrong tokens.
"""

import asyncio
from typing import Any, TypeAlias

import grpc.aio
import structlog
from typing_extensions import override

from manager.ca import attempts, authority
from manager.ca import group as groups
from skep import errors, pb
from skep.security import identity as identities
from skep.security import rpc_errors, tls
from skep.v1 import ca_pb2_grpc

log = structlog.get_logger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

RELAY_TIMEOUT_S = 15.0  # shorter than the joiner's own patience, so that it hears the reason


class JoinServicer(ca_pb2_grpc.JoinServicer):
    """For the join port: the caller shows no certificate."""

    def __init__(
        self,
        *,
        ca: authority.Authority,
        group: groups.Group,
        dial: tls.Dial,
        limit: attempts.AttemptLimit | None = None,
    ) -> None:
        self._ca = ca
        self._group = group
        self._dial = dial
        self._limit = limit or attempts.AttemptLimit()

    @override
    async def GetRootCA(self, request: pb.GetRootCARequest, context: Context) -> pb.GetRootCAResponse:
        """The root certificate; public."""
        async with rpc_errors.reported(context):
            return pb.GetRootCAResponse(cert_pem=self._ca.root_pem())

    @override
    async def IssueCertificate(
        self, request: pb.IssueCertificateRequest, context: Context
    ) -> pb.IssueCertificateResponse:
        """Lets a machine in that shows a valid token."""
        async with rpc_errors.reported(context):
            host = tls.host_of(context.peer())
            loop = asyncio.get_running_loop()
            wait_s = self._limit.wait_s(host, now=loop.time())
            if wait_s > 0:
                raise errors.Unavailable(f"too many attempts with a wrong join token: try again in {wait_s:.0f} s")
            try:
                if self._group.is_leader:
                    return await admit(self._ca, self._group, request)
                return await self._relay(request)
            except errors.Denied as error:
                self._limit.failed(host, now=loop.time())
                log.warning("ca.join_refused", host=host, reason=error.message)
                raise

    async def _relay(self, request: pb.IssueCertificateRequest) -> pb.IssueCertificateResponse:
        addr = groups.leader_addr(self._group)
        async with self._dial(addr) as channel:
            with rpc_errors.translated(f"the leader at {addr}"):
                return await ca_pb2_grpc.CAStub(channel).IssueForJoiner(request, timeout=RELAY_TIMEOUT_S)


class CAServicer(ca_pb2_grpc.CAServicer):
    """For the cluster port: the caller is a node of the cluster."""

    def __init__(self, *, ca: authority.Authority, group: groups.Group, dial: tls.Dial, cluster_id: str) -> None:
        self._ca = ca
        self._group = group
        self._dial = dial
        self._cluster_id = cluster_id

    @override
    async def RenewCertificate(
        self, request: pb.RenewCertificateRequest, context: Context
    ) -> pb.IssueCertificateResponse:
        """A fresh certificate for whoever calls, with the role the cluster gives it now."""
        async with rpc_errors.reported(context):
            peer = tls.peer_of(context, cluster_id=self._cluster_id)
            if self._group.is_leader:
                return _answer(await self._ca.renew(request.csr_pem, node_id=peer.node_id), self._group)
            addr = groups.leader_addr(self._group)
            relayed = pb.RenewForNodeRequest(node_id=peer.node_id, csr_pem=request.csr_pem)
            async with self._dial(addr) as channel:
                with rpc_errors.translated(f"the leader at {addr}"):
                    return await ca_pb2_grpc.CAStub(channel).RenewForNode(relayed, timeout=RELAY_TIMEOUT_S)

    @override
    async def IssueForJoiner(
        self, request: pb.IssueCertificateRequest, context: Context
    ) -> pb.IssueCertificateResponse:
        """What a follower's join port was asked."""
        async with rpc_errors.reported(context):
            self._check_relay(tls.peer_of(context, cluster_id=self._cluster_id))
            return await admit(self._ca, self._group, request)

    @override
    async def RenewForNode(self, request: pb.RenewForNodeRequest, context: Context) -> pb.IssueCertificateResponse:
        """What a follower's cluster port was asked, by the node that it names."""
        async with rpc_errors.reported(context):
            self._check_relay(tls.peer_of(context, cluster_id=self._cluster_id))
            return _answer(await self._ca.renew(request.csr_pem, node_id=request.node_id), self._group)

    def _check_relay(self, peer: identities.Peer) -> None:
        tls.require(peer, [pb.NODE_ROLE_MANAGER])
        if not self._group.is_leader:
            raise errors.Unavailable("the lead has just passed to another manager: try again")
        if peer.node_id not in self._group.members():
            raise errors.Denied(f"Permission denied: node {peer.node_id} is not one of the managers any more")


async def admit(
    ca: authority.Authority, group: groups.Group, request: pb.IssueCertificateRequest
) -> pb.IssueCertificateResponse:
    """Answers a joining machine, on the leader. Raises as Authority.issue."""
    issued = await ca.issue(
        request.csr_pem, token=request.token, availability=request.availability, hostname=request.hostname
    )
    return _answer(issued, group)


def _answer(issued: authority.Issued, group: groups.Group) -> pb.IssueCertificateResponse:
    return pb.IssueCertificateResponse(
        node_id=issued.node_id,
        cert_pem=issued.cert_pem,
        root_ca_pem=issued.root_pem,
        role=issued.role,
        managers=[addr for _, addr in sorted(group.members().items())],
        members=[pb.RaftMember(node_id=node_id, addr=addr) for node_id, addr in sorted(group.members().items())],
    )
