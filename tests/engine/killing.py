"""`kill -9` of agent, leader and Docker Engine in a loop under a running service; no container may change.

    python -m tests.engine.killing [SECONDS [SEED]]

runs it for ten minutes with an engine and a cluster of its own (three managers, one worker, real skepd processes) and
prints one line a round. Whatever is killed is started again at once, as a service manager would, but for the engine
that comes only once its nodes are back and say that they have none. The short form is `test_engine_killing.py`.
"""

import asyncio
import contextlib
import pathlib
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.cluster import harness
from tests.engine import dockerd, podmand

Own = dockerd.OwnDockerd | podmand.OwnPodman
LATE = "agent and engine, which comes late"
KINDS = ("agent", "leader", "engine", "engine and leader", "agent and engine", LATE)
REPLICAS = 6
SECONDS = 600.0
PAUSE_S = 1.0  # at most, between two rounds
READY_S = 90.0
SETTLE_S = 5.0
HEARTBEAT_S = 20.0  # a node is given up a minute after its last word: on a busy machine a start takes long


class Killer:
    """Kills in turns, and compares what is there with what was there."""

    def __init__(self, cluster: harness.Cluster, own: Own, *, rng: random.Random, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.own = own
        self.rng = rng
        self.say = say
        self.rounds = dict.fromkeys(KINDS, 0)
        self._before: dict[str, Any] = {}

    async def run(self, seconds: float) -> None:
        """At least one round of each kind. AssertionError with what has changed."""
        await self.cluster.skep(
            "service", "create", "--name", "web", "--replicas", str(REPLICAS), "--init", "--update-monitor", "500ms",
            dockerd.BUSYBOX_IMAGE, "sleep", "1000000",
        )  # fmt: skip
        self._before = await self.seen()
        assert len(self._before["engine"]) == REPLICAS
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        waiting: list[str] = []
        while loop.time() < deadline or not all(self.rounds.values()):
            if not waiting:
                waiting = self.rng.sample(KINDS, len(KINDS))
            kind = waiting.pop()
            began = loop.time()
            await self.kill(kind)
            after = await self.seen()
            assert after == self._before, f"after the death of {kind}: {after} instead of {self._before}"
            self.rounds[kind] += 1
            self.say(f"{sum(self.rounds.values())}: {kind} killed and back within {loop.time() - began:.1f} s")
            await asyncio.sleep(self.rng.uniform(0, PAUSE_S))
        await asyncio.sleep(SETTLE_S)
        assert await self.seen() == self._before, "what was late changed nothing either"

    async def kill(self, kind: str) -> None:
        """Kills, starts again, and returns when all nodes are ready."""
        victims: list[str] = []
        leader = await self.cluster.leader()
        if "leader" in kind:
            victims.append(leader)
        if "agent" in kind:
            victims.append(self.rng.choice([name for name in self.cluster.names if name != leader]))
        self.cluster.talk_to(next(name for name in self.cluster.names if name not in victims))
        if "engine" in kind:
            await asyncio.to_thread(self.own.kill)
        for name in victims:
            await self.cluster.cluster.kill(name)
        back = [self.cluster.cluster.respawn(name) for name in victims]
        if kind == LATE:
            await asyncio.gather(*back)
            await harness.until("the nodes are shown without engine", lambda: self.without_engine(victims))
            await asyncio.to_thread(self.own.start)
        elif "engine" in kind:
            await asyncio.sleep(self.rng.uniform(0, PAUSE_S))
            await asyncio.gather(asyncio.to_thread(self.own.start), *back)
        else:
            await asyncio.gather(*back)
        await harness.until("all nodes ready", self.ready, timeout_s=READY_S)

    async def ready(self) -> bool:
        """Every node is, with its engine; the leader says so, and each has a session with it."""
        for node in self.cluster.cluster.nodes:
            info = await self.cluster.cluster.call(node, "GET", "/info")
            if info["Swarm"]["LocalNodeState"] != "active" or info["Swarm"].get("Error"):
                return False
        nodes = await self.cluster.nodes()
        return all(
            node["Status"]["State"] == "ready" and not node["Description"].get("Conditions") for node in nodes
        )  # fmt: skip

    async def without_engine(self, names: list[str]) -> bool:
        """Each of them is back and says that it is."""
        said = {
            node["Description"]["Hostname"]: [each["Kind"] for each in node["Description"].get("Conditions") or []]
            for node in await self.cluster.nodes()
            if node["Status"]["State"] == "disconnected"
        }
        return all("engine" in said.get(name, []) for name in names)

    async def seen(self) -> dict[str, Any]:
        """The tasks with their containers as the cluster knows them, and the containers as the engine does."""
        tasks = await self.cluster.converged("web", REPLICAS)
        assert len(await self.cluster.tasks("web")) == REPLICAS, "no task has ended, none was added"
        listed = await asyncio.to_thread(self.own.call, "GET", "/containers/json?all=1")
        found: dict[str, Any] = {}
        for each in listed:
            if each["Labels"].get("io.skep.service.name") == "web":
                inspected = await asyncio.to_thread(self.own.call, "GET", f"/containers/{each['Id']}/json")
                found[each["Id"]] = [inspected["State"]["Pid"], inspected["State"]["StartedAt"]]
        return {"tasks": {task["ID"]: task["Status"]["ContainerStatus"] for task in tasks}, "engine": found}


@contextlib.asynccontextmanager
async def running_cluster(directory: pathlib.Path, own: Own) -> AsyncIterator[harness.Cluster]:
    """Three managers and a worker on the engine."""
    async with harness.running_cluster(
        directory, managers=3, agents=1, runtime="docker", docker_socket=str(own.socket), heartbeat_s=HEARTBEAT_S
    ) as cluster:
        yield cluster


async def _main(seconds: float, seed: int) -> None:
    own = dockerd.OwnDockerd()
    await asyncio.to_thread(own.start)
    try:
        await asyncio.to_thread(dockerd.import_busybox, own.socket)
        with tempfile.TemporaryDirectory(prefix="skep-killing-") as directory:
            async with running_cluster(pathlib.Path(directory), own) as cluster:
                killer = Killer(cluster, own, rng=random.Random(seed), say=lambda line: print(line, flush=True))
                await killer.run(seconds)
                print(
                    f"killing.rounds: {sum(killer.rounds.values())} rounds ({killer.rounds}); every container unchanged"
                )
    finally:
        await asyncio.to_thread(own.stop)


if __name__ == "__main__":
    if dockerd.missing():
        raise SystemExit(dockerd.missing())
    arguments = sys.argv[1:]
    asyncio.run(_main(float(arguments[0]) if arguments else SECONDS, int(arguments[1]) if arguments[1:] else 1))
