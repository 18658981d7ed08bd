"""A task that must never run twice, on real processes: each side goes by its own clock."""

import asyncio
import contextlib
import os
import pathlib
import signal
from collections.abc import Iterator

import pytest

from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

LEASE_S = 6.0
CREATE = ("service", "create", "--detach", "--label", f"io.skep.at-most-once={LEASE_S:.0f}s", "--name", "db",
          "--stop-grace-period", "1s", "--restart-delay", "200ms", "--replicas", "1")  # fmt: skip


def test_it_is_stopped_by_its_own_agent_and_replaced_only_when_it_has_certainly_stopped(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1, agents=2) as cluster:
            home = cluster.names[0]
            await cluster.skep(*CREATE, "--constraint", f"node.hostname!={home}", "process", "sleep", "100000")
            (first,) = await cluster.converged("db", 1)
            await silent_managers(cluster, first)
            (second,) = await cluster.converged("db", 1)
            assert second["ID"] != first["ID"]
            await lost_node(cluster, second)

    asyncio.run(main())


async def silent_managers(cluster: harness.Cluster, task: harness.Task) -> None:
    """The only manager stands still: nobody tells the agent to stop the task."""
    pid = task["Status"]["ContainerStatus"]["PID"]
    manager = cluster.cluster.pid(cluster.home.name)
    assert manager is not None
    with stopped(manager):
        await asyncio.sleep(0.3 * LEASE_S)
        assert harness.alive(pid)  # a pause that is shorter than the lease harms nobody
    await asyncio.sleep(0.3 * LEASE_S)
    assert harness.alive(pid)
    with stopped(manager):

        async def gone() -> bool:
            return not harness.alive(pid)

        await harness.until("the agent stops what must never run twice", gone, timeout_s=LEASE_S + 10.0)

    async def told() -> bool:
        return any("must never run twice" in each["Status"].get("Err", "") for each in await cluster.tasks("db"))

    await harness.until("the task says why it ended", told)


async def lost_node(cluster: harness.Cluster, task: harness.Task) -> None:
    """Agent and task stand still as one, as on a machine that is cut off: the other node gets the task, in time."""
    names = {node["ID"]: node["Description"]["Hostname"] for node in await cluster.nodes()}
    away = names[task["NodeID"]]
    agent = cluster.cluster.pid(away)
    assert agent is not None
    loop = asyncio.get_running_loop()
    with stopped(agent):
        began = loop.time()

        async def elsewhere() -> bool:
            return any(names[each["NodeID"]] != away for each in await cluster.running("db"))

        await harness.until("the task runs on the other node", elsewhere, timeout_s=90.0)
        down_s = 3 * harness.HEARTBEAT_S * 0.9  # of silence
        assert loop.time() - began > down_s + LEASE_S + 1.0  # lease and grace period


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does not run for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
