"""The end of what a task printed that has ended, for its record: container or node may be gone when one asks."""

import asyncio

from agent.runtime import base
from skep import errors

LINES_MAX = 20
BYTES_MAX = 2048  # it travels through the managers' log with every such end
TIMEOUT_S = 2.0  # the report of the end must not wait long for its decoration


async def last(runtime: base.Runtime, task_id: str) -> str:
    """The last lines, cut at the front; empty when nothing was printed or it cannot be read in time."""
    gathered = b""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            # Followed, as what it printed last may be written down only after its end.
            async for entry in runtime.logs(task_id, base.LogOptions(tail=LINES_MAX, follow=True)):
                gathered = (gathered + entry.data)[-BYTES_MAX:]
    except (errors.SkepError, TimeoutError, OSError, ValueError):
        pass  # a log driver that cannot be read, an engine that is away: what there is must do
    return clip(gathered)


def clip(data: bytes) -> str:
    """At most BYTES_MAX bytes of text from the end, beginning with a whole character."""
    text = data[-BYTES_MAX:].decode(errors="replace").replace("\0", "")
    encoded = text.encode()[-BYTES_MAX:]  # what was no text has grown
    return encoded.decode(errors="ignore")
