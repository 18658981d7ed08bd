"""Services on a real three-manager cluster with the process runtime, driven by the `skep` command."""

import asyncio
import json
import os
import pathlib
import signal

import pytest

from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SLEEPER = ("process", "sh", "-c", "echo version $VERSION; exec sleep 1000")
CREATE = ("service", "create", "--detach", "--restart-delay", "200ms", "--stop-grace-period", "2s")


def pids(tasks: list[harness.Task]) -> list[int]:
    return [int(task["Status"]["ContainerStatus"]["PID"]) for task in tasks]


def test_a_service_is_deployed_healed_scaled_updated_rolled_back_drained_and_removed(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            await deploy_and_heal(cluster)
            await scale_and_update(cluster)
            await drain_and_remove(cluster)

    asyncio.run(main())


async def deploy_and_heal(cluster: harness.Cluster) -> None:
    await cluster.skep(*CREATE, "--name", "web", "--replicas", "3", "--env", "VERSION=1", *SLEEPER)
    tasks = await cluster.converged("web", 3)
    assert len({task["NodeID"] for task in tasks}) == 3, "spread over all nodes"
    assert all(harness.alive(pid) for pid in pids(tasks))

    os.kill(pids(tasks)[0], signal.SIGKILL)

    async def replaced() -> bool:
        return tasks[0]["ID"] not in {task["ID"] for task in await cluster.running("web")}

    await harness.until("the killed task seen", replaced)
    healed = await cluster.converged("web", 3)
    assert {t["ID"] for t in healed} & {t["ID"] for t in tasks} == {t["ID"] for t in tasks[1:]}
    listed = await cluster.skep("service", "ls")
    assert "3/3" in listed.out
    history = await cluster.skep("service", "ps", "web")
    assert "Failed" in history.out
    assert r"\_ web.1" in history.out


async def scale_and_update(cluster: harness.Cluster) -> None:
    before = {task["ID"] for task in await cluster.converged("web", 3)}
    await cluster.skep("service", "scale", "web=5")
    assert before <= {task["ID"] for task in await cluster.converged("web", 5)}, "scaling restarts nothing"

    updated = await cluster.skep(
        "service", "update", "--update-parallelism", "2", "--update-order", "start-first", "--update-monitor", "500ms",
        "--env-add", "VERSION=2", "web",
    )  # fmt: skip
    assert updated.code == 0
    for task in await cluster.converged("web", 5):
        assert "VERSION=2" in task["Spec"]["ContainerSpec"]["Env"]
    service = await cluster.call("GET", "/services/web")
    assert service["UpdateStatus"]["State"] == "completed"

    async def logged() -> bool:
        logs = await cluster.skep("service", "logs", "web", check=False)
        return logs.out.count("version 2") >= 5

    await harness.until("all five logs", logged)
    await cluster.skep("service", "rollback", "web")
    for task in await cluster.converged("web", 5):
        assert "VERSION=1" in task["Spec"]["ContainerSpec"]["Env"]


async def drain_and_remove(cluster: harness.Cluster) -> None:
    leader = await cluster.leader()
    victim = next(name for name in cluster.names if name != leader)
    ids = {node["Description"]["Hostname"]: node["ID"] for node in await cluster.nodes()}
    await cluster.skep("node", "update", "--availability", "drain", victim)

    async def emptied() -> bool:
        return all(task.get("NodeID") != ids[victim] for task in await cluster.running("web"))

    await harness.until("the drained node is empty", emptied)
    tasks = await cluster.converged("web", 5)
    assert ids[victim] not in {task["NodeID"] for task in tasks}
    assert "Drain" in (await cluster.skep("node", "ls")).out

    await cluster.skep("service", "rm", "web")

    async def gone() -> bool:
        return not await cluster.call("GET", "/tasks") and not any(harness.alive(pid) for pid in pids(tasks))

    await harness.until("tasks and processes gone", gone)


def test_an_update_that_fails_rolls_back_and_the_command_says_so(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1) as cluster:
            await cluster.skep(*CREATE, "--name", "web", "--replicas", "2", "--env", "VERSION=1", *SLEEPER)
            await cluster.converged("web", 2)
            failed = await cluster.skep(
                "service", "update", "--update-failure-action", "rollback", "--update-monitor", "1s",
                "--rollback-monitor", "200ms", "--args", "sh -c 'exit 3'", "web", check=False,
            )  # fmt: skip
            assert failed.code == 1, failed
            assert "roll" in (failed.out + failed.err).lower()
            for task in await cluster.converged("web", 2):
                assert "exec sleep 1000" in json.dumps(task["Spec"]["ContainerSpec"])

    asyncio.run(main())
