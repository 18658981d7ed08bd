"""Who is a manager, and how that changes: promotion, demotion, removal, a new address, a planned stop."""

import asyncio
import contextlib
import json
import pathlib

import grpc.aio
import pytest

from manager.ca import membership_client
from skep import client, clock, errors, pb
from skep.cli import dev_cluster
from skep.security import files, tls
from skep.security import identity as identities
from skep.v1 import ca_pb2_grpc, raft_pb2_grpc
from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SERVICE = (
    "service", "create", "--detach", "--stop-grace-period", "1s", "--name", "web", "--replicas", "6",
    "process", "sleep", "1000",
)  # fmt: skip


async def by_name(cluster: harness.Cluster) -> dict[str, harness.Node]:
    return {node["Description"]["Hostname"]: node for node in await cluster.nodes()}


async def managers(cluster: harness.Cluster) -> dict[str, str]:
    """Reachability by name of those that are members of the group."""
    return {
        name: node["ManagerStatus"]["Reachability"]
        for name, node in (await by_name(cluster)).items()
        if "ManagerStatus" in node
    }


async def are_managers(cluster: harness.Cluster, *names: str) -> None:
    """Waits until exactly these are managers, all of them reachable."""

    async def settled() -> bool:
        return await managers(cluster) == dict.fromkeys(names, "reachable")

    await harness.until(f"the managers are {names}", settled)


def node_of(cluster: harness.Cluster, name: str) -> dev_cluster.DevNode:
    return next(node for node in cluster.cluster.nodes if node.name == name)


async def is_turned_away(identity: identities.Identity, node: dev_cluster.DevNode) -> None:
    """A certificate that says manager, and is valid for weeks, opens nothing that is for managers."""
    assert identity.role == pb.NODE_ROLE_MANAGER
    addr = f"127.0.0.1:{node.port}"
    async with tls.channel(identity, addr) as channel:
        answers = ca_pb2_grpc.ForwardStub(channel).Http(pb.HttpRequest(method="GET", target="/nodes"))
        with pytest.raises(grpc.aio.AioRpcError, match="is not one of the managers any more"):
            async for _ in answers:
                pass
        with pytest.raises(grpc.aio.AioRpcError, match=r"is not one of the managers any more|the lead has just passed"):
            await ca_pb2_grpc.CAStub(channel).RenewForNode(pb.RenewForNodeRequest(node_id="x"))
        with pytest.raises(errors.Denied, match="is not a manager any more"):
            await membership_client.join_raft(tls.dialler(lambda: identity), [addr], own_addr="127.0.0.1:1")
        ack = await raft_pb2_grpc.RaftStub(channel).Link(metadata=(("skep-to", await id_of(node)),)).read()
        assert isinstance(ack, pb.RaftAck)
        assert not ack.accepted


async def id_of(node: dev_cluster.DevNode) -> str:
    with contextlib.closing(client.Client(f"unix://{node.socket}")) as connection:
        return str((await asyncio.to_thread(connection.get, "/info"))["Swarm"]["NodeID"])


async def is_worker(cluster: harness.Cluster, name: str) -> None:
    """Waits until the machine itself says that it is a worker and nothing of a manager is left on it."""
    node = node_of(cluster, name)

    async def settled() -> bool:
        swarm = (await cluster.cluster.call(node, "GET", "/info"))["Swarm"]
        left = [path for path in (node.directory / "raft", node.directory / "identity" / "data.key") if path.exists()]
        return swarm["LocalNodeState"] == "active" and not swarm["ControlAvailable"] and not left

    await harness.until(f"{name} is a worker", settled)


def pids(tasks: list[harness.Task]) -> dict[str, int]:
    return {task["ID"]: int(task["Status"]["ContainerStatus"]["PID"]) for task in tasks}


def test_one_manager_becomes_three_and_the_leader_is_demoted(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1, agents=2) as cluster:
            await cluster.skep(*SERVICE)
            before = pids(await cluster.converged("web", 6))
            last = await cluster.skep("node", "demote", "dev-1", check=False)
            assert (last.code, "attempting to demote the last manager of the swarm" in last.err) == (1, True)
            promoted = await cluster.skep("node", "promote", "dev-2", "dev-3")
            assert promoted.out.count("promoted to a manager") == 2
            await are_managers(cluster, "dev-1", "dev-2", "dev-3")

            cluster.talk_to("dev-2")  # a manager of an hour ago is asked like any other
            refused = await cluster.skep("node", "rm", "--force", "dev-1", check=False)
            assert "It must be demoted to worker before removal" in refused.err
            kept = files.load(cluster.cluster.nodes[0].directory / "identity", now=clock.SystemClock().now())
            assert kept is not None
            await cluster.skep("node", "demote", "dev-1")
            await is_worker(cluster, "dev-1")
            for name in ("dev-2", "dev-3"):
                await is_turned_away(kept, node_of(cluster, name))
            await are_managers(cluster, "dev-2", "dev-3")
            assert await cluster.leader() in {"dev-2", "dev-3"}
            assert (await by_name(cluster))["dev-1"]["Status"]["State"] == "ready"
            await cluster.skep("service", "scale", "--detach", "web=7")
            assert before.items() <= pids(await cluster.converged("web", 7)).items(), "no task was touched"

            refused = await cluster.skep("node", "rm", "dev-1", check=False)
            assert "is not down and can't be removed" in refused.err
            await cluster.skep("node", "update", "--role", "manager", "dev-1")  # and back again
            await are_managers(cluster, "dev-1", "dev-2", "dev-3")

    asyncio.run(main())


