"""A follower's way to the leader: a user's HTTP request as one gRPC call between managers.

Owns both ends: the servicer on the leader and the call that implements `backend.Manager.forward`. What was forwarded
once is never forwarded again: a manager that does not lead refuses it, and the sender looks for the leader anew.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from typing_extensions import override

from manager.http import messages, tunnel
from manager.store import commit
from skep import errors, pb
from skep.security import identity, rpc_errors, tls
from skep.v1 import ca_pb2_grpc

PIECE_BYTES_MAX = 1024 * 1024  # of a body in one gRPC message
ANSWER_BYTES_MAX = 512 * 1024 * 1024  # a list of 100,000 tasks has about 150 MB
HEADERS_KEPT = ("content-type", "accept", "user-agent", "x-registry-auth")
FIRST_PART_S = 20.0  # Docker's own limit for calls to the manager; covers a slow disk under a commit
NOT_DONE = messages.NOT_DONE
_WHOLE = "Content-Length"
_NEVER_SENT = ("failed to connect", "Connection refused", "No route to host", "DNS resolution", "handshake")


def encode(request: messages.Request) -> pb.HttpRequest:
    """The request as it travels. Only headers that handlers look at go along."""
    kept = {name: request.headers[name] for name in HEADERS_KEPT if name in request.headers}
    return pb.HttpRequest(method=request.method, target=request.target, headers=kept, body=request.body)


async def response_from(parts: AsyncIterator[pb.HttpResponsePart]) -> messages.Response:
    """The answer whose parts arrive: gathered when its length was announced, else passed on as a stream.

    Raises NotProposed when the other side refused before it did anything, Unavailable when it broke off.
    """
    try:
        first = await anext(parts)
    except StopAsyncIteration:
        raise errors.Unavailable("the leader ended the call without an answer") from None
    headers = dict(first.headers)
    if _WHOLE not in headers:
        return messages.Response(status=first.status, headers=headers, stream=_bodies(first, parts))
    pieces: list[bytes] = []
    gathered = 0
    async with contextlib.aclosing(_bodies(first, parts)) as bodies:
        async for piece in bodies:
            gathered += len(piece)
            if gathered > ANSWER_BYTES_MAX:
                raise errors.Unavailable(f"the leader's answer is larger than {ANSWER_BYTES_MAX} bytes: use filters")
            pieces.append(piece)
    if gathered != int(headers.pop(_WHOLE)):
        raise errors.Unavailable("the leader's answer broke off")
    if headers.pop(NOT_DONE, ""):
        raise commit.NotProposed("the manager that was taken for the leader does not lead")
    return messages.Response(status=first.status, headers=headers, body=b"".join(pieces))


async def _bodies(first: pb.HttpResponsePart, parts: AsyncIterator[pb.HttpResponsePart]) -> AsyncGenerator[bytes, None]:
    try:
        if first.body:
            yield first.body
        async for part in parts:
            if part.body:
                yield part.body
    finally:
        if isinstance(parts, AsyncGenerator):
            await parts.aclose()


async def forward(
    channel: grpc.aio.Channel, request: pb.HttpRequest, *, target: str
) -> AsyncGenerator[pb.HttpResponsePart, None]:
    """Has the manager behind `channel` answer; `target` names it in errors. Closing the generator ends the call.

    Raises NotProposed when it cannot be reached at all, Unavailable when it does not answer in time or breaks off.
    """
    stub = ca_pb2_grpc.ForwardStub(channel)
    call: Any = stub.Http(request)
    try:
        async with asyncio.timeout(FIRST_PART_S):
            part = await call.read()
        while part is not grpc.aio.EOF:
            yield part
            part = await call.read()
    except TimeoutError:
        raise errors.Unavailable(f"the leader at {target} did not answer in time") from None
    except grpc.aio.AioRpcError as error:
        raise _problem(error, target=target) from None
    finally:
        call.cancel()


def _problem(error: grpc.aio.AioRpcError, *, target: str) -> errors.SkepError:
    problem = rpc_errors.from_rpc(error, target=target)
    if error.code() is grpc.StatusCode.UNAVAILABLE and any(mark in (error.details() or "") for mark in _NEVER_SENT):
        return commit.NotProposed(problem.message)
    return problem


class GrpcTunnel:
    """A backend.Tunnel to the manager behind `channel`; `target` names it in errors."""

    def __init__(self, channel: grpc.aio.Channel, *, target: str) -> None:
        self._call: Any = ca_pb2_grpc.ForwardStub(channel).Tunnel()
        self._target = target

    async def send(self, part: pb.TunnelPart) -> None:
        """See backend.Tunnel."""
        await self._translated(self._call.write(part))

    async def receive(self) -> pb.TunnelPart | None:
        """See backend.Tunnel."""
        part = await self._translated(self._call.read())
        return part if isinstance(part, pb.TunnelPart) else None

    async def done(self) -> None:
        """See backend.Tunnel."""
        await self._translated(self._call.done_writing())

    def cancel(self) -> None:
        """See backend.Tunnel."""
        self._call.cancel()

    async def _translated(self, doing: Awaitable[Any]) -> Any:
        try:
            return await doing
        except grpc.aio.AioRpcError as error:
            raise _problem(error, target=self._target) from None
        except asyncio.InvalidStateError:
            raise errors.Unavailable(f"the call to {self._target} is over") from None
        except asyncio.CancelledError:
            if self._call.cancelled() and not _being_cancelled():
                raise errors.Unavailable(f"the call to {self._target} was cut off") from None
            raise


def _being_cancelled() -> bool:
    """Whether it is this coroutine that is cancelled, and not the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Parts:
    """The leader's end of a tunnel."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    async def send(self, part: pb.TunnelPart) -> None:
        try:
            await self._context.write(part)
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise errors.Unavailable("the calling manager has gone") from error

    async def receive(self) -> pb.TunnelPart | None:
        try:
            part: object = await self._context.read()  # a part, or grpc.aio.EOF
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise errors.Unavailable("the calling manager has gone") from error
        return part if isinstance(part, pb.TunnelPart) else None


class ForwardServicer(ca_pb2_grpc.ForwardServicer):
    """Answers what other managers send on. `peer_of` says who calls and raises Denied for strangers."""

    def __init__(
        self, api: tunnel.Answers, *, peer_of: Callable[[grpc.aio.ServicerContext[Any, Any]], identity.Peer]
    ) -> None:
        self._api = api
        self._peer_of = peer_of

    @override
    async def Http(
        self, request: pb.HttpRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[pb.HttpResponsePart, None]:
        async with rpc_errors.reported(context):
            tls.require(self._peer_of(context), (pb.NODE_ROLE_MANAGER,))
            response = await self._api.handle(
                messages.Request(
                    method=request.method,
                    target=request.target,
                    headers=dict(request.headers),
                    body=request.body,
                    forwarded=True,
                )
            )
            async with contextlib.aclosing(_parts(response)) as parts:
                async for part in parts:
                    yield part

    async def Tunnel(  # type: ignore[override, explicit-override]  # noqa: N802  # reads and writes by itself
        self, request_iterator: AsyncIterator[pb.TunnelPart], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """One request whose body or connection streams."""
        del request_iterator
        async with rpc_errors.reported(context):
            tls.require(self._peer_of(context), (pb.NODE_ROLE_MANAGER,))
            await tunnel.serve(self._api, _Parts(context))


async def _parts(response: messages.Response) -> AsyncGenerator[pb.HttpResponsePart, None]:
    if response.stream is None:
        body = response.body
        headers = response.headers | {_WHOLE: str(len(body))}
        yield pb.HttpResponsePart(status=response.status, headers=headers, body=body[:PIECE_BYTES_MAX])
        for start in range(PIECE_BYTES_MAX, len(body), PIECE_BYTES_MAX):
            yield pb.HttpResponsePart(body=body[start : start + PIECE_BYTES_MAX])
        return
    async with contextlib.aclosing(response.stream) as stream:
        yield pb.HttpResponsePart(status=response.status, headers=response.headers)
        async for piece in stream:
            for start in range(0, len(piece), PIECE_BYTES_MAX):
                yield pb.HttpResponsePart(body=piece[start : start + PIECE_BYTES_MAX])
