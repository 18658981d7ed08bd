"""Managers' consensus over real gRPC with mutual TLS on loopback, each with a log in a directory."""

import asyncio
import contextlib
import dataclasses
import datetime
import pathlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from manager.raft import config, disk, grpc_transport, log, node
from manager.store import store
from skep import clock, ids, pb
from skep.security import identity

FAST = config.RaftConfig(heartbeat_s=0.05, election_min_s=0.3, election_max_s=0.6, snapshot_entries=1000)
VALIDITY = datetime.timedelta(days=1)


@dataclasses.dataclass(frozen=True)
class Papers:
    """What a manager shows and believes: the authority's certificate, its own key and certificate, all PEM."""

    authority: bytes
    key: bytes
    certificate: bytes


class Authority:
    """A certificate authority for one test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("test", "", self._key.public_key(), authority=True)

    def _sign(self, name: str, role: str, key: ec.EllipticCurvePublicKey, *, authority: bool) -> bytes:
        subject = x509.Name(
            [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
            + ([x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, role)] if role else [])
        )
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
        now = datetime.datetime.fromtimestamp(clock.SystemClock().now(), tz=datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - VALIDITY)
            .not_valid_after(now + VALIDITY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(identity.MANAGER_NAME)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, role: str = "manager") -> tuple[bytes, bytes]:
        """A key and a certificate, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem, self._sign(name, role, key.public_key(), authority=False)

    def papers(self, name: str) -> Papers:
        """A manager's."""
        return Papers(self.certificate, *self.issue(name))


def peer_of(context: Any) -> identity.Peer:
    """The identity in the caller's certificate."""
    pem = context.auth_context()["x509_pem_cert"][0]
    subject = x509.load_pem_x509_certificate(pem).subject
    name = str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    unit = subject.get_attributes_for_oid(x509.NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value
    role = pb.NODE_ROLE_MANAGER if unit == "manager" else pb.NODE_ROLE_WORKER
    return identity.Peer(node_id=name, cluster_id="test", role=role, address="127.0.0.1")


class Manager:
    """One manager: server, transport, store, consensus."""

    def __init__(
        self,
        name: str,
        root: pathlib.Path,
        papers: Papers,
        times: config.RaftConfig,
        *,
        open_log: Callable[[pathlib.Path], log.Log] = lambda directory: log.DurableLog(disk.OsDisk(directory)),
    ) -> None:
        self.name = name
        self._open_log = open_log
        self.addr = ""
        self._directory = root / name
        self._papers = papers
        self._times = times
        self.store = store.Store()
        self.node: node.RaftNode
        self._server: grpc.aio.Server | None = None

    def dial(self, addr: str) -> grpc.aio.Channel:
        papers = self._papers
        credentials = grpc.ssl_channel_credentials(papers.authority, papers.key, papers.certificate)
        options = (*grpc_transport.CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", identity.MANAGER_NAME))
        return grpc.aio.secure_channel(addr, credentials, options=options)

    async def listen(self) -> str:
        """Binds the port (the same one as before, after a stop)."""
        self.transport = grpc_transport.GrpcTransport(node_id=self.name, dial=self.dial, peer_of=peer_of)
        self._server = grpc.aio.server()
        self.transport.register(self._server)
        papers = self._papers
        credentials = grpc.ssl_server_credentials(
            [(papers.key, papers.certificate)], papers.authority, require_client_auth=True
        )
        port = self._server.add_secure_port(self.addr or "127.0.0.1:0", credentials)
        self.addr = f"127.0.0.1:{port}"
        await self._server.start()
        return self.addr

    async def start(self, *, bootstrap: Mapping[str, str] | None = None, join: Mapping[str, str] | None = None) -> None:
        if self._server is None:
            await self.listen()
        self.store = store.Store()
        self.node = node.RaftNode(
            node_id=self.name,
            store=self.store,
            log=self._open_log(self._directory),
            transport=self.transport,
            clock=clock.SystemClock(),
            rng=ids.system_rng(),
            config=self._times,
            bootstrap=bootstrap,
            join=join,
        )
        await self.node.start()

    async def stop(self) -> None:
        await self.node.stop()
        await self.unplug()

    async def unplug(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def crash(self) -> None:
        """Stops without a word: no transfer of leadership, nothing flushed."""
        await self.unplug()
        await self.node.abort()


class Cluster:
    """Some managers."""

    def __init__(self, root: pathlib.Path, *, times: config.RaftConfig = FAST) -> None:
        self._root = root
        self._times = times
        self.authority = Authority()
        self.managers: dict[str, Manager] = {}

    def new(self, name: str) -> Manager:
        self.managers[name] = Manager(name, self._root, self.authority.papers(name), self._times)
        return self.managers[name]

    async def start(self, count: int) -> None:
        """Begins with `count` members at once."""
        for number in range(count):
            await self.new(f"m{number}").listen()
        members = {name: manager.addr for name, manager in self.managers.items()}
        for manager in self.managers.values():
            await manager.start(bootstrap=members)

    async def leader(self, *, besides: str = "") -> Manager:
        """The manager in charge, once there is one."""
        found: list[Manager] = []

        def led() -> bool:
            found[:] = [m for m in self.managers.values() if m.name != besides and m.node.is_leader]
            return bool(found)

        await eventually(led)
        return found[0]


async def eventually(condition: Callable[[], bool], *, within_s: float = 15.0) -> None:
    """Waits until `condition` holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - conditions of several loops
            await asyncio.sleep(0.01)


def holds(manager: Manager, name: str) -> bool:
    """Whether a manager's store has the task `name`."""
    return manager.store.view().tasks.get(name) is not None


@contextlib.asynccontextmanager
async def running(root: pathlib.Path, count: int, *, times: config.RaftConfig = FAST) -> AsyncIterator[Cluster]:
    """A cluster that is stopped in the end."""
    cluster = Cluster(root, times=times)
    try:
        await cluster.start(count)
        yield cluster
    finally:
        for manager in cluster.managers.values():
            await manager.crash()


def create(name: str) -> pb.Op:
    """An operation that creates a task."""
    return pb.Op(kind=pb.OP_KIND_CREATE, object=pb.Object(task=pb.Task(id=name)))
