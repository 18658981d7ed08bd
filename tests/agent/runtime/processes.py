"""Process runtimes for tests: opened, cleaned up, and the ends of real processes waited for."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable

from agent.runtime import process
from agent.runtime.process import proof
from skep import clock, ids
from tests.agent.runtime import workloads

Body = Callable[[process.ProcessRuntime], Awaitable[None]]


def make(directory: pathlib.Path) -> process.ProcessRuntime:
    return process.ProcessRuntime(
        node_id=workloads.NODE_ID, directory=directory, clock=clock.SystemClock(), rng=ids.system_rng()
    )


@contextlib.asynccontextmanager
async def opened(directory: pathlib.Path) -> AsyncIterator[process.ProcessRuntime]:
    runtime = make(directory)
    await runtime.open()
    try:
        yield runtime
    finally:
        for task_id in await runtime.list():
            await runtime.remove(task_id)
        await runtime.close()


def with_runtime(directory: pathlib.Path, body: Body) -> None:
    async def main() -> None:
        async with opened(directory) as runtime:
            await body(runtime)

    asyncio.run(main())


def gone(pid: int) -> bool:
    found = proof.status(pid)
    return found is None or found.state in proof.DEAD_STATES


async def wait_gone(pid: int) -> None:
    async def look() -> bool:
        return gone(pid)

    await workloads.until(look, bool, what=f"end of process {pid}")
