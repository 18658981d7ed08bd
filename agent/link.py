"""The agent's end of the session over gRPC. The only module of the agent's session that knows gRPC."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio

from skep import errors, link, pb
from skep.security import rpc_errors
from skep.v1 import dispatcher_pb2_grpc

MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # far above what managers put into one message
# For the channel that `dial` makes, on top of what every channel of the cluster has (keepalive above all).
CHANNEL_OPTIONS: list[tuple[str, int]] = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]

Dial = Callable[[str], grpc.aio.Channel]


class GrpcLink:
    """A session's stream on a channel of its own."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        call: "grpc.aio.StreamStreamCall[pb.AgentMessage, pb.ManagerMessage]",
        *,
        addr: str,
    ) -> None:
        self._channel = channel
        self._call = call
        self._addr = addr
        self._sending = asyncio.Lock()
        self._closed = False

    async def send(self, message: pb.AgentMessage) -> None:
        async with self._sending:
            try:
                await self._call.write(message)
            except grpc.aio.AioRpcError as error:
                raise rpc_errors.from_rpc(error, target=self._addr) from None
            except (asyncio.InvalidStateError, grpc.aio.UsageError):
                raise errors.Unavailable(f"the session with {self._addr} is over") from None

    async def receive(self) -> pb.ManagerMessage | None:
        if self._closed:
            return None
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise rpc_errors.from_rpc(error, target=self._addr) from None
        return message if isinstance(message, pb.ManagerMessage) else None

    async def close(self, error: errors.SkepError | None = None) -> None:
        del error  # a client cannot tell a server why
        if not self._closed:
            self._closed = True
            self._call.cancel()
            await self._channel.close()


def connector(dial: Dial) -> Callable[[str], Awaitable[link.AgentLink]]:
    """`connect` for AgentSession: opens the stream to a manager on a channel that `dial` makes (mutual TLS).

    `dial` should pass CHANNEL_OPTIONS. Connecting raises Unavailable or Denied.
    """

    async def connect(addr: str) -> link.AgentLink:
        channel = dial(addr)
        try:
            call = dispatcher_pb2_grpc.DispatcherStub(channel).Session()
            await call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            await channel.close()
            raise rpc_errors.from_rpc(error, target=addr) from None
        except BaseException:
            await channel.close()
            raise
        return GrpcLink(channel, call, addr=addr)

    return connect
