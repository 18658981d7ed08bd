"""A real Docker Engine on one machine: skep beside the bare engine and beside Docker Swarm, in the same run.

Three ways to have 50 containers of one kind on one engine: its API driven with 8 calls at a time, a service of a skep
cluster (one manager, which is drained, and one worker: two real skepd processes), a service of the engine's own swarm
mode. Rounds alternate; ratios are of the same round and the median is told. Then the worker's skepd at rest.

Arguments: replicas rounds, by default 50 3. Needs root, dockerd and a static busybox.
"""

import asyncio
import dataclasses
import json
import pathlib
import statistics
import tempfile
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from agent.runtime import base
from agent.runtime.docker import client, spec
from skep import errors, ids, pb
from skep.cli import dev_cluster
from tests.engine import dockerd

AT_ONCE = 8
LOOK_S = 0.2  # each look costs those who are measured
DEADLINE_S = 300.0
REST_S, SETTLE_S = 20.0, 5.0
COMMAND = ["sleep", "1000000"]
TICKS_PER_S = 100
LABEL = "skep.bench"


@dataclasses.dataclass
class Round:
    """Seconds of one way to do it."""

    create: float
    remove: float


class Bench:
    """One engine and all that is asked of it."""

    def __init__(self, own: dockerd.OwnDockerd, engine: client.Client, *, image: str, replicas: int) -> None:
        self.own = own
        self.engine = engine
        self.image = image
        self.replicas = replicas
        self.now = asyncio.get_running_loop().time

    async def timed(self, work: Awaitable[None]) -> float:
        began = self.now()
        await work
        return self.now() - began

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        deadline = self.now() + DEADLINE_S
        while not await condition():
            if self.now() > deadline:
                raise TimeoutError(f"not within {DEADLINE_S:g} s: {what}")
            await asyncio.sleep(LOOK_S)

    async def empty(self) -> bool:
        return bool(await self.engine.get("/containers/json", query={"all": "1", "limit": "1"}) == [])

    # ---------------------------------------------------------------- the bare engine

    async def bare(self) -> Round:
        """The very containers that skep makes, by hand."""
        made: list[str] = []

        async def create(number: int) -> None:
            body = spec.create_body(self._workload(number), node_id=LABEL, api=self.engine.version)
            answer = await self.engine.post("/containers/create", query={"name": f"bare.{number}"}, body=body)
            made.append(str(answer["Id"]))
            await self.engine.post(f"/containers/{answer['Id']}/start", timeout_s=DEADLINE_S)

        async def remove(container: str) -> None:
            await self.engine.wait(f"/containers/{container}/stop", query={"t": "10"}, timeout_s=DEADLINE_S)
            await self.engine.delete(f"/containers/{container}", query={"force": "1", "v": "1"})

        created = await self.timed(self._at_once(create(number) for number in range(self.replicas)))
        removed = await self.timed(self._at_once(remove(container) for container in list(made)))
        return Round(created, removed)

    async def _at_once(self, work: Iterable[Awaitable[None]]) -> None:
        left = iter(work)

        async def worker() -> None:
            for one in left:
                await one

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    def _workload(self, number: int) -> base.Workload:
        container = pb.ContainerSpec(image=self.image, args=COMMAND, init=True)
        made = pb.ServiceSpec(name="bare", task=pb.TaskSpec(container=container))
        task = pb.Task(id=ids.new_id(ids.system_rng()), service_id="bare", service_name="bare", slot=number + 1)
        return base.Workload(task=task, spec=made, node=pb.Node())

    # ---------------------------------------------------------------- a service

    def service(self) -> dict[str, Any]:
        """The same for skep and for Docker Swarm."""
        return {
            "Name": "bench",
            "TaskTemplate": {"ContainerSpec": {"Image": self.image, "Args": COMMAND, "Init": True}},
            "Mode": {"Replicated": {"Replicas": self.replicas}},
        }

    async def served(self, call: Callable[[str, str, Any], Awaitable[Any]]) -> Round:
        """Create → all RUNNING, remove → no container left."""
        query = urllib.parse.urlencode({"status": "true", "filters": json.dumps({"name": {"bench": True}})})

        async def running() -> bool:
            (service,) = await call("GET", f"/services?{query}", None)
            return bool(service["ServiceStatus"]["RunningTasks"] == self.replicas)

        async def create() -> None:
            await call("POST", "/services/create", self.service())
            await self.until("all tasks RUNNING", running)

        async def remove() -> None:
            await call("DELETE", "/services/bench", None)
            await self.until("no container left", self.empty)

        return Round(await self.timed(create()), await self.timed(remove()))

    async def swarm(self) -> Round:
        """The engine's own swarm mode, which is left again afterwards."""
        await asyncio.to_thread(
            self.own.call, "POST", "/swarm/init", {"ListenAddr": "127.0.0.1:0", "AdvertiseAddr": "127.0.0.1"}
        )

        async def call(method: str, path: str, body: Any) -> Any:
            return await asyncio.to_thread(self.own.call, method, f"/v1.41{path}", body)

        try:
            return await self.served(call)
        finally:
            await asyncio.to_thread(self.own.call, "POST", "/swarm/leave?force=1")


