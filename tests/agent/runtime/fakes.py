"""An engine that answers as a test's handler says: HTTP over a unix socket."""

import asyncio
import contextlib
import json
import pathlib
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable

from agent.runtime.docker import client

Handler = Callable[[str, dict[str, str], asyncio.StreamWriter], Awaitable[None]]
VERSION = {"ApiVersion": "1.41", "MinAPIVersion": "1.12"}


async def answer(writer: asyncio.StreamWriter, status: int, body: object) -> None:
    """A whole answer."""
    data = json.dumps(body).encode()
    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data)
    await writer.drain()


@contextlib.asynccontextmanager
async def engine(path: pathlib.Path, handler: Handler) -> AsyncIterator[None]:
    """Answers /version itself; everything else goes to the handler as 'METHOD /path' without the version.

    A registry's credentials are among the query's parameters as `auth`.
    """

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *fields = head.decode().split("\r\n")
                method, target, _ = first.split()
                parts = urllib.parse.urlsplit(target)
                if parts.path == "/version":
                    await answer(writer, 200, VERSION)
                    continue
                if "Transfer-Encoding: chunked" in fields:
                    await reader.readuntil(b"0\r\n\r\n")
                query = dict(urllib.parse.parse_qsl(parts.query))
                query.update(("auth", line.split(": ")[1]) for line in fields if line.startswith("X-Registry-Auth: "))
                await handler(f"{method} {parts.path.removeprefix('/v1.41')}", query, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        for writer in writers:  # as when it dies
            writer.close()


@contextlib.asynccontextmanager
async def connected(path: pathlib.Path, *, call_s: float = 30.0) -> AsyncIterator[client.Client]:
    """An open client."""
    made = client.Client(str(path), call_s=call_s)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
