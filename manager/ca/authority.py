"""The cluster's certificate authority: who is let in, as what, and with which certificate.

Owns the rules and the objects they change (Cluster.root_ca, new Node objects). It knows no gRPC and no sockets. The
key that signs lives in the replicated store, so whoever leads can sign.
"""

import contextlib
import dataclasses

import structlog

from manager.store import commit, ops, store
from skep import clock, errors, ids, pb, stamps
from skep.security import identity as identities
from skep.security import keys, tokens

log = structlog.get_logger(__name__)

CLUSTER_NAME = "default"
TASK_HISTORY_LIMIT = 5
SNAPSHOT_INTERVAL_ENTRIES = 10_000
LOG_ENTRIES_FOR_SLOW_FOLLOWERS = 500
ELECTION_TICKS = 10
HEARTBEAT_TICKS = 1
HEARTBEAT_PERIOD_S = 5.0

HOSTNAME_CHARS_MAX = 253  # of a DNS name
COMMIT_ATTEMPTS = 5  # against other writers of the same object

REFUSED = "A valid join token is necessary to join this cluster"


@dataclasses.dataclass(frozen=True)
class Founding:
    """A cluster that does not exist yet: commit `ops` as its first transaction, and keep `identity` on disk."""

    identity: identities.Identity
    ops: list[pb.Op] = dataclasses.field(repr=False)  # the CA's key is among them


@dataclasses.dataclass(frozen=True)
class Issued:
    """A certificate that was just signed."""

    node_id: str
    role: pb.NodeRole.ValueType
    cert_pem: bytes
    root_pem: bytes


# ---------------------------------------------------------------- pure


def default_spec() -> pb.ClusterSpec:
    """The specification of a cluster whose maker had no wishes."""
    return pb.ClusterSpec(
        name=CLUSTER_NAME,
        orchestration=pb.ClusterSpec.Orchestration(task_history_retention_limit=TASK_HISTORY_LIMIT),
        raft=pb.ClusterSpec.Raft(
            snapshot_interval=SNAPSHOT_INTERVAL_ENTRIES,
            log_entries_for_slow_followers=LOG_ENTRIES_FOR_SLOW_FOLLOWERS,
            election_tick=ELECTION_TICKS,
            heartbeat_tick=HEARTBEAT_TICKS,
        ),
        dispatcher=pb.ClusterSpec.Dispatcher(heartbeat_period=stamps.to_nanos(HEARTBEAT_PERIOD_S)),
        ca=pb.ClusterSpec.CAConfig(node_cert_expiry=stamps.to_nanos(keys.NODE_LIFETIME_S)),
        task_defaults=pb.ClusterSpec.TaskDefaults(),
        encryption=pb.ClusterSpec.EncryptionConfig(),
    )


def complete_spec(wished: pb.ClusterSpec) -> pb.ClusterSpec:
    """`wished` with defaults where it is silent. Raises Invalid for values no cluster can have."""
    spec = default_spec()
    spec.MergeFrom(wished)
    check_spec(spec)
    return spec


def check_spec(spec: pb.ClusterSpec) -> None:
    """Raises Invalid when the specification cannot be honoured."""
    if spec.dispatcher.heartbeat_period < 0:
        raise errors.Invalid("heartbeat time period cannot be a negative duration")
    if spec.ca.node_cert_expiry and stamps.from_nanos(spec.ca.node_cert_expiry) < keys.NODE_LIFETIME_S_MIN:
        raise errors.Invalid("minimum certificate expiry time is: 1h0m0s")


