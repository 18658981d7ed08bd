"""skep's errors survive the way over gRPC; others do not travel."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest
import structlog
from typing_extensions import override

from skep import errors
from skep.security import rpc_errors, tls

UnaryCall: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
StreamCall: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"


class Handlers(grpc.GenericRpcHandler):
    """Raises whatever it is told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    @override
    def service(self, details: Any) -> Any:
        if details.method == "/t/unary":
            return grpc.unary_unary_rpc_method_handler(self.unary)
        return grpc.unary_stream_rpc_method_handler(self.stream)

    async def unary(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        async with rpc_errors.reported(context):
            if self.error is not None:
                raise self.error
            return request

    async def stream(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        async with rpc_errors.reported(context):
            yield request
            if self.error is not None:
                raise self.error


async def exchange(error: BaseException | None, *, streamed: bool) -> list[bytes]:
    handlers = Handlers()
    handlers.error = error
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", tls.CHANNEL_OPTIONS) as channel:
            with rpc_errors.translated("the manager"):
                if streamed:
                    stream: StreamCall = channel.unary_stream("/t/stream")
                    return [part async for part in stream(b"x", timeout=5)]
                unary: UnaryCall = channel.unary_unary("/t/unary")
                return [await unary(b"x", timeout=5)]
    finally:
        await server.stop(None)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", list(errors.GRPC_CODE))
def test_every_error_arrives_as_what_it_was(*, streamed: bool, kind: type[errors.SkepError]) -> None:
    with pytest.raises(errors.SkepError) as caught:
        asyncio.run(exchange(kind("service wüb: 100 % wrong"), streamed=streamed))
    assert type(caught.value) is kind
    assert caught.value.message == "service wüb: 100 % wrong"


@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_unexpected_stays_at_home(*, streamed: bool) -> None:
    log = io.StringIO()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(log), cache_logger_on_first_use=False)
    try:
        with pytest.raises(errors.Bug) as caught:
            asyncio.run(exchange(ValueError("a secret"), streamed=streamed))
    finally:
        structlog.reset_defaults()
    assert caught.value.message == "internal error; the manager's log says more"
    assert "rpc.failed" in log.getvalue()
    assert "ValueError" in log.getvalue()


@pytest.mark.parametrize("streamed", [False, True])
def test_without_an_error_nothing_happens(*, streamed: bool) -> None:
    assert asyncio.run(exchange(None, streamed=streamed)) == [b"x"]


def test_a_subclass_travels_as_its_parent() -> None:
    class Special(errors.Denied):
        pass

    assert rpc_errors.code_of(Special()) is grpc.StatusCode.PERMISSION_DENIED
    assert rpc_errors.code_of(errors.SkepError()) is grpc.StatusCode.INTERNAL


def test_a_call_that_broke_off_while_it_was_written_to_is_unavailable() -> None:
    broken = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details=rpc_errors.BROKEN
    )
    assert isinstance(rpc_errors.from_rpc(broken, target="m1:2377"), errors.Unavailable)


def test_a_long_message_is_cut() -> None:
    with pytest.raises(errors.Invalid) as caught:
        asyncio.run(exchange(errors.Invalid("ü" * 100_000), streamed=False))
    assert caught.value.message == "ü" * 1000


def test_an_address_where_nobody_is() -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1", tls.CHANNEL_OPTIONS) as channel:
            unary: UnaryCall = channel.unary_unary("/t/unary")
            with rpc_errors.translated("the manager at 127.0.0.1:1"):
                await unary(b"x", timeout=5)

    with pytest.raises(errors.Unavailable, match=r"^cannot reach the manager at .*: connection refused$"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("peer", "host"),
    [("ipv4:10.0.0.7:4711", "10.0.0.7"), ("ipv6:%5Bfd00::1%5D:4711", "fd00::1"), ("unix:/run/x", ""), ("", "")],
)
def test_host_of(peer: str, host: str) -> None:
    assert tls.host_of(peer) == host
