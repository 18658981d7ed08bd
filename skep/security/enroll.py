"""The joining machine's side: from a token and some addresses to an identity.

The order is what keeps it safe: the root certificate is fetched without trusting anybody, its digest is compared with
the token's, and only then does the token leave this machine, over TLS that is verified with that root.
"""

import asyncio
import dataclasses
import os
import socket
import ssl
from collections.abc import Sequence

import grpc.aio

from skep import clock, errors, pb
from skep.security import identity as identities
from skep.security import keys, rpc_errors, tls, tokens
from skep.v1 import ca_pb2_grpc

CLUSTER_PORT = 2377  # default; mutual TLS
JOIN_PORT = 2378  # default: one above the cluster port
PORT_MAX = 65_535
CONNECT_TIMEOUT_S = 5.0  # to reach one address and see its certificate
CALL_TIMEOUT_S = 20.0  # the leader commits the new node before it answers
ADDRS_MAX = 32  # tried in turn; more than any cluster has managers


@dataclasses.dataclass(frozen=True)
class Enrolled:
    """A new member of the cluster."""

    identity: identities.Identity
    managers: tuple[str, ...]  # cluster addresses, host:port
    members: dict[str, str]  # cluster address by node ID of the managers


async def enroll(
    addrs: Sequence[str],
    *,
    token: str,
    hostname: str,
    time: clock.Clock,
    availability: pb.NodeAvailability.ValueType = pb.NODE_AVAILABILITY_ACTIVE,
) -> Enrolled:
    """Asks the managers' join ports at `addrs` (host:port), one after the other, to let this machine in.

    Raises Invalid for a malformed token or address, Denied when the token is refused or belongs to another cluster,
    FailedPrecondition when an address is a cluster port, and Unavailable when none answers: then simply try again.
    """
    wanted = tokens.parse(token)
    if not addrs:
        raise errors.Invalid("no address of a manager was given to join")
    key_pem = keys.new_key()  # one key for all attempts: the cluster recognises a retry by it
    failures: list[errors.SkepError] = []
    for addr in [_with_port(each) for each in addrs[:ADDRS_MAX]]:
        try:
            root_pem = await fetch_root(addr)
            _compare(wanted, root_pem, addr=addr)
            return await _issue(
                addr,
                root_pem=root_pem,
                key_pem=key_pem,
                time=time,
                request=pb.IssueCertificateRequest(
                    csr_pem=keys.new_csr(key_pem), token=token.strip(), availability=availability, hostname=hostname
                ),
            )
        except (errors.Unavailable, _WrongCluster, _NotJoinPort) as error:
            failures.append(error)
    raise _summary(failures)


async def fetch_root(addr: str) -> bytes:
    """The root certificate (PEM) that the join port at `addr` presents. Nothing vouches for it: compare its digest.

    Raises Unavailable naming the address when it is not reached, FailedPrecondition when it is not a join port.
    """
    leaf_pem = await _server_certificate(addr)
    async with tls.unauthenticated_channel(leaf_pem, addr) as channel:
        with rpc_errors.translated(addr):
            answer = await ca_pb2_grpc.JoinStub(channel).GetRootCA(pb.GetRootCARequest(), timeout=CONNECT_TIMEOUT_S)
    return answer.cert_pem


async def _server_certificate(addr: str) -> bytes:
    """The certificate (PEM) of whoever listens at `addr`, unverified.

    gRPC cannot connect without something to trust, so this one handshake is made with the ssl module. It also tells the
    two ports apart: a cluster port hangs up on a caller without a certificate before it has said a word of HTTP/2.
    """
    host, port = _split(addr)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    leaf: bytes | None = None
    greeting = b""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=identities.MANAGER_NAME
            )
            leaf = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            greeting = await reader.read(1)
    except ssl.SSLError as error:
        if leaf is None:
            reason = (error.reason or "TLS failed").replace("_", " ").lower()
            raise errors.Unavailable(f"no skep manager answers at {addr}: {reason}") from None
    except TimeoutError:
        if leaf is None:
            raise errors.Unavailable(f"cannot reach {addr}: it did not answer in time") from None
    except OSError as error:
        if leaf is None:
            raise errors.Unavailable(f"cannot reach {addr}: {_reason(error)}") from None
    finally:
        if writer is not None:
            writer.transport.abort()
    if leaf is None:
        raise errors.Unavailable(f"no skep manager answers at {addr}: it shows no certificate")
    if not greeting:
        raise _NotJoinPort(addr)
    return ssl.DER_cert_to_PEM_cert(leaf).encode()


