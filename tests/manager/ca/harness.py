"""Managers on loopback with real TLS on both ports. They share one store; Raft is stood in for by a plain object."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import grpc.aio
from typing_extensions import override

from manager.ca import attempts, authority, membership, service
from manager.store import commit, store, views
from manager.store import ops as store_ops
from skep import clock, errors, ids, pb, stamps
from skep.security import identity as identities
from skep.security import keys, tls
from skep.v1 import ca_pb2_grpc

T = TypeVar("T")
TIME = clock.SystemClock()  # TLS itself looks at the machine's clock


@dataclasses.dataclass
class Shared:
    """What the managers agree on."""

    state: store.Store
    leader_id: str
    members: dict[str, str]
    transfers_to: str = ""
    busy: bool = False  # a change of the members is under way


class FakeGroup:
    """One manager's view of the group; implements manager.ca.group.Group."""

    def __init__(self, shared: Shared, own_id: str) -> None:
        self.shared = shared
        self._own_id = own_id

    @property
    def is_leader(self) -> bool:
        return self.shared.leader_id == self._own_id

    @property
    def leader_id(self) -> str:
        return self.shared.leader_id

    def members(self) -> dict[str, str]:
        return dict(self.shared.members)

    async def add_member(self, node_id: str, addr: str) -> None:
        if self.shared.busy:
            raise errors.FailedPrecondition("another change is under way")
        self.shared.busy = True
        try:
            await asyncio.sleep(0.02)
            self.shared.members[node_id] = addr
        finally:
            self.shared.busy = False

    async def remove_member(self, node_id: str) -> None:
        del self.shared.members[node_id]

    async def transfer_leadership(self) -> None:
        self.shared.leader_id = self.shared.transfers_to


class GatedCommitter(commit.LocalCommitter):
    """Commits only where the leader is."""

    def __init__(self, group: FakeGroup) -> None:
        super().__init__(group.shared.state, TIME)
        self._group = group

    @override
    async def commit(self, ops: Sequence[pb.Op]) -> int:
        await self.barrier()
        return await super().commit(ops)

    @override
    async def barrier(self) -> None:
        if not self._group.is_leader:
            raise errors.Unavailable("not the leader")


class CountingJoin(service.JoinServicer):
    """Knows how often somebody sent a token."""

    issue_calls = 0

    @override
    async def IssueCertificate(
        self, request: pb.IssueCertificateRequest, context: service.Context
    ) -> pb.IssueCertificateResponse:
        self.issue_calls += 1
        return await super().IssueCertificate(request, context)


class Manager:
    """One running manager. `identity` may be swapped while it runs."""

    def __init__(self, shared: Shared, identity: identities.Identity) -> None:
        self.identity = identity
        self.group = FakeGroup(shared, identity.node_id)
        self.committer = GatedCommitter(self.group)
        self.authority = authority.Authority(
            state=shared.state, committer=self.committer, time=TIME, rng=ids.system_rng()
        )
        dial = tls.dialler(lambda: self.identity)
        self.join = CountingJoin(ca=self.authority, group=self.group, dial=dial, limit=attempts.AttemptLimit(burst=5))
        self.ca = service.CAServicer(ca=self.authority, group=self.group, dial=dial, cluster_id=identity.cluster_id)
        self.membership = membership.MembershipServicer(
            state=shared.state,
            committer=self.committer,
            group=self.group,
            dial=dial,
            cluster_id=identity.cluster_id,
        )
        self.cluster_addr = ""
        self.join_addr = ""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator["Manager"]:
        """Both ports, for the duration."""
        cluster, join = grpc.aio.server(options=tls.SERVER_OPTIONS), grpc.aio.server(options=tls.SERVER_OPTIONS)
        ca_pb2_grpc.add_JoinServicer_to_server(self.join, join)
        ca_pb2_grpc.add_CAServicer_to_server(self.ca, cluster)
        ca_pb2_grpc.add_MembershipServicer_to_server(self.membership, cluster)
        current: tls.Current = lambda: self.identity  # noqa: E731
        port = cluster.add_secure_port("127.0.0.1:0", tls.server_credentials(current))
        self.cluster_addr = f"127.0.0.1:{port}"
        self.join_addr = f"127.0.0.1:{join.add_secure_port('127.0.0.1:0', tls.join_server_credentials(current))}"
        await cluster.start()
        await join.start()
        try:
            yield self
        finally:
            await cluster.stop(None)
            await join.stop(None)