async def at_rest(bench: Bench, cluster: dev_cluster.DevCluster) -> None:
    """What the worker's skepd costs while its containers run and nothing happens."""
    worker = cluster.nodes[-1]
    await cluster.call(cluster.nodes[0], "POST", "/services/create", bench.service())

    async def up() -> bool:
        listed: list[Any] = await bench.engine.get("/containers/json")
        return len(listed) == bench.replicas

    await bench.until("all containers", up)
    await asyncio.sleep(SETTLE_S)
    pid = cluster.pid(worker.name)
    before = cpu_ticks(pid)
    await asyncio.sleep(REST_S)
    used = (cpu_ticks(pid) - before) / TICKS_PER_S / REST_S
    print(f"engine.agent.rss.{bench.replicas}: {resident_bytes(pid) / 2**20:.1f} MiB")
    print(f"engine.agent.cpu.{bench.replicas}: {used * 100:.2f} % of a core", flush=True)
    await cluster.call(cluster.nodes[0], "DELETE", "/services/bench")
    await bench.until("no container left", bench.empty)


def cpu_ticks(pid: int | None) -> int:
    """User and system time."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resident_bytes(pid: int | None) -> int:
    """VmRSS."""
    rows = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS"))


async def drain_manager(cluster: dev_cluster.DevCluster) -> None:
    nodes = await cluster.call(cluster.nodes[0], "GET", "/nodes")
    manager = next(node for node in nodes if node["Spec"]["Role"] == "manager")
    path = f"/nodes/{manager['ID']}/update?version={manager['Version']['Index']}"
    await cluster.call(cluster.nodes[0], "POST", path, {**manager["Spec"], "Availability": "drain"})


def report(replicas: int, rounds: dict[str, list[Round]]) -> None:
    """Seconds of every way, and ratios within the rounds."""
    for name, found in rounds.items():
        for what in ("create", "remove"):
            values = [getattr(each, what) for each in found]
            print(f"engine.{what}.{name}.{replicas}_s: {statistics.median(values):.2f} s"
                  f" ({', '.join(f'{value:.2f}' for value in values)})")  # fmt: skip
    for other in ("bare", "swarm"):
        for what in ("create", "remove"):
            pairs = zip(rounds["skep"], rounds[other], strict=True)
            ratios = [getattr(ours, what) / getattr(theirs, what) for ours, theirs in pairs]
            print(f"engine.{what}_vs_{other}.{replicas}: {statistics.median(ratios):.3f} ratio"
                  f" ({', '.join(f'{ratio:.2f}' for ratio in ratios)})", flush=True)  # fmt: skip


async def run(*, replicas: int, count: int) -> None:
    own = dockerd.OwnDockerd(live_restore=False)
    await asyncio.to_thread(own.start)
    engine = client.Client(str(own.socket))
    directory = pathlib.Path(tempfile.mkdtemp(prefix="skep-bench-"))
    nodes, _ = dev_cluster.DevCluster.layout(directory, managers=1, agents=1)
    cluster = dev_cluster.DevCluster(
        directory, nodes, runtime="docker", docker_socket=str(own.socket), say=print, restart=False
    )
    try:
        await asyncio.to_thread(dockerd.import_busybox, own.socket)
        image = own.call("GET", f"/images/{dockerd.BUSYBOX_IMAGE}/json")["Id"]  # by ID nobody asks a registry
        await engine.open()
        bench = Bench(own, engine, image=image, replicas=replicas)
        await cluster.start(fresh=True, init={"Spec": {}})
        await cluster.ready()
        await drain_manager(cluster)

        async def call(method: str, path: str, body: Any) -> Any:
            return await cluster.call(cluster.nodes[0], method, path, body)

        await bench.bare()  # the first round of an engine is slower than all others
        rounds: dict[str, list[Round]] = {"bare": [], "skep": [], "swarm": []}
        for _ in range(count):
            rounds["bare"].append(await bench.bare())
            rounds["skep"].append(await bench.served(call))
            rounds["swarm"].append(await bench.swarm())
        report(replicas, rounds)
        await at_rest(bench, cluster)
    finally:
        try:
            await cluster.stop(keep=False)
            await engine.close()
        except errors.SkepError as error:
            print(error)
        await asyncio.to_thread(own.stop)


def main(arguments: list[str]) -> None:
    """`make bench BENCH=engine`."""
    if dockerd.missing():
        raise SystemExit(f"no engine to measure: {dockerd.missing()}")
    replicas, rounds = (int(each) for each in (arguments or ["50", "3"]))
    asyncio.run(run(replicas=replicas, count=rounds))