def found(
    *,
    hostname: str,
    addr: str,
    now: float,
    rng: ids.Rng,
    spec: pb.ClusterSpec | None = None,
    availability: pb.NodeAvailability.ValueType = pb.NODE_AVAILABILITY_ACTIVE,
) -> Founding:
    """A new cluster with this machine as its first manager.

    `addr` is its advertised cluster address (host:port); `rng` must be the system's, for the token secrets come from
    it. Raises Invalid for a specification no cluster can have.
    """
    complete = complete_spec(spec or pb.ClusterSpec())
    root = keys.new_root(now=now)
    cluster_id = ids.new_id(rng)
    node_id = ids.new_id(rng)
    key_pem = keys.new_key()
    cert_pem = keys.sign_node(
        keys.new_csr(key_pem),
        root=root,
        node_id=node_id,
        cluster_id=cluster_id,
        role=pb.NODE_ROLE_MANAGER,
        now=now,
        lifetime_s=stamps.from_nanos(complete.ca.node_cert_expiry),
    )
    return Founding(
        identity=keys.verified(key_pem=key_pem, cert_pem=cert_pem, root_pem=root.cert_pem, now=now),
        ops=bootstrap_ops(
            cluster_id=cluster_id,
            root=root,
            spec=complete,
            node_id=node_id,
            hostname=hostname,
            addr=addr,
            availability=availability,
            rng=rng,
        ),
    )


def bootstrap_ops(
    *,
    cluster_id: str,
    root: keys.Root,
    spec: pb.ClusterSpec,
    node_id: str,
    hostname: str,
    addr: str,
    availability: pb.NodeAvailability.ValueType,
    rng: ids.Rng,
) -> list[pb.Op]:
    """The first transaction of a cluster: the Cluster object with fresh token secrets, and its first manager."""
    cluster = pb.Cluster(
        id=cluster_id,
        spec=complete_spec(spec),
        root_ca=pb.RootCA(
            cert_pem=root.cert_pem,
            key_pem=root.key_pem,
            worker_secret=tokens.new_secret(rng),
            manager_secret=tokens.new_secret(rng),
        ),
    )
    node = new_node(node_id, role=pb.NODE_ROLE_MANAGER, hostname=hostname, availability=availability)
    node.manager.addr = addr
    return [ops.create(cluster), ops.create(node)]


def new_node(
    node_id: str, *, role: pb.NodeRole.ValueType, hostname: str, availability: pb.NodeAvailability.ValueType
) -> pb.Node:
    """The object of a machine that has been let in and has not reported yet."""
    return pb.Node(
        id=node_id,
        spec=pb.NodeSpec(role=role, availability=availability),
        description=pb.NodeDescription(hostname=hostname[:HOSTNAME_CHARS_MAX]),
        status=pb.NodeStatus(state=pb.NODE_STATE_UNKNOWN),
        role=role,
    )


def join_tokens(cluster: pb.Cluster) -> tuple[str, str]:
    """(worker token, manager token)."""
    root_ca = cluster.root_ca
    return (
        tokens.make(root_pem=root_ca.cert_pem, secret=root_ca.worker_secret),
        tokens.make(root_pem=root_ca.cert_pem, secret=root_ca.manager_secret),
    )


def rotate_token_op(cluster: pb.Cluster, *, role: pb.NodeRole.ValueType, rng: ids.Rng) -> pb.Op:
    """Gives the role's join token a new secret; the old token no longer admits anybody."""
    changed = pb.Cluster()
    changed.CopyFrom(cluster)
    set_secret(changed, role=role, rng=rng)
    return ops.update(changed)


def set_secret(cluster: pb.Cluster, *, role: pb.NodeRole.ValueType, rng: ids.Rng) -> None:
    """Replaces the role's secret in a cluster object of the caller's own (not one from the store)."""
    secret = tokens.new_secret(rng)
    if role == pb.NODE_ROLE_MANAGER:
        cluster.root_ca.manager_secret = secret
    else:
        cluster.root_ca.worker_secret = secret


def role_of(token: str, root_ca: pb.RootCA) -> pb.NodeRole.ValueType:
    """The role that a token admits to. Raises Denied for one that admits to nothing, never saying why."""
    try:
        parsed = tokens.parse(token)
    except errors.Invalid:
        raise errors.Denied(REFUSED) from None
    # Every comparison is made whatever the others say: how long it takes tells nothing.
    known = parsed.is_for(root_ca.cert_pem)
    manager, worker = parsed.opens(root_ca.manager_secret), parsed.opens(root_ca.worker_secret)
    if known and manager:
        return pb.NODE_ROLE_MANAGER
    if known and worker:
        return pb.NODE_ROLE_WORKER
    raise errors.Denied(REFUSED)


