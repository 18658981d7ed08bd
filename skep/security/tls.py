"""TLS on every wire: credentials for servers and channels, and who is at the other end.

Two kinds of server: the cluster port, where both sides show a certificate of the cluster, and the join port, where only
the manager does. Servers take a callable that returns the present Identity, so a renewed certificate serves the next
handshake without a restart. A channel is bound to the identity it was made with: dial anew after a renewal.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeAlias
from urllib import parse

import grpc
import grpc.aio

from skep import errors, pb
from skep.security import identity as identities
from skep.security import keys

Current: TypeAlias = Callable[[], identities.Identity]
Options: TypeAlias = Sequence[tuple[str, Any]]

KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # an answer of the HTTP API or a batch of assignments; far above the usual
CONNECT_MS = 5_000  # one attempt to connect

CHANNEL_OPTIONS: Options = (
    ("grpc.enable_http_proxy", 0),  # the cluster's own traffic never takes a proxy meant for the web
    ("grpc.use_local_subchannel_pool", 1),  # a channel shares neither connection nor back-off with another
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # gRPC's own is two minutes: far too long for a peer that came back
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
)
SERVER_OPTIONS: Options = (
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not something to share
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),  # a server that was held up finds many at once, and must not hang up for it
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
)


def server_credentials(current: Current) -> grpc.ServerCredentials:
    """For the cluster port: whoever connects must show a certificate of this cluster. Use with SERVER_OPTIONS."""
    offered = Offered(current, demanding=True)
    return grpc.dynamic_ssl_server_credentials(
        offered.first,
        offered.renewed,  # type: ignore[arg-type]  # the stubs do not know that None means: as before
        require_client_authentication=True,
    )


def join_server_credentials(current: Current) -> grpc.ServerCredentials:
    """For the join port: the manager proves itself, the caller has nothing to show yet. Use with SERVER_OPTIONS."""
    offered = Offered(current, demanding=False)
    return grpc.dynamic_ssl_server_credentials(
        offered.first,
        offered.renewed,  # type: ignore[arg-type]  # the stubs do not know that None means: as before
        require_client_authentication=False,
    )


class Offered:
    """What a server shows in its handshakes. gRPC asks before each of them, from any of its threads.

    Only a renewed certificate may be answered with one: gRPC replaces what handshakes are made from even by an equal
    one, while other threads are using the old (grpc issue 36693), so a few hundred agents that came at once crashed it.
    """

    def __init__(self, current: Current, *, demanding: bool) -> None:
        """`demanding`: the caller has to show a certificate of the cluster."""
        self._current = current
        self._demanding = demanding
        self._shown = current()
        self.first = self._configuration(self._shown)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What is to be shown from now on; None when that is what was shown before."""
        identity = self._current()
        if identity is self._shown:
            return None
        self._shown = identity
        return self._configuration(identity)

    def _configuration(self, identity: identities.Identity) -> grpc.ServerCertificateConfiguration:
        root_pem = identity.root_pem if self._demanding else None
        pair = (identity.key_pem, identity.cert_pem)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=root_pem)


def channel(
    identity: identities.Identity,
    addr: str,
    *,
    options: Options = (),
    server_name: str = identities.MANAGER_NAME,
) -> grpc.aio.Channel:
    """A mutual-TLS channel to the cluster port at `addr` (host:port). Connects lazily; close it.

    The other side must be a manager of this cluster; with a node ID as `server_name`, exactly that node. `options`
    override CHANNEL_OPTIONS.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.root_pem, private_key=identity.key_pem, certificate_chain=identity.cert_pem
    )
    return grpc.aio.secure_channel(addr, credentials, _merged(options, server_name))


class Dial(Protocol):
    """Opens a channel to a cluster port, as `channel` does, with the identity of the moment; the caller closes it."""

    def __call__(self, addr: str, *, server_name: str = identities.MANAGER_NAME) -> grpc.aio.Channel: ...


def dialler(current: Current, *, options: Options = ()) -> Dial:
    """`channel` with the identity that `current` returns at the time of each call."""

    def dial(addr: str, *, server_name: str = identities.MANAGER_NAME) -> grpc.aio.Channel:
        return channel(current(), addr, options=options, server_name=server_name)

    return dial


def unauthenticated_channel(
    trusted_pem: bytes, addr: str, *, options: Options = (), server_name: str = identities.MANAGER_NAME
) -> grpc.aio.Channel:
    """A channel to the join port at `addr`, trusting only `trusted_pem`; this side shows no certificate."""
    credentials = grpc.ssl_channel_credentials(root_certificates=trusted_pem)
    return grpc.aio.secure_channel(addr, credentials, _merged(options, server_name))


def peer_of(context: grpc.aio.ServicerContext[Any, Any], *, cluster_id: str) -> identities.Peer:
    """Who is calling, from the certificate that TLS has verified.

    Raises Denied without a certificate (the join port), with one that is not a node's, or of another cluster.
    """
    found = list(context.auth_context().get("x509_pem_cert") or ())
    if not found:
        raise errors.Denied("this call needs a node certificate: connect to the cluster port with one")
    info = keys.inspect(found[0])
    if info.cluster_id != cluster_id:
        raise errors.Denied(f"Permission denied: node {info.node_id} belongs to another cluster")
    return identities.Peer(
        node_id=info.node_id, cluster_id=info.cluster_id, role=info.role, address=host_of(context.peer())
    )


def require(peer: identities.Peer, roles: Collection[pb.NodeRole.ValueType]) -> None:
    """Raises Denied unless the peer's certificate carries one of `roles`."""
    if peer.role not in roles:
        wanted = " or ".join(keys.role_name(role) for role in sorted(roles))
        raise errors.Denied(
            f"Permission denied: node {peer.node_id} is a {keys.role_name(peer.role)}, this call is for {wanted}"
        )


def host_of(peer: str) -> str:
    """The host of gRPC's `ipv4:10.0.0.1:4711` or `ipv6:%5B::1%5D:4711`; empty for anything else."""
    scheme, _, rest = parse.unquote(peer).partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")


def _merged(options: Options, server_name: str) -> list[tuple[str, Any]]:
    merged = dict(CHANNEL_OPTIONS) | dict(options)
    return [("grpc.ssl_target_name_override", server_name), *merged.items()]
