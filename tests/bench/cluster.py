"""How long users wait: real skepd processes on this machine, tasks on the memory runtime (no containers, no delays).

Figures: a service of N replicas from the request to all RUNNING, scaling, draining a node, a rolling update, the loss
of the leader until the next acknowledged change. Arguments: managers agents replicas, by default 3 10 200.

Peers, for orientation (SwarmKit in Go with no-op tasks, measured on a machine of the same kind): 10 agents and 100
tasks 0.3 s, drain of a node with 100 of 1,000 tasks 0.4-0.7 s; Docker Swarm, three managers, leader killed until
the next service create is accepted: 10.5-13.8 s.
"""

import asyncio
import json
import pathlib
import tempfile
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from skep import errors
from skep.cli import dev_cluster

LOOK_S = 0.02
DEADLINE_S = 120.0


class Bench:
    """One cluster and the questions asked of it."""

    def __init__(self, cluster: dev_cluster.DevCluster, *, replicas: int) -> None:
        self.cluster = cluster
        self.replicas = replicas
        self.home = cluster.nodes[0]
        self.now = asyncio.get_running_loop().time

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request, repeated while there is no leader."""
        deadline = self.now() + DEADLINE_S
        while True:
            try:
                return await self.cluster.call(self.home, method, path, body)
            except errors.Unavailable:
                if self.now() > deadline:
                    raise
                await asyncio.sleep(LOOK_S)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Waits for a condition."""
        deadline = self.now() + DEADLINE_S
        while not await condition():
            if self.now() > deadline:
                raise TimeoutError("the cluster did not converge")
            await asyncio.sleep(LOOK_S)

    async def running(self, count: int, **counts: str) -> None:
        """Waits until `count` tasks run that shall run."""

        async def there() -> bool:
            query = urllib.parse.urlencode({"status": "true", "filters": json.dumps({"name": {"web": True}})})
            (service,) = await self.call("GET", f"/services?{query}")
            return bool(service["ServiceStatus"]["RunningTasks"] == count)

        await self.until(there)

    def spec(self, *, replicas: int, version: int) -> dict[str, Any]:
        """The service."""
        return {
            "Name": "web",
            "TaskTemplate": {"ContainerSpec": {"Image": "memory", "Command": ["x"], "Env": [f"V={version}"]}},
            "Mode": {"Replicated": {"Replicas": replicas}},
            "UpdateConfig": {"Parallelism": 0, "Monitor": 1_000_000, "Order": "stop-first"},
        }

    async def change(self, spec: dict[str, Any]) -> None:
        """Updates the service."""
        service = await self.call("GET", "/services/web")
        await self.call("POST", f"/services/web/update?version={service['Version']['Index']}", spec)

    async def timed(self, figure: str, work: Awaitable[None]) -> None:
        """Prints how long `work` took."""
        began = self.now()
        await work
        print(f"{figure}: {self.now() - began:.3f} s", flush=True)


async def deploy(bench: Bench) -> None:
    await bench.call("POST", "/services/create", bench.spec(replicas=bench.replicas, version=1))
    await bench.running(bench.replicas)


async def scale(bench: Bench) -> None:
    await bench.change(bench.spec(replicas=bench.replicas * 2, version=1))
    await bench.running(bench.replicas * 2)


async def update(bench: Bench) -> None:
    await bench.change(bench.spec(replicas=bench.replicas * 2, version=2))

    async def completed() -> bool:
        service = await bench.call("GET", "/services/web")
        return bool(service.get("UpdateStatus", {}).get("State") == "completed")

    await bench.until(completed)


async def drain(bench: Bench) -> None:
    node = (await bench.call("GET", "/nodes"))[-1]
    await bench.call(
        "POST", f"/nodes/{node['ID']}/update?version={node['Version']['Index']}",
        {**node["Spec"], "Availability": "drain"},
    )  # fmt: skip
    query = urllib.parse.urlencode(
        {"filters": json.dumps({"node": {node["ID"]: True}, "desired-state": {"running": True}})}
    )

    async def emptied() -> bool:
        return not await bench.call("GET", f"/tasks?{query}")

    await bench.until(emptied)
    await bench.running(bench.replicas * 2)


async def lose_leader(bench: Bench) -> None:
    nodes = await bench.call("GET", "/nodes")
    leader = next(n["Description"]["Hostname"] for n in nodes if n.get("ManagerStatus", {}).get("Leader"))
    bench.home = next(node for node in bench.cluster.nodes if node.manager and node.name != leader)
    await bench.cluster.kill(leader)
    await bench.timed("cluster.failover_s", _create_empty(bench))


async def _create_empty(bench: Bench) -> None:
    spec = {**bench.spec(replicas=0, version=1), "Name": "after"}
    await bench.call("POST", "/services/create", spec)


async def run(*, managers: int, agents: int, replicas: int) -> None:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="skep-bench-"))
    nodes, _ = dev_cluster.DevCluster.layout(directory, managers=managers, agents=agents)
    cluster = dev_cluster.DevCluster(
        directory, nodes, runtime="memory", docker_socket="/nonexistent", say=print, restart=False
    )
    try:
        await cluster.start(fresh=True, init={"Spec": {"Dispatcher": {"HeartbeatPeriod": 1_000_000_000}}})
        await cluster.ready()
        bench = Bench(cluster, replicas=replicas)
        size = f"{replicas}x{managers + agents}.{managers}m"
        await bench.timed(f"cluster.deploy.{size}_s", deploy(bench))
        await bench.timed(f"cluster.double.{size}_s", scale(bench))
        await bench.timed(f"cluster.update_all.{size}_s", update(bench))
        if managers + agents > 1:
            await bench.timed(f"cluster.drain_one.{size}_s", drain(bench))
        if managers > 1:
            await lose_leader(bench)
    finally:
        await cluster.stop(keep=False)


def main(arguments: list[str]) -> None:
    """`make bench BENCH=cluster`."""
    managers, agents, replicas = (int(each) for each in (arguments or ["3", "10", "200"]))
    asyncio.run(run(managers=managers, agents=agents, replicas=replicas))
