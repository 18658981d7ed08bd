"""Requests between managers over real gRPC and TLS."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from manager.http import forward, messages, routing
from manager.store import commit
from skep import clock, errors, pb
from skep.security import identity, keys, tls
from skep.v1 import ca_pb2_grpc

CLUSTER = "c" * 25


class Leader:
    """Answers whatever the test says."""

    def __init__(self) -> None:
        self.response = messages.Response()
        self.requests: list[messages.Request] = []

    async def handle(self, request: messages.Request) -> messages.Response:
        self.requests.append(request)
        return self.response

    def transfer(self, method: str, target: str) -> routing.Transfer:
        return routing.Transfer.WHOLE


def an_identity(root: keys.Root, node_id: str, role: pb.NodeRole.ValueType, now: float) -> identity.Identity:
    key_pem = keys.new_key()
    cert_pem = keys.sign_node(keys.new_csr(key_pem), root=root, node_id=node_id, cluster_id=CLUSTER, role=role, now=now)
    return identity.Identity(
        node_id=node_id, cluster_id=CLUSTER, role=role, cert_pem=cert_pem, root_pem=root.cert_pem, key_pem=key_pem
    )


def with_leader(
    work: Callable[[Leader, grpc.aio.Channel], Awaitable[None]],
    *,
    role: pb.NodeRole.ValueType = pb.NODE_ROLE_MANAGER,
) -> None:
    now = clock.SystemClock().now()  # TLS looks at the machine's own clock

    async def main() -> None:
        root = keys.new_root(now=now)
        me = an_identity(root, "a" * 25, pb.NODE_ROLE_MANAGER, now)
        leader = Leader()
        grpc_server = grpc.aio.server(options=tls.SERVER_OPTIONS)
        servicer = forward.ForwardServicer(leader, peer_of=lambda context: tls.peer_of(context, cluster_id=CLUSTER))
        ca_pb2_grpc.add_ForwardServicer_to_server(servicer, grpc_server)
        port = grpc_server.add_secure_port("127.0.0.1:0", tls.server_credentials(lambda: me))
        await grpc_server.start()
        other = an_identity(root, "b" * 25, role, now)
        try:
            async with tls.channel(other, f"127.0.0.1:{port}") as channel:
                await work(leader, channel)
        finally:
            await grpc_server.stop(None)

    asyncio.run(main())


async def ask(channel: grpc.aio.Channel, **changes: Any) -> messages.Response:
    request = messages.Request(**({"method": "GET", "target": "/services"} | changes))
    return await forward.response_from(forward.forward(channel, forward.encode(request), target="the leader"))


def test_requests_and_large_answers_arrive_whole() -> None:
    async def work(leader: Leader, channel: grpc.aio.Channel) -> None:
        leader.response = messages.Response(status=201, headers={"X": "y"}, body=bytes(range(256)) * 20_000)
        response = await ask(
            channel,
            method="POST",
            target="/v1.41/services/create?a=b%20c",
            headers={"x-registry-auth": "s", "host": "docker", "content-type": "application/json"},
            body=b"{}",
        )
        assert (response.status, response.headers, response.body) == (201, {"X": "y"}, leader.response.body)
        (request,) = leader.requests
        assert request.forwarded
        assert (request.method, request.target, request.body) == ("POST", "/v1.41/services/create?a=b%20c", b"{}")
        assert request.headers == {"x-registry-auth": "s", "content-type": "application/json"}

    with_leader(work)


def test_streams_flow_and_end_with_their_reader() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def work(leader: Leader, channel: grpc.aio.Channel) -> None:
        leader.response = messages.Response(stream=endless())
        response = await ask(channel)
        assert response.stream is not None
        assert await anext(response.stream) == b"one"
        await response.stream.aclose()
        await asyncio.wait_for(closed.wait(), 5)

    with_leader(work)


def test_workers_may_not() -> None:
    async def work(leader: Leader, channel: grpc.aio.Channel) -> None:
        with pytest.raises(errors.Denied, match="this call is for skep-manager"):
            await ask(channel)
        assert leader.requests == []

    with_leader(work, role=pb.NODE_ROLE_WORKER)


def test_a_refusal_to_lead_can_be_repeated() -> None:
    async def work(leader: Leader, channel: grpc.aio.Channel) -> None:
        leader.response = messages.error_response(503, "this manager does not lead")
        leader.response.headers[forward.NOT_DONE] = "1"
        with pytest.raises(commit.NotProposed):
            await ask(channel)

    with_leader(work)


def test_nobody_there_is_certainly_not_done() -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            with pytest.raises(commit.NotProposed, match="cannot reach the leader"):
                await ask(channel, method="POST")

    asyncio.run(main())
