"""The dispatcher over gRPC: the only module here that knows gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from manager.dispatcher import dispatcher
from skep import errors, pb
from skep.security import identity, rpc_errors
from skep.v1 import dispatcher_pb2_grpc

Context = grpc.aio.ServicerContext[pb.AgentMessage, pb.ManagerMessage]


class _GrpcLink:
    """A session's stream, the manager's end."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sending = asyncio.Lock()
        self.error: errors.SkepError | None = None

    async def send(self, message: pb.ManagerMessage) -> None:
        async with self._sending:
            try:
                await self._context.write(message)
            except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
                raise errors.Unavailable("the agent has gone") from error

    async def receive(self) -> pb.AgentMessage | None:
        try:
            message: object = await self._context.read()  # a message, or grpc.aio.EOF
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise errors.Unavailable("the agent has gone") from error
        return message if isinstance(message, pb.AgentMessage) else None

    async def close(self, error: errors.SkepError | None = None) -> None:
        if self.error is None:
            self.error = error  # the servicer ends the call with it


class DispatcherServicer(dispatcher_pb2_grpc.DispatcherServicer):
    """Answers Dispatcher.Session on the cluster port."""

    def __init__(self, served: dispatcher.Dispatcher, *, peer_of: Callable[[Any], identity.Peer]) -> None:
        """`peer_of` tells from a call's context whose certificate is at the other end; raises Denied."""
        self._dispatcher = served
        self._peer_of = peer_of

    async def Session(  # type: ignore[override, explicit-override]  # noqa: N802  # reads and writes by itself
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Context
    ) -> None:
        """One agent's session, for as long as it lasts."""
        del request_iterator
        async with rpc_errors.reported(context):
            stream = _GrpcLink(context)
            await self._dispatcher.serve(self._peer_of(context), stream)
            if stream.error is not None:
                raise stream.error