async def _issue(
    addr: str, *, root_pem: bytes, key_pem: bytes, time: clock.Clock, request: pb.IssueCertificateRequest
) -> Enrolled:
    async with tls.unauthenticated_channel(root_pem, addr) as channel:
        with rpc_errors.translated(addr):
            answer = await ca_pb2_grpc.JoinStub(channel).IssueCertificate(request, timeout=CALL_TIMEOUT_S)
    identity = keys.verified(key_pem=key_pem, cert_pem=answer.cert_pem, root_pem=root_pem, now=time.now())
    members = {member.node_id: member.addr for member in answer.members}
    return Enrolled(identity=identity, managers=tuple(answer.managers), members=members)


async def renew(identity: identities.Identity, channel: grpc.aio.Channel, *, time: clock.Clock) -> Enrolled:
    """A fresh identity, with a new key, for the same node: its role is the one the cluster gives it now.

    The managers come along: a node that has just been made one must know the others.

    `channel` leads to any manager's cluster port. Raises Denied when the node is no longer in the cluster and
    Unavailable when there is no leader.
    """
    key_pem = keys.new_key()
    with rpc_errors.translated("the manager"):
        answer = await ca_pb2_grpc.CAStub(channel).RenewCertificate(
            pb.RenewCertificateRequest(csr_pem=keys.new_csr(key_pem)), timeout=CALL_TIMEOUT_S
        )
    fresh = keys.verified(key_pem=key_pem, cert_pem=answer.cert_pem, root_pem=identity.root_pem, now=time.now())
    if (fresh.node_id, fresh.cluster_id) != (identity.node_id, identity.cluster_id):
        raise errors.Denied(f"asked for a certificate of node {identity.node_id}, was given one of {fresh.node_id}")
    members = {member.node_id: member.addr for member in answer.members}
    return Enrolled(identity=fresh, managers=tuple(answer.managers), members=members)


class _WrongCluster(errors.Denied):
    """The address belongs to another cluster than the token; another address may not."""


class _NotJoinPort(errors.FailedPrecondition):
    """The address is a manager's cluster port."""

    def __init__(self, addr: str) -> None:
        host, port = _split(addr)
        shown = f"[{host}]" if ":" in host else host
        super().__init__(
            f"{addr} wants a certificate from whoever connects: it looks like a manager's cluster port. Machines join "
            f"through the join port, by default the next one up: try {shown}:{port + 1}"
        )


def _compare(token: tokens.Token, root_pem: bytes, *, addr: str) -> None:
    try:
        same = token.is_for(root_pem)
    except errors.Invalid:
        same = False
    if not same:
        raise _WrongCluster(
            f"the token's digest does not match the certificate authority at {addr}: "
            "wrong cluster or someone in between"
        )


def _summary(failures: Sequence[errors.SkepError]) -> errors.SkepError:
    """One error for all attempts: an answer that refuses says more than an address that does not answer."""
    for kind in (errors.Denied, errors.FailedPrecondition, errors.Unavailable):
        telling = [error.message for error in failures if isinstance(error, kind)]
        if telling:
            return kind("; ".join(dict.fromkeys(telling)))
    raise errors.Bug("no attempt to join failed, and none succeeded")


def _reason(error: OSError) -> str:
    """The cause in plain words; asyncio's own text repeats the address as a tuple."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno).lower()


def _with_port(addr: str) -> str:
    """`addr` as HOST:PORT; the default join port is added to a bare host."""
    bare = ":" not in addr or (addr.startswith("[") and addr.endswith("]"))
    full = f"{addr}:{JOIN_PORT}" if bare else addr
    _split(full)
    return full


def _split(addr: str) -> tuple[str, int]:
    host, _, port = addr.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= PORT_MAX:
        raise errors.Invalid(f"{addr!r} is not an address: it must be HOST:PORT")
    return host.strip("[]"), int(port)
