"""Running coroutines that belong together: when one ends, all end. And seeing to it that what is cancelled ends."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def race(*work: Coroutine[Any, Any, None]) -> None:
    """Runs all of `work` until the first ends, then cancels the others and waits for them.

    Raises what the first one raised, plainly and not as a group. Being cancelled cancels all of `work`.
    """
    running = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        ended = [future for future in running if future.done()]
    finally:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    for future in ended:
        future.result()


def heed_cancellation() -> None:
    """Raises CancelledError when the running task is being cancelled, whatever it got instead of one.

    For loops that try again after every error: gRPC swallows a cancellation that meets the end of a call.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
