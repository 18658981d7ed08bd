"""What a node with a real engine tells of itself, with the engine there and away."""

import asyncio

import pytest

from agent import facts
from agent.runtime import docker
from skep import clock, ids
from tests.engine import conftest

pytestmark = pytest.mark.timeout(120)


def test_an_engine_that_goes_is_noticed_at_once_and_told_with_the_reason(node: conftest.Node) -> None:
    own = node.engine.restartable()

    async def body(_: docker.DockerRuntime) -> None:
        stirred = asyncio.Event()
        runtime = docker.DockerRuntime(
            node_id=node.node_id, socket=f"unix://{node.engine.socket}", clock=clock.SystemClock(),
            rng=ids.system_rng(), stirred=stirred.set,
        )  # fmt: skip
        await runtime.open()
        facing = facts.Facts(runtime=runtime)
        events = aiter(runtime.events())
        assert await anext(events) == ""
        listening = asyncio.ensure_future(anext(events))
        try:
            found = await facing.describe()
            assert found.disk.path.startswith("/")
            assert 0 < found.disk.free_bytes < found.disk.total_bytes
            assert found.disk.image_bytes > 0
            assert [each.kind for each in found.conditions if each.kind == "engine"] == []
            stirred.clear()
            await asyncio.to_thread(own.kill)
            async with asyncio.timeout(20):
                await stirred.wait()
            (wrong,) = [each for each in (await facing.describe()).conditions if each.kind == "engine"]
            assert wrong.message.startswith("cannot connect to the container engine at")
            stirred.clear()
        finally:
            await asyncio.to_thread(own.start)
        async with asyncio.timeout(30):
            await stirred.wait()
        assert [each.kind for each in (await facing.describe()).conditions if each.kind == "engine"] == []
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await runtime.close()

    node.run(body)
