"""Process runtimes for tests: opened, cleaned up, and the ends of real processes waited for."""

import asyncio
import contextlib
import os
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from agent.runtime import process
from agent.runtime.process import cgroups, proof
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


def need_limits(runtime: process.ProcessRuntime, *names: str) -> None:
    """Skips the test where the machine lets us limit nothing of the kind; fails where it must (CI runs as root)."""
    has = runtime._cgroups.controllers
    if not has.issuperset(names):
        report = pytest.fail if os.environ.get("SKEP_REQUIRE_ENGINE") == "1" else pytest.skip
        report(f"this machine allows limits of: {cgroups.described(has)}; needed: {', '.join(names)}")


def gone(pid: int) -> bool:
    found = proof.status(pid)
    return found is None or found.state in proof.DEAD_STATES


async def wait_gone(pid: int) -> None:
    async def look() -> bool:
        return gone(pid)

    await workloads.until(look, bool, what=f"end of process {pid}")
