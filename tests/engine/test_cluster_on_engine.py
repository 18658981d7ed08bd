"""Three skepd processes and real containers: deploy, docker kill, loss of the leader, a killed agent."""

import asyncio
import pathlib
import urllib.request

import pytest

from tests.cluster import harness
from tests.engine import conftest, dockerd

pytestmark = [pytest.mark.timeout(300)]

WEB = ("sh", "-c", "echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp")


def containers(tasks: list[harness.Task]) -> dict[str, str]:
    return {task["ID"]: task["Status"]["ContainerStatus"]["ContainerID"] for task in tasks}


def answers(task: harness.Task) -> bool:
    port = task["Status"]["PortStatus"]["Ports"][0]["PublishedPort"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as reply:
            return bool(reply.read() == b"hello\n")
    except OSError:
        return False


async def all_answer(tasks: list[harness.Task]) -> bool:
    return all(await asyncio.gather(*(asyncio.to_thread(answers, task) for task in tasks)))


def test_containers_live_through_what_their_cluster_lives_through(
    engine: conftest.Engine, tmp_path: pathlib.Path
) -> None:
    async def main() -> None:
        async with harness.running_cluster(
            tmp_path, runtime="docker", docker_socket=str(engine.socket), heartbeat_s=2.0
        ) as cluster:
            created = await cluster.skep(
                "service", "create", "--name", "web", "--replicas", "6", "--publish", "mode=host,target=80",
                "--restart-delay", "200ms", "--stop-grace-period", "1s", "--update-monitor", "500ms",
                dockerd.BUSYBOX_IMAGE, *WEB,
            )  # fmt: skip
            assert created.code == 0
            tasks = await cluster.converged("web", 6)
            await harness.until("every replica answers", lambda: all_answer(tasks))
            await heal_after_docker_kill(cluster, engine, tasks[0])
            await survive_the_leader(cluster)
            await survive_an_agent(cluster)
            await cluster.skep("service", "rm", "web")
            await harness.until("no container left", lambda: swept(engine))

    asyncio.run(main())


async def swept(engine: conftest.Engine) -> bool:
    listed = await asyncio.to_thread(dockerd.call, engine.socket, "GET", "/containers/json?all=1")
    return not [each for each in listed if "io.skep.service.name" in each["Labels"]]


async def heal_after_docker_kill(cluster: harness.Cluster, engine: conftest.Engine, victim: harness.Task) -> None:
    container = victim["Status"]["ContainerStatus"]["ContainerID"]
    await asyncio.to_thread(dockerd.call, engine.socket, "POST", f"/containers/{container}/kill")

    async def replaced() -> bool:
        return victim["ID"] not in {task["ID"] for task in await cluster.running("web")}

    await harness.until("the killed container noticed", replaced)
    healed = await cluster.converged("web", 6)
    await harness.until("every replica answers again", lambda: all_answer(healed))


async def survive_the_leader(cluster: harness.Cluster) -> None:
    leader = await cluster.leader()
    dead = {node["Description"]["Hostname"]: node["ID"] for node in await cluster.nodes()}[leader]
    elsewhere = containers([task for task in await cluster.converged("web", 6) if task["NodeID"] != dead])
    cluster.talk_to(next(name for name in cluster.names if name != leader))
    await cluster.skep("service", "create", "--detach", "--name", "last", "--replicas", "0", dockerd.BUSYBOX_IMAGE)
    await cluster.cluster.kill(leader)
    await cluster.call("GET", "/services/last")
    await cluster.skep("service", "scale", "--detach", "web=7")
    after = containers(await cluster.converged("web", 7))
    assert elsewhere.items() <= after.items(), "containers on the other nodes are untouched"
    await cluster.cluster.respawn(leader)
    await cluster.cluster.ready()
    await cluster.skep("service", "scale", "web=6")


async def survive_an_agent(cluster: harness.Cluster) -> None:
    leader = await cluster.leader()
    victim = next(name for name in cluster.names if name != leader)
    cluster.talk_to(leader)
    before = containers(await cluster.converged("web", 6))
    await cluster.cluster.kill(victim)
    await cluster.cluster.respawn(victim)
    await cluster.cluster.ready()
    assert containers(await cluster.converged("web", 6)) == before, "same tasks in the same containers"
