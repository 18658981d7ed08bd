"""Reads the output of containers: the engine's frames, or plain bytes when the container has a terminal. Pure parsing.

A frame is eight bytes (stream, three zeros, length in network order) and a record; with timestamps asked for, each
record begins with one and a space.
"""

import datetime
import struct
from collections.abc import AsyncIterator

from agent.runtime import base
from skep import pb

HEADER = struct.Struct(">BxxxL")
STREAMS = {0: pb.LOG_STREAM_STDOUT, 1: pb.LOG_STREAM_STDOUT, 2: pb.LOG_STREAM_STDERR}
FRAME_BYTES_MAX = 16 << 20  # engines split lines at 16 kB; more than this means that we lost step


def query(options: base.LogOptions) -> dict[str, str]:
    """Parameters of GET /containers/ID/logs."""
    return {
        "stdout": str(int(options.stdout)),
        "stderr": str(int(options.stderr)),
        "follow": str(int(options.follow)),
        "timestamps": "1",
        "tail": "all" if options.tail < 0 else str(options.tail),
        **({"since": f"{options.since:.9f}"} if options.since else {}),
    }


def entry(stream: int, record: bytes) -> pb.LogEntry:
    """One record with its timestamp taken off; kept whole when it has none."""
    made = pb.LogEntry(stream=STREAMS.get(stream, pb.LOG_STREAM_UNKNOWN))
    at, space, text = record.partition(b" ")
    try:
        moment = datetime.datetime.fromisoformat(at[:19].decode() + "+00:00")
        nanos = int((at[20:].rstrip(b"Z") or b"0").ljust(9, b"0")[:9])
    except ValueError:
        made.data = record
        return made
    if not space or not at.endswith(b"Z"):
        made.data = record
        return made
    made.timestamp.seconds, made.timestamp.nanos = int(moment.timestamp()), nanos
    made.data = text
    return made


async def frames(chunks: AsyncIterator[bytes]) -> AsyncIterator[pb.LogEntry]:
    """Entries of a container without a terminal. Raises ValueError when the stream is none of frames."""
    buffer = b""
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= HEADER.size:
            stream, length = HEADER.unpack_from(buffer)
            if length > FRAME_BYTES_MAX:
                raise ValueError(f"a log frame of {length} bytes")
            if len(buffer) < HEADER.size + length:
                break
            record, buffer = buffer[HEADER.size : HEADER.size + length], buffer[HEADER.size + length :]
            yield entry(stream, record)


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[pb.LogEntry]:
    """Entries of a container with a terminal: everything is standard output."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield entry(1, line + b"\n")
    if rest:
        yield entry(1, rest)
