"""Calls to the engine that end in a raw connection, which its HTTP client cannot give."""

import asyncio
import contextlib
import json
from typing import Any

from agent.runtime.docker import client
from skep import errors

ANSWER_S = 30.0  # an engine that starts a command on a busy machine
HEAD_BYTES_MAX = 64 * 1024
SWITCHING, OK = 101, 200  # older engines and Podman answer 200 and are raw all the same

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def post(engine: client.Client, path: str, body: Any) -> Connection:
    """POSTs and returns the raw connection. Raises as the client's other calls do."""
    target = f"/v{engine.version[0]}.{engine.version[1]}{path}"
    payload = json.dumps(body).encode()
    head = (
        f"POST {target} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(engine.socket, limit=HEAD_BYTES_MAX)
            try:
                writer.write(head.encode() + payload)
                await writer.drain()
                await _accepted(reader)
            except BaseException:
                await close(writer)
                raise
    except TimeoutError:
        raise client.EngineAway(
            f"the container engine at {engine.socket} does not answer POST {path} in time"
        ) from None
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        raise client.EngineAway(f"the container engine at {engine.socket} broke off POST {path}: {error}") from error
    return reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    """Closes for good."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _accepted(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    try:
        status = int(first.split()[1])
    except (ValueError, IndexError):
        raise client.EngineAway(f"the engine's answer is no HTTP: {first!r}") from None
    if status in {SWITCHING, OK}:
        return
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = fields.get("content-length", "")
    raw = await reader.readexactly(min(int(length), HEAD_BYTES_MAX)) if length.isdigit() else b""
    raise refusal(status, raw)


def refusal(status: int, raw: bytes) -> errors.SkepError:
    """The error for an answer of 400 or more."""
    try:
        message = str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        message = raw.decode(errors="replace").strip() or f"HTTP {status}"
    return client.ERRORS.get(status, client.EngineFailed)(message)
