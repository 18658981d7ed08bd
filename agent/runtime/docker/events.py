"""Listens to the engine's events of our containers.

Owns the reconnecting. Events are hints only: an engine forgets them when it restarts and has none for what died
meanwhile, so every new connection begins with "look at all".
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from agent.runtime.docker import client, images, spec
from skep import clock, errors, ids

log = structlog.get_logger(__name__)

RETRY_FIRST_S, RETRY_MAX_S = 0.1, 3.0
BEFORE_S = 5.0  # events from so long before the connection are asked for too: subscribing is not atomic
# Health checks run as exec and would otherwise wake their task twice an interval. Only we create.
IGNORED = ("create", "exec_", "top", "attach", "resize", "archive-path", "export", "copy")


def task_id(event: dict[str, Any]) -> str | None:
    """The task an event is about; None when nothing follows from it."""
    action = str(event.get("Action") or event.get("status") or "")
    if action.startswith(IGNORED):
        return None
    attributes = (event.get("Actor") or {}).get("Attributes") or {}
    return str(attributes.get(spec.TASK, ""))  # Podman may leave labels out: then "" = look at all


async def listen(
    engine: client.Client,
    *,
    node_id: str,
    clock: clock.Clock,
    rng: ids.Rng,
    stirred: Callable[[], None] = lambda: None,
) -> AsyncIterator[str]:
    """Task IDs, "" after each (re)connection. Ends when the client is closed.

    `stirred` is called when the connection is lost and when it is there again.
    """
    delay_s, lost = RETRY_FIRST_S, False
    filters = json.dumps({"type": ["container"], "label": [f"{spec.NODE}={node_id}"]})
    while engine.is_open:
        try:
            await engine.open()  # an engine that comes back may be another version of itself
            query = {"filters": filters, "since": f"{max(0.0, clock.now() - BEFORE_S):.9f}"}
            async with engine.stream("GET", "/events", query=query) as chunks:
                delay_s = RETRY_FIRST_S
                stirred()
                lost = False
                yield ""
                async for event in images.json_stream(chunks):
                    found = task_id(event)
                    if found is not None:
                        yield found
            log.info("engine.events_ended")
        except (errors.SkepError, ValueError) as error:
            log.warning("engine.events_lost", error=str(error))
        if not lost and engine.is_open:
            lost = True
            stirred()
        await asyncio.sleep(delay_s * rng.uniform(0.5, 1.0))
        delay_s = min(RETRY_MAX_S, delay_s * 2)