def test_demotions_without_a_quorum_are_refused_and_dead_managers_can_be_removed(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            first, second, dead = await cluster.leader(), "", ""
            second, dead = [name for name in cluster.names if name != first]
            cluster.talk_to(first)
            await cluster.cluster.kill(dead)

            async def noticed() -> bool:
                return (await managers(cluster))[dead] == "unreachable"

            await harness.until("the dead manager is noticed", noticed)
            refused = await cluster.skep("node", "demote", second, check=False)
            assert "this would result in a loss of quorum" in refused.err
            await cluster.skep("node", "demote", dead)
            await are_managers(cluster, first, second)

            await cluster.cluster.respawn(dead)  # learns of it now
            await is_worker(cluster, dead)
            await cluster.skep(*SERVICE)
            await cluster.converged("web", 6)
            node = (await by_name(cluster))[dead]
            await cluster.skep("node", "rm", "--force", dead)
            moved = await cluster.converged("web", 6)
            assert all(task["NodeID"] != node["ID"] for task in moved)
            await told_and_empty(cluster, dead)

            removed = node_of(cluster, dead)  # and back in, as somebody new
            addr = f"127.0.0.1:{removed.port}"
            cluster.talk_to(dead)
            await cluster.skep("leave", "--force")
            token = (await cluster.cluster.call(node_of(cluster, first), "GET", "/swarm"))["JoinTokens"]["Manager"]
            join = ("join", "--advertise-addr", addr, "--listen-addr", addr)
            await cluster.skep(*join, f"127.0.0.1:{node_of(cluster, first).port + 1}", env={"SKEP_JOIN_TOKEN": token})
            await are_managers(cluster, *cluster.names)

    asyncio.run(main())


async def told_and_empty(cluster: harness.Cluster, name: str) -> None:
    """Waits until a removed machine says so and runs nothing any more."""
    node = node_of(cluster, name)

    async def told() -> bool:
        swarm = (await cluster.cluster.call(node, "GET", "/info"))["Swarm"]
        tasks = [path for path in (node.directory / "tasks").glob("*/") if path.is_dir()]
        return swarm["LocalNodeState"] == "error" and "removed from the cluster" in swarm["Error"] and not tasks

    await harness.until(f"{name} knows that it was removed, and has stopped its tasks", told)


def test_a_manager_with_a_new_address_is_found_again(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            for name in (next(name for name in cluster.names if name != leader), leader):
                (port,) = dev_cluster.free_port_pairs(1)
                cluster.talk_to(next(other for other in cluster.names if other != name))
                await cluster.cluster.terminate(name)
                await cluster.cluster.respawn(name, options=("--advertise-addr", f"127.0.0.1:{port}"))

                async def moved(name: str = name, port: int = port) -> bool:
                    standing = (await by_name(cluster))[name].get("ManagerStatus", {})
                    return bool(standing.get("Addr") == f"127.0.0.1:{port}" and standing["Reachability"] == "reachable")

                await harness.until(f"{name} at its new address", moved)
                await are_managers(cluster, *cluster.names)
            name = cluster.names[0]  # and it is remembered: the next start needs no option
            await cluster.cluster.terminate(name)
            await cluster.cluster.respawn(name)
            await are_managers(cluster, *cluster.names)

    asyncio.run(main())


def test_a_planned_stop_of_the_leader_fails_no_write(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            follower = next(node for node in cluster.cluster.nodes if node.name != leader)
            loop = asyncio.get_running_loop()
            stopped = asyncio.Event()
            latencies: list[float] = []
            failures: list[str] = []

            async def write() -> None:
                number = 0
                while not stopped.is_set():
                    number += 1
                    body = {"Name": f"w{number}", "TaskTemplate": {"ContainerSpec": {"Image": "x", "Command": ["y"]}},
                            "Mode": {"Replicated": {"Replicas": 0}}}  # fmt: skip
                    begun = loop.time()
                    try:
                        await cluster.cluster.call(follower, "POST", "/services/create", body)
                    except errors.SkepError as error:
                        failures.append(error.message)
                    latencies.append(loop.time() - begun)

            writing = asyncio.create_task(write())

            async def busy() -> bool:
                return len(latencies) > 20

            await harness.until("writes go on", busy)
            assert await cluster.cluster.terminate(leader) == 0
            so_far = len(latencies)

            async def goes_on() -> bool:
                return len(latencies) > so_far + 20

            await harness.until("writes go on without it", goes_on)
            stopped.set()
            await writing
            assert not failures
            print(json.dumps({"writes": len(latencies), "slowest_s": round(max(latencies), 3)}))
            assert max(latencies) < 2.0

    asyncio.run(main())