def node_id_for(csr_pem: bytes) -> str:
    """The ID of the node that joins with this request's key: the same for a retry, so a lost answer leaves no ghost.

    Raises Invalid when the request is not signed by its own key.
    """
    return ids.base36(keys.fingerprint(keys.request_key(csr_pem)), width=ids.ID_LENGTH)[-ids.ID_LENGTH :]


# ---------------------------------------------------------------- on the leader


class Authority:
    """Issues certificates from the store's CA. Writes go through the Committer, so they work on the leader only."""

    def __init__(self, *, state: store.Store, committer: commit.Committer, time: clock.Clock, rng: ids.Rng) -> None:
        self._store = state
        self._committer = committer
        self._clock = time
        self._rng = rng

    def root_pem(self) -> bytes:
        """The root certificate. Raises Unavailable before the cluster is set up."""
        return self._store.view().cluster.root_ca.cert_pem

    async def issue(
        self, csr_pem: bytes, *, token: str, availability: pb.NodeAvailability.ValueType, hostname: str
    ) -> Issued:
        """Lets a machine in: makes its Node object and signs its first certificate.

        Raises Denied for a token that admits to nothing, Invalid for a bad request, Unavailable without a leader here.
        """
        await self._committer.barrier()  # a token that was rotated away must not be judged by an old store
        cluster = self._store.view().cluster
        role = role_of(token, cluster.root_ca)
        if availability not in pb.NodeAvailability.values():
            raise errors.Invalid(f"unknown node availability {availability}")
        if not hostname.isprintable():
            raise errors.Invalid("the machine's hostname holds characters that cannot be printed")
        node_id = node_id_for(csr_pem)
        if self._store.view().nodes.get(node_id) is None:
            node = new_node(node_id, role=role, hostname=hostname, availability=availability)
            # The same machine asking twice at once: the other call has made the object.
            with contextlib.suppress(errors.AlreadyExists):
                await self._committer.commit([ops.create(node)])
                log.info("ca.admitted", node=node_id, role=keys.role_name(role), hostname=node.description.hostname)
        known = self._store.view().nodes.get(node_id)
        if known is None:
            raise errors.Denied(f"Permission denied: node {node_id} was removed from the cluster")
        if known.role != role:
            raise errors.FailedPrecondition(
                f"node {node_id} has joined as {keys.role_name(known.role)} already: leave first, then join anew"
            )
        return self._sign(cluster, csr_pem, node_id=node_id, role=role)

    async def renew(self, csr_pem: bytes, *, node_id: str) -> Issued:
        """A fresh certificate for a node of the cluster, with the role it has now.

        Raises Denied when the node was removed, Invalid for a bad request, Unavailable without a leader here.
        """
        await self._committer.barrier()
        view = self._store.view()
        node = view.nodes.get(node_id)
        if node is None:
            raise errors.Denied(f"Permission denied: node {node_id} was removed from the cluster")
        issued = self._sign(view.cluster, csr_pem, node_id=node_id, role=node.role)
        log.info("ca.renewed", node=node_id, role=keys.role_name(issued.role))
        return issued

    async def rotate(self, role: pb.NodeRole.ValueType) -> None:
        """Replaces the role's join token. Raises Unavailable without a leader here."""
        for attempt in range(1, COMMIT_ATTEMPTS + 1):
            op = rotate_token_op(self._store.view().cluster, role=role, rng=self._rng)
            try:
                await self._committer.commit([op])
            except errors.Conflict:
                if attempt == COMMIT_ATTEMPTS:
                    raise
            else:
                log.info("ca.token_rotated", role=keys.role_name(role))
                return

    def _sign(self, cluster: pb.Cluster, csr_pem: bytes, *, node_id: str, role: pb.NodeRole.ValueType) -> Issued:
        root_ca = cluster.root_ca
        cert_pem = keys.sign_node(
            csr_pem,
            root=keys.Root(cert_pem=root_ca.cert_pem, key_pem=root_ca.key_pem),
            node_id=node_id,
            cluster_id=cluster.id,
            role=role,
            now=self._clock.now(),
            lifetime_s=stamps.from_nanos(cluster.spec.ca.node_cert_expiry) or keys.NODE_LIFETIME_S,
        )
        return Issued(node_id=node_id, role=role, cert_pem=cert_pem, root_pem=root_ca.cert_pem)
