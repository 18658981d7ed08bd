"""Takes a connection over from aiohttp after its HTTP is done (101 Switching Protocols).

Owns the change of protocol and the raw connection's flow control. The rest of the server is `server`.
"""

import asyncio
import contextlib
from typing import Any

from aiohttp import web
from typing_extensions import override

from manager.http import messages
from skep import errors

READ_BYTES = 64 * 1024  # at once; twice as much is read ahead, then the kernel holds the client


class _Raw(asyncio.StreamReaderProtocol):
    """A stream that tells aiohttp's own protocol, which keeps count of connections, when it is lost."""

    def __init__(self, reader: asyncio.StreamReader, before: asyncio.BaseProtocol) -> None:
        super().__init__(reader)
        self._before = before

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._before.connection_lost(exc)  # also cancels the handler


class _Connection:
    """A messages.Duplex on a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """See messages.Duplex."""
        try:
            return await self._reader.read(READ_BYTES)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """See messages.Duplex."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise errors.Unavailable("the client has gone") from error

    async def write_eof(self) -> None:
        """See messages.Duplex."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write_eof()


class _HandedOver(web.StreamResponse):
    """What aiohttp gets back for a request that it need not answer any more."""

    @override
    async def prepare(self, request: web.BaseRequest) -> Any:
        return None

    @override
    async def write_eof(self, data: bytes = b"") -> None:
        return None


async def upgraded(request: web.BaseRequest, answer: messages.Response) -> web.StreamResponse:
    """Answers 101, lets the handler have the connection, and closes it once the handler is done."""
    transport = request.transport
    if answer.upgrade is None:
        raise errors.Bug("there is no upgrade")
    if transport is None:
        with contextlib.suppress(errors.SkepError):
            await answer.upgrade(messages.Gone())
        raise ConnectionResetError("the client has gone")
    before = request.protocol
    reader = asyncio.StreamReader(limit=READ_BYTES)
    protocol = _Raw(reader, before)
    transport.write(_head(answer))
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    # aiohttp keeps what came right behind the request's head: some clients do not wait for the answer.
    early: bytes = getattr(before, "_message_tail", b"")
    if early:
        reader.feed_data(early)
    with contextlib.suppress(RuntimeError):
        transport.resume_reading()
    writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
    try:
        with contextlib.suppress(errors.SkepError):  # the connection's end says it all
            await answer.upgrade(_Connection(reader, writer))
    finally:
        writer.close()
    response = _HandedOver()
    response.force_close()
    return response


def _head(answer: messages.Response) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} UPGRADED", *(f"{name}: {value}" for name, value in answer.headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
