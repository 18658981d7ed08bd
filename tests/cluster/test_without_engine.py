"""Leaving a cluster when the machine's engine is gone: real daemons, an engine that only says that it is one."""

import asyncio
import pathlib

import pytest

from skep import errors
from tests.agent.runtime import fakes
from tests.cluster import harness

pytestmark = pytest.mark.timeout(120)


async def an_engine(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
    """One without containers and images, in which nothing happens."""
    if call == "GET /events":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await writer.drain()
    elif call == "GET /info":
        await fakes.answer(writer, 200, {"OSType": "linux", "Architecture": "x86_64", "NCPU": 2, "MemTotal": 1 << 30})
    else:
        await fakes.answer(writer, 200, [])


def test_a_machine_whose_engine_is_gone_leaves_only_with_force(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        engine = fakes.engine(tmp_path / "e", an_engine)
        await engine.__aenter__()
        async with harness.running_cluster(
            tmp_path, managers=1, agents=1, runtime="docker", docker_socket=str(tmp_path / "e")
        ) as cluster:
            await engine.__aexit__(None, None, None)
            (tmp_path / "e").unlink()
            worker = cluster.cluster.nodes[1]

            async def told() -> bool:
                return all(node["Status"]["State"] == "disconnected" for node in await cluster.nodes())

            await harness.until("the nodes are without engine", told)
            with pytest.raises(errors.Unavailable, match="the container engine does not answer"):
                await cluster.cluster.call(worker, "POST", "/swarm/leave")
            assert (await cluster.cluster.call(worker, "GET", "/info"))["Swarm"]["LocalNodeState"] == "active"
            async with asyncio.timeout(30):
                await cluster.cluster.call(worker, "POST", "/swarm/leave?force=true")
            assert (await cluster.cluster.call(worker, "GET", "/info"))["Swarm"]["LocalNodeState"] == "inactive"

    asyncio.run(main())
