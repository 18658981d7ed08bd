"""Global services and jobs on a real cluster, waited for by the `skep` command."""

import asyncio
import json
import pathlib

import pytest

from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SLEEPER = ("process", "sh", "-c", "exec sleep 1000")


def test_global_services_and_jobs(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            await everywhere(cluster)
            await replicated_job(cluster)
            await global_job(cluster)

    asyncio.run(main())


async def everywhere(cluster: harness.Cluster) -> None:
    await cluster.skep(
        "service", "create", "--name", "agent", "--mode", "global", "--env", "WHERE={{.Node.ID}}", *SLEEPER
    )
    tasks = await cluster.running("agent")
    assert len({task["NodeID"] for task in tasks}) == 3
    assert not any("Slot" in task for task in tasks)
    listed = await cluster.skep("service", "ls")
    assert "global" in listed.out
    assert "3/3" in listed.out
    shown = await cluster.skep("service", "ps", "--no-trunc", "agent")
    assert f"agent.{tasks[0]['NodeID']}" in shown.out
    refused = await cluster.skep("service", "scale", "agent=2", check=False)
    assert refused.code != 0
    assert "agent is global" in refused.out + refused.err
    await cluster.skep("service", "update", "--env-add", "VERSION=2", "agent")
    assert {task["ID"] for task in tasks}.isdisjoint({task["ID"] for task in await cluster.running("agent")})
    await cluster.skep("service", "rm", "agent")


async def replicated_job(cluster: harness.Cluster) -> None:
    job = ("--mode", "replicated-job", "--replicas", "4", "--max-concurrent", "2")
    await cluster.skep("service", "create", "--name", "batch", *job, "process", "true")
    listed = await cluster.skep("service", "ls")
    assert "0/2 (4/4 completed)" in listed.out
    assert "replicated job" in listed.out
    (service,) = json.loads((await cluster.skep("service", "inspect", "batch")).out)
    assert service["JobStatus"]["JobIteration"] == {}
    await cluster.skep("service", "update", "--force", "batch")
    (service,) = json.loads((await cluster.skep("service", "inspect", "batch")).out)
    assert service["JobStatus"]["JobIteration"] == {"Index": 1}
    failed = await cluster.skep(
        "service", "create", "--name", "never", "--mode", "replicated-job", "--restart-condition", "none",
        "process", "false", check=False,
    )  # fmt: skip
    assert failed.code != 0
    assert "non-zero exit (1)" in failed.out + failed.err
    await cluster.skep("service", "rm", "batch", "never")


async def global_job(cluster: harness.Cluster) -> None:
    await cluster.skep("service", "create", "--name", "sweep", "--mode", "global-job", "process", "true")
    listed = await cluster.skep("service", "ls")
    assert "0/0 (3/3 completed)" in listed.out
    await cluster.skep("service", "rm", "sweep")
