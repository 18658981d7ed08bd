"""The session over real gRPC with mutual TLS on loopback: the same parts, the two adapters, real time."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from agent import link, managers, session, worker
from agent.runtime import memory
from agent.tasks import record
from manager.dispatcher import logs, service
from manager.http import backend
from manager.store import ops
from skep import clock, errors, ids, pb
from skep.security import identity, keys, tls
from skep.v1 import dispatcher_pb2_grpc
from tests import virtual_time
from tests.agent import joined

until = virtual_time.until
WITHIN_S = 20.0


class Authority:
    """Issues identities."""

    def __init__(self) -> None:
        self._now = clock.SystemClock().now()
        self._root = keys.new_root(now=self._now)

    def issue(self, node_id: str, role: pb.NodeRole.ValueType) -> identity.Identity:
        key_pem = keys.new_key()
        cert_pem = keys.sign_node(
            keys.new_csr(key_pem), root=self._root, node_id=node_id, cluster_id="c", role=role, now=self._now
        )
        return keys.verified(key_pem=key_pem, cert_pem=cert_pem, root_pem=self._root.cert_pem, now=self._now)


@contextlib.asynccontextmanager
async def served(cluster: joined.Cluster, authority: Authority) -> AsyncIterator[str]:
    """The dispatcher on a loopback port; yields its address."""
    me = authority.issue("m1", pb.NODE_ROLE_MANAGER)
    server = grpc.aio.server(options=list(tls.SERVER_OPTIONS))
    servicer = service.DispatcherServicer(
        cluster.dispatcher, peer_of=lambda context: tls.peer_of(context, cluster_id="c")
    )
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(lambda: me))
    await server.start()
    cluster.addrs = [f"127.0.0.1:{port}"]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Node:
    """An agent that speaks gRPC."""

    def __init__(self, who: identity.Identity, addr: str, path: pathlib.Path) -> None:
        rng, time = ids.seeded_rng(7), clock.SystemClock()
        self.runtime = memory.MemoryRuntime(node_id=who.node_id, clock=time, rng=rng)
        self.worker = worker.Worker(
            runtime=self.runtime, record=record.Record(path), clock=time, uptime=clock.SystemUptime(), rng=rng
        )
        self.book = managers.ManagerBook(None, seeds=[addr])
        self.session = session.AgentSession(
            connect=link.connector(lambda to: tls.channel(who, to, options=link.CHANNEL_OPTIONS)),
            managers=self.book,
            worker=self.worker,
            describe=self.runtime.describe,
            rng=rng,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.worker.open()
        work = asyncio.create_task(self.session.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self.worker.close()


def test_a_task_over_the_wire(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        authority = Authority()
        cluster = joined.Cluster(joined.Network())
        await cluster.create(joined.node("n1"), joined.revision(), joined.task("t1", "n1"))
        await cluster.dispatcher.start()
        async with served(cluster, authority) as addr:
            node = Node(authority.issue("n1", pb.NODE_ROLE_WORKER), addr, tmp_path / "tasks.db")
            async with node.running():
                await until(lambda: cluster.state("t1") == joined.RUN, within_s=WITHIN_S)
                assert cluster.node("n1").status.addr == "127.0.0.1"
                node.runtime.print_line("t1", "hello")
                source = logs.Logs(store=cluster.store, session_of=cluster.dispatcher.session_of, clock=cluster.clock)
                found = [entry.data async for _, entry in source.read(backend.LogQuery(["t1"]))]
                assert found == [b"hello\n"]

                # The leader goes and comes back: the agent is sent away, returns, and nothing was restarted.
                await cluster.dispatcher.stop()
                await until(lambda: not node.session.manager, within_s=WITHIN_S)
                await cluster.dispatcher.start()
                await until(lambda: bool(node.session.manager), within_s=WITHIN_S)
                await cluster.wish("t1", pb.TASK_STATE_SHUTDOWN)
                await until(lambda: cluster.state("t1") == pb.TASK_STATE_SHUTDOWN, within_s=WITHIN_S)

                await cluster.committer.commit([ops.delete(cluster.node("n1"))])
                await until(lambda: "not in this cluster" in node.session.error, within_s=WITHIN_S)
        await cluster.dispatcher.stop()

    asyncio.run(main())


def test_a_foreign_certificate_and_a_closed_port_are_named_as_what_they_are(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        authority = Authority()
        cluster = joined.Cluster(joined.Network())
        await cluster.dispatcher.start()
        async with served(cluster, authority) as addr:
            stranger = Authority().issue("n1", pb.NODE_ROLE_WORKER)
            connect = link.connector(lambda to: tls.channel(stranger, to, options=link.CHANNEL_OPTIONS))
            with pytest.raises(errors.Unavailable, match="certificate"):
                await connect(addr)
        mine = authority.issue("n1", pb.NODE_ROLE_WORKER)
        connect = link.connector(lambda to: tls.channel(mine, to, options=link.CHANNEL_OPTIONS))
        with pytest.raises(errors.Unavailable, match=addr):
            await connect(addr)
        await cluster.dispatcher.stop()

    asyncio.run(main())


def test_a_cut_connection_is_noticed_at_both_ends(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        authority = Authority()
        cluster = joined.Cluster(joined.Network())
        await cluster.create(joined.node("n1"), joined.revision())
        await cluster.dispatcher.start()
        async with served(cluster, authority) as addr:
            node = Node(authority.issue("n1", pb.NODE_ROLE_WORKER), addr, tmp_path / "tasks.db")
            async with node.running():
                await until(lambda: bool(node.session.manager), within_s=WITHIN_S)
            await until(lambda: cluster.dispatcher.session_of("n1") is None, within_s=WITHIN_S)
        # The port is gone and comes back elsewhere, as after a restart of the manager.
        async with node.running():
            await until(lambda: bool(node.session.error), within_s=WITHIN_S)
            async with served(cluster, authority) as addr:
                node.book.replace([addr])
                await until(lambda: bool(node.session.manager), within_s=WITHIN_S)
                await cluster.dispatcher.stop()

    asyncio.run(main())
