"""skepd on a machine whose engine is not there: it says so and waits, and its tasks are where they were."""

import asyncio
import pathlib
from typing import Any

import pytest

from skep import errors
from skep.cli import dev_cluster
from tests.cluster import harness
from tests.engine import conftest, dockerd

pytestmark = pytest.mark.timeout(300)

HEARTBEAT_S = 20.0  # a node is given up a minute after its last word: on a busy machine a start takes long


async def shown(cluster: harness.Cluster) -> dict[str, dict[str, Any]]:
    """What /nodes says of each node's state."""
    return {node["Description"]["Hostname"]: node for node in await cluster.nodes()}


def containers(tasks: list[harness.Task]) -> dict[str, Any]:
    return {task["ID"]: task["Status"]["ContainerStatus"] for task in tasks}


async def until_without_engine(cluster: harness.Cluster, names: list[str], *, reason: str) -> None:
    """Each of them is, in `node ls`, and the reason stands beside it."""

    async def told() -> bool:
        nodes = await shown(cluster)
        return all(
            nodes[name]["Status"]["State"] == "disconnected"
            and reason in nodes[name]["Status"].get("Message", "")
            for name in names
        )  # fmt: skip

    await harness.until(f"{names} are without engine: {reason}", told)
    listed = (await cluster.skep("node", "ls")).out
    assert listed.lower().count("disconnected") >= len(names), listed


async def until_ready(cluster: harness.Cluster) -> None:
    async def ready() -> bool:
        nodes = (await shown(cluster)).values()
        return all(n["Status"]["State"] == "ready" and not n["Description"]["Conditions"] for n in nodes)

    await harness.until("all nodes ready", ready)


def test_managers_and_agents_start_without_their_engine_and_adopt_when_it_comes(
    engine: conftest.Engine, tmp_path: pathlib.Path
) -> None:
    own = engine.restartable()

    async def main() -> None:
        async with harness.running_cluster(
            tmp_path, runtime="docker", docker_socket=str(engine.socket), heartbeat_s=HEARTBEAT_S
        ) as cluster:
            await cluster.skep(
                "service", "create", "--name", "web", "--replicas", "3", "--init", "--update-monitor", "500ms",
                dockerd.BUSYBOX_IMAGE, "sleep", "1000000",
            )  # fmt: skip
            before = containers(await cluster.converged("web", 3))
            leader = await cluster.leader()
            other = next(name for name in cluster.names if name != leader)
            cluster.talk_to(other)
            await asyncio.to_thread(own.kill)
            try:
                for name in (leader, other):
                    await cluster.cluster.kill(name)
                for name in (leader, other):
                    await cluster.cluster.respawn(name)
                # Two of three managers were dead: that anybody answers shows that they vote.
                await until_without_engine(cluster, [leader, other], reason="cannot connect to the container engine")
                nodes = await shown(cluster)
                assert [nodes[name]["ManagerStatus"]["Reachability"] for name in (leader, other)] == ["reachable"] * 2
            finally:
                await asyncio.to_thread(own.start)
            await until_ready(cluster)
            assert containers(await cluster.converged("web", 3)) == before
            assert len(await cluster.tasks("web")) == 3, "no task has ended, none was added"

    asyncio.run(main())


def test_a_hung_engine_is_shown_keeps_new_tasks_away_and_changes_nothing(
    engine: conftest.Engine, tmp_path: pathlib.Path
) -> None:
    own = engine.restartable()

    async def main() -> None:
        async with harness.running_cluster(
            tmp_path, managers=1, runtime="docker", docker_socket=str(engine.socket), heartbeat_s=HEARTBEAT_S
        ) as cluster:
            await cluster.skep(
                "service", "create", "--name", "web", "--replicas", "2", "--init", "--update-monitor", "500ms",
                dockerd.BUSYBOX_IMAGE, "sleep", "1000000",
            )  # fmt: skip
            before = containers(await cluster.converged("web", 2))
            (name,) = cluster.names
            await asyncio.to_thread(own.pause)
            try:
                await until_without_engine(cluster, [name], reason="no answer within")
                await cluster.skep(
                    "service", "create", "--detach", "--name", "new", dockerd.BUSYBOX_IMAGE, "sleep", "60"
                )

                async def explained() -> bool:
                    (task,) = await cluster.tasks("new")
                    status = task["Status"]
                    return status["State"] == "pending" and "without container engine" in status.get("Err", "")

                await harness.until("the new task is pending, and why", explained)
                await cluster.cluster.kill(name)
                await cluster.cluster.respawn(name)
                await until_without_engine(cluster, [name], reason="does not answer")
            finally:
                await asyncio.to_thread(own.resume)
            await until_ready(cluster)
            await cluster.converged("new", 1)
            assert containers(await cluster.converged("web", 2)) == before
            assert len(await cluster.tasks("web")) == 2, "no task has ended, none was added"

    asyncio.run(main())


def test_a_machine_without_engine_becomes_no_member(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        nodes, _ = dev_cluster.DevCluster.layout(tmp_path / "c", managers=1, agents=0)
        cluster = dev_cluster.DevCluster(
            tmp_path / "c", nodes, runtime="docker", docker_socket=str(tmp_path / "none"), say=print, restart=False
        )
        try:
            with pytest.raises(errors.Unavailable, match=r"cannot connect to the container engine at .*none: No such"):
                await cluster.start(fresh=True, init={})
            info = await cluster.call(nodes[0], "GET", "/info")
            assert info["Swarm"]["LocalNodeState"] == "inactive"
        finally:
            await cluster.stop(keep=False)

    asyncio.run(main())
