"""What a cluster lives through: a killed leader, a killed agent, a restarted cluster."""

import asyncio
import pathlib

import pytest

from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SERVICE = (
    "service", "create", "--detach", "--stop-grace-period", "1s", "--name", "web", "--replicas", "6",
    "process", "sleep", "1000",
)  # fmt: skip


def by_id(tasks: list[harness.Task]) -> dict[str, int]:
    return {task["ID"]: int(task["Status"]["ContainerStatus"]["PID"]) for task in tasks}


def test_the_leader_dies_and_nothing_acknowledged_is_lost(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            await cluster.skep(*SERVICE)
            await cluster.converged("web", 6)
            leader = await cluster.leader()
            cluster.talk_to(next(name for name in cluster.names if name != leader))
            # Acknowledged in the same breath as the kill.
            await cluster.skep("service", "create", "--detach", "--name", "last", "--replicas", "0", "process", "true")
            await cluster.cluster.kill(leader)
            await cluster.skep("service", "scale", "--detach", "web=7")
            await cluster.call("GET", "/services/last")
            await cluster.converged("web", 7)
            assert await cluster.leader() != leader

            await cluster.cluster.respawn(leader)

            async def back() -> bool:
                states = {n["Description"]["Hostname"]: n["Status"]["State"] for n in await cluster.nodes()}
                return bool(states[leader] == "ready")

            await harness.until("the old leader back as a member", back)
            cluster.talk_to(leader)
            assert (await cluster.call("GET", "/services/web"))["Spec"]["Mode"]["Replicated"]["Replicas"] == 7

    asyncio.run(main())


def test_a_killed_agent_adopts_its_tasks_when_it_is_back(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1, agents=2, heartbeat_s=harness.PATIENT_S) as cluster:
            await cluster.skep(*SERVICE)
            before = by_id(await cluster.converged("web", 6))
            victim = cluster.names[-1]
            await cluster.cluster.kill(victim)
            await cluster.cluster.respawn(victim)

            async def settled() -> bool:
                states = [node["Status"]["State"] for node in await cluster.nodes()]
                return states == ["ready"] * 3

            await harness.until("the agent is back", settled)
            assert by_id(await cluster.converged("web", 6)) == before, "same tasks, same processes"

    asyncio.run(main())


def test_a_whole_cluster_that_was_killed_comes_back_with_its_tasks(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, heartbeat_s=harness.PATIENT_S) as cluster:
            await cluster.skep(*SERVICE)
            before = by_id(await cluster.converged("web", 6))
            for name in cluster.names:
                await cluster.cluster.kill(name)
            await asyncio.gather(*(cluster.cluster.respawn(name) for name in cluster.names))
            await cluster.cluster.ready()
            assert by_id(await cluster.converged("web", 6)) == before

    asyncio.run(main())


def test_tasks_of_a_node_that_is_gone_run_elsewhere(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1, agents=2) as cluster:
            await cluster.skep(*SERVICE)
            await cluster.converged("web", 6)
            victim = cluster.names[-1]
            gone = {n["Description"]["Hostname"]: n["ID"] for n in await cluster.nodes()}[victim]
            await cluster.cluster.kill(victim)

            async def moved() -> bool:
                running = await cluster.running("web")
                return len(running) == 6 and all(task["NodeID"] != gone for task in running)

            await harness.until("six tasks on the other nodes", moved)
            assert "Down" in (await cluster.skep("node", "ls")).out

    asyncio.run(main())