class Site:
    """A cluster: a leader and, when asked for, followers."""

    def __init__(self, shared: Shared, managers: list[Manager]) -> None:
        self.shared = shared
        self.managers = managers

    @property
    def leader(self) -> Manager:
        return self.managers[0]

    @property
    def follower(self) -> Manager:
        return self.managers[1]

    @property
    def view(self) -> views.View:
        return self.shared.state.view()

    @property
    def worker_token(self) -> str:
        return authority.join_tokens(self.view.cluster)[0]

    @property
    def manager_token(self) -> str:
        return authority.join_tokens(self.view.cluster)[1]

    def node(self, node_id: str) -> pb.Node:
        node = self.view.nodes.get(node_id)
        assert node is not None
        return node

    async def change(self, node_id: str, *, role: pb.NodeRole.ValueType) -> None:
        """Promotes or demotes."""
        node = pb.Node()
        node.CopyFrom(self.node(node_id))
        node.role = role
        await self.leader.committer.commit([store_ops.update(node)])

    async def change_cluster(self, *, node_cert_expiry_s: float) -> None:
        """Changes the specification."""
        cluster = pb.Cluster()
        cluster.CopyFrom(self.view.cluster)
        cluster.spec.ca.node_cert_expiry = stamps.to_nanos(node_cert_expiry_s)
        await self.leader.committer.commit([store_ops.update(cluster)])

    def root(self) -> keys.Root:
        root_ca = self.view.cluster.root_ca
        return keys.Root(cert_pem=root_ca.cert_pem, key_pem=root_ca.key_pem)

    async def admit(self, *, role: pb.NodeRole.ValueType) -> identities.Identity:
        """A node that joined, without the way over the wire."""
        key_pem = keys.new_key()
        token = self.manager_token if role == pb.NODE_ROLE_MANAGER else self.worker_token
        issued = await self.leader.authority.issue(
            keys.new_csr(key_pem), token=token, availability=pb.NODE_AVAILABILITY_ACTIVE, hostname="host"
        )
        return keys.verified(key_pem=key_pem, cert_pem=issued.cert_pem, root_pem=issued.root_pem, now=TIME.now())


async def found() -> tuple[Shared, identities.Identity]:
    """A new cluster's state and its first manager."""
    state = store.Store(checking=True)
    founding = authority.found(hostname="first", addr="127.0.0.1:1", now=TIME.now(), rng=ids.system_rng())
    await commit.LocalCommitter(state, TIME).commit(founding.ops)
    node_id = founding.identity.node_id
    return Shared(state=state, leader_id=node_id, members={node_id: "127.0.0.1:1"}), founding.identity


@contextlib.asynccontextmanager
async def site(*, followers: int = 0) -> AsyncIterator[Site]:
    """A running cluster of one leader and `followers` others."""
    shared, first = await found()
    async with contextlib.AsyncExitStack() as stack:
        running = Site(shared, [])
        leader = await stack.enter_async_context(Manager(shared, first).serve())
        shared.members[first.node_id] = leader.cluster_addr
        running.managers.append(leader)
        for _ in range(followers):
            identity = await running.admit(role=pb.NODE_ROLE_MANAGER)
            manager = await stack.enter_async_context(Manager(shared, identity).serve())
            shared.members[identity.node_id] = manager.cluster_addr
            running.managers.append(manager)
        yield running
        shared.state.verify()


def forge(
    root: keys.Root,
    *,
    node_id: str = "forged",
    cluster_id: str,
    role: pb.NodeRole.ValueType = pb.NODE_ROLE_MANAGER,
    signed_at: float | None = None,
    lifetime_s: float = keys.NODE_LIFETIME_S,
) -> identities.Identity:
    """An identity signed by any root, with any content, unchecked."""
    key_pem = keys.new_key()
    cert_pem = keys.sign_node(
        keys.new_csr(key_pem),
        root=root,
        node_id=node_id,
        cluster_id=cluster_id,
        role=role,
        now=TIME.now() if signed_at is None else signed_at,
        lifetime_s=lifetime_s,
    )
    return identities.Identity(
        node_id=node_id, cluster_id=cluster_id, role=role, cert_pem=cert_pem, root_pem=root.cert_pem, key_pem=key_pem
    )


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Runs one test's coroutine with a deadline of its own."""

    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await main()

    return asyncio.run(bounded())
