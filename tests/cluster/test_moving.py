"""Drains and rebalancing on a live cluster: nothing is ever missing, and the command says what happens."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CREATE = ("service", "create", "--detach", "--restart-delay", "200ms", "--update-monitor", "500ms",
          "--stop-grace-period", "2s")  # fmt: skip
SLEEPER = ("process", "sh", "-c", "exec sleep 1000")
# Does not start on one node, so that a move there fails.
PICKY = ("--env", "NODE={{.Node.Hostname}}", "process", "sh", "-c", 'test "$NODE" != {} || exit 7; exec sleep 1000')


def test_nodes_are_emptied_and_filled_again_without_a_gap(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1, agents=3) as cluster:
            await drain(cluster)
            await rebalance(cluster)
            await unhealthy(cluster)
            await by_policy(cluster)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def never_below(cluster: harness.Cluster, service: str, count: int) -> AsyncIterator[None]:
    """While this runs, so many tasks of the service do, whenever one looks."""
    least = count

    async def look() -> None:
        nonlocal least
        while True:
            least = min(least, sum(task["Status"]["State"] == "running" for task in await cluster.tasks(service)))
            await asyncio.sleep(harness.POLL_S)

    watching = asyncio.create_task(look())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    assert least == count


async def places(cluster: harness.Cluster, service: str) -> dict[str, int]:
    """How many running tasks of the service each node has, by the node's name."""
    names = {node["ID"]: node["Description"]["Hostname"] for node in await cluster.nodes()}
    counts: dict[str, int] = {}
    for task in await cluster.running(service):
        counts[names[task["NodeID"]]] = counts.get(names[task["NodeID"]], 0) + 1
    return counts


async def drain(cluster: harness.Cluster) -> None:
    two = cluster.names[1:3]
    await cluster.skep(*CREATE, "--name", "web", "--replicas", "4", *SLEEPER)
    await cluster.skep(*CREATE, "--name", "db", "--replicas", "1", "--label", "io.skep.at-most-once=true",
                       "--constraint", f"node.hostname!={cluster.names[0]}",
                       "--constraint", f"node.hostname!={cluster.names[3]}", *SLEEPER)  # fmt: skip
    await cluster.converged("web", 4)
    await cluster.converged("db", 1)
    planned = await cluster.skep("node", "drain", "--plan", "--json", *two, check=False)
    assert planned.code == 3, planned  # db has no place elsewhere
    found = json.loads(planned.out)
    assert [gap["Name"] for gap in found["Gaps"]] == ["db.1"]
    await cluster.skep("service", "update", "--constraint-rm", f"node.hostname!={cluster.names[3]}", "db")
    async with never_below(cluster, "web", 4):
        told = await cluster.skep("node", "drain", "--wait", "--deadline", "5m", *two)
    assert "db.1" in told.out.split("Node ")[0], "what has a gap comes first"
    assert told.out.splitlines()[-1].endswith(": empty")
    assert set(await places(cluster, "web")) <= {cluster.names[0], cluster.names[3]}
    moved = [task for task in await cluster.tasks("web") if task["DesiredState"] == "running"]
    assert len(moved) == 4
    assert await places(cluster, "db") == {cluster.names[3]: 1}
    await cluster.skep("node", "drain", "--cancel", *two)


async def rebalance(cluster: harness.Cluster) -> None:
    planned = await cluster.skep("rebalance", "--plan", "--json", "--min-age", "1s", check=False)
    assert planned.code == 2, planned
    async with never_below(cluster, "web", 4):
        told = await cluster.skep("rebalance", "--min-age", "1s")
    assert "the load is even now" in told.out
    assert await places(cluster, "web") == dict.fromkeys(cluster.names, 1)
    assert (await cluster.skep("rebalance", "--plan", "--min-age", "0s", check=False)).code == 0


async def unhealthy(cluster: harness.Cluster) -> None:
    """The first move that fails ends it, and the service is as it was."""
    await cluster.skep("service", "rm", "web", "db")
    bad = cluster.names[3]
    await cluster.skep("node", "drain", "--wait", bad)
    picky = [part.format(bad) if "exit 7" in part else part for part in PICKY]
    await cluster.skep(*CREATE, "--name", "picky", "--replicas", "6", *picky)
    before = {task["ID"] for task in await cluster.converged("picky", 6)}
    await cluster.skep("node", "activate", bad)
    async with never_below(cluster, "picky", 6):
        told = await cluster.skep("rebalance", "--min-age", "0s", check=False)
    assert told.code == 1, told
    assert f"on {bad} ended before it was proven: " in told.err
    assert {task["ID"] for task in await cluster.converged("picky", 6)} == before


async def by_policy(cluster: harness.Cluster) -> None:
    """With the policy on, a node that comes back gets tasks by itself, once it has been there for a while."""
    await cluster.skep("service", "rm", "picky")
    back = cluster.names[3]
    await cluster.skep("node", "drain", "--wait", back)
    await cluster.skep(*CREATE, "--name", "even", "--replicas", "4", *SLEEPER)
    await cluster.converged("even", 4)
    await cluster.skep("rebalance", "--auto", "on")
    async with never_below(cluster, "even", 4):
        await cluster.skep("node", "activate", back)

        async def even() -> bool:
            return await places(cluster, "even") == dict.fromkeys(cluster.names, 1)

        await harness.until("the load is even again", even, timeout_s=120.0)
    await cluster.skep("rebalance", "--auto", "off")
