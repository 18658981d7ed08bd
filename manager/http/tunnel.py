"""A request whose body is a stream, or whose answer is a raw connection, on its way from a follower to the leader.

Owns the order of the parts at both ends (see TunnelPart); knows no gRPC. Nothing is read ahead: each side takes the
next part when it has passed on the last one, so that a slow end slows down the other and memory stays bounded.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from manager.http import backend, messages, routing
from manager.store import commit
from skep import errors, pb

PART_BYTES_MAX = 256 * 1024
FIRST_PART_S = 40.0  # longer than an agent may take to get the other side ready


class Answers(Protocol):
    """The part of the Api that the leader's end needs."""

    async def handle(self, request: messages.Request) -> messages.Response: ...

    def transfer(self, method: str, target: str) -> routing.Transfer: ...


class Parts(Protocol):
    """The leader's end of the call. Both raise Unavailable when the caller is gone."""

    async def send(self, part: pb.TunnelPart) -> None: ...

    async def receive(self) -> pb.TunnelPart | None: ...


# ---------------------------------------------------------------- the follower's end


async def response_through(
    tunnel: backend.Tunnel, request: pb.HttpRequest, incoming: AsyncIterator[bytes] | None
) -> messages.Response:
    """The leader's answer. `incoming` is touched only once the leader has asked for it.

    Raises NotProposed when the leader has certainly not begun, Unavailable when the call broke off.
    """
    uploading: list[asyncio.Task[None]] = []
    handed_over = False
    try:
        await tunnel.send(pb.TunnelPart(request=request))
        response = await _first_response(tunnel, incoming, uploading)
        headers = dict(response.headers)
        if response.status == messages.SWITCHING:
            handed_over = True
            return messages.Response(
                status=response.status, headers=headers, upgrade=lambda duplex: _relay(tunnel, duplex)
            )
        if headers.pop(messages.NOT_DONE, "") and not uploading:
            raise commit.NotProposed("the manager that was taken for the leader does not lead")
        return messages.Response(status=response.status, headers=headers, body=response.body)
    finally:
        for task in uploading:
            task.cancel()
        await asyncio.gather(*uploading, return_exceptions=True)
        if not handed_over:
            tunnel.cancel()


async def _first_response(
    tunnel: backend.Tunnel, incoming: AsyncIterator[bytes] | None, uploading: list[asyncio.Task[None]]
) -> pb.HttpResponsePart:
    while True:
        try:
            # An upload takes as long as it takes; everything else is answered soon.
            async with asyncio.timeout(None if uploading else FIRST_PART_S):
                part = await tunnel.receive()
        except TimeoutError:
            raise errors.Unavailable("the leader did not answer in time") from None
        if part is None:
            raise errors.Unavailable("the leader ended the call without an answer")
        if part.HasField("response"):
            return part.response
        if part.HasField("go") and incoming is not None and not uploading:
            uploading.append(asyncio.create_task(_upload(tunnel, incoming), name="tunnel.upload"))


async def _upload(tunnel: backend.Tunnel, incoming: AsyncIterator[bytes]) -> None:
    """Sends the body. When it breaks off, so does the call: half an upload must not look like a whole one."""
    try:
        async for piece in incoming:
            await _send_data(tunnel, piece)
        await tunnel.send(pb.TunnelPart(eof=pb.TunnelEof()))
    except Exception:
        tunnel.cancel()
        raise


async def _relay(tunnel: backend.Tunnel, duplex: messages.Duplex) -> None:
    """Bytes both ways until the leader ends the call or the user's connection is gone."""
    up = asyncio.create_task(_relay_up(tunnel, duplex), name="tunnel.up")
    try:
        while (part := await tunnel.receive()) is not None:
            if part.HasField("data"):
                await duplex.write(part.data)
            elif part.HasField("eof"):
                await duplex.write_eof()
    finally:
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)
        tunnel.cancel()


async def _relay_up(tunnel: backend.Tunnel, duplex: messages.Duplex) -> None:
    with contextlib.suppress(errors.SkepError):  # what ends the call is seen by whoever receives
        while data := await duplex.read():
            await _send_data(tunnel, data)
        await tunnel.send(pb.TunnelPart(eof=pb.TunnelEof()))


# ---------------------------------------------------------------- the leader's end


async def serve(api: Answers, parts: Parts) -> None:
    """Answers one call. Raises Invalid for one that does not begin with a request."""
    first = await parts.receive()
    if first is None or not first.HasField("request"):
        raise errors.Invalid("a tunnel begins with a request")
    asked = first.request
    streamed = api.transfer(asked.method, asked.target) is routing.Transfer.BODY
    response = await api.handle(
        messages.Request(
            method=asked.method,
            target=asked.target,
            headers=dict(asked.headers),
            body=asked.body,
            incoming=_incoming(parts) if streamed else None,
            forwarded=True,
        )
    )
    head = pb.HttpResponsePart(status=response.status, headers=response.headers, body=response.body)
    try:
        await parts.send(pb.TunnelPart(response=head))
    except BaseException:
        if response.upgrade is not None:
            await response.upgrade(messages.Gone())
        raise
    if response.upgrade is not None:
        await response.upgrade(_Connection(parts))


async def _incoming(parts: Parts) -> AsyncIterator[bytes]:
    """The body as it comes. Raises Unavailable when it breaks off."""
    await parts.send(pb.TunnelPart(go=pb.TunnelGo()))
    while (part := await parts.receive()) is not None:
        if part.HasField("eof"):
            return
        if part.data:
            yield part.data
    raise errors.Unavailable("the upload broke off")


class _Connection:
    """The user's raw connection as the leader sees it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def read(self) -> bytes:
        """See messages.Duplex."""
        while True:
            try:
                part = await self._parts.receive()
            except errors.Unavailable:
                return b""
            if part is None or part.HasField("eof"):
                return b""
            if part.data:
                return part.data

    async def write(self, data: bytes) -> None:
        """See messages.Duplex."""
        await _send_data(self._parts, data)

    async def write_eof(self) -> None:
        """See messages.Duplex."""
        await self._parts.send(pb.TunnelPart(eof=pb.TunnelEof()))


async def _send_data(parts: Parts, data: bytes) -> None:
    for start in range(0, len(data), PART_BYTES_MAX):
        await parts.send(pb.TunnelPart(data=data[start : start + PART_BYTES_MAX]))
