"""A cluster under load: real skepd managers, and agents by the hundred in a few processes (`_agents.py`).

Managers are drained, so that tasks go to the agents alone. Everything that was started is gone after `close`.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from skep import errors
from skep.cli import dev_cluster

AGENTS_PER_PROCESS = 1250
AGENTS_NICE = 5  # on a busy machine the managers get their turn first, as if they had their own
HEARTBEAT_S = 5.0  # the default
LOOK_S = 0.02
LOOK_SHARE = 0.1  # of the time goes into looking, at most: answers about thousands of tasks cost the leader something
DEADLINE_S = 600.0
IMAGE = "memory"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Usage:
    """What processes have used so far."""

    cpu_s: float
    peak_mb: float

    @classmethod
    def of(cls, pids: Iterable[int]) -> "Usage":
        """Of these processes together, as the kernel counts."""
        cpu_s = peak_mb = 0.0
        for pid in pids:
            folder = pathlib.Path(f"/proc/{pid}")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            peak_mb += int(status["VmHWM"].split()[0]) / 1024
        return cls(cpu_s, peak_mb)


class Crowd:
    """A process full of agents."""

    def __init__(self, process: asyncio.subprocess.Process, names: list[str]) -> None:
        self.process = process
        self.names = names
        self._asking = asyncio.Lock()

    @classmethod
    async def start(cls, names: list[str], log: pathlib.Path) -> "Crowd":
        """Starts the process; the agents come with `ask`."""
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                "nice", "-n", str(AGENTS_NICE), sys.executable, "-m", "tests.bench._agents",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=file,
            )  # fmt: skip
        return cls(process, names)

    async def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """One command and its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        async with self._asking:
            self.process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
            await self.process.stdin.drain()
            answer: dict[str, Any] = json.loads(await self.process.stdout.readline() or b'{"error": "ended"}')
        if "error" in answer:
            raise errors.Unavailable(f"agents {self.names[0]}..: {answer['error']}")
        return answer

    async def kill(self) -> None:
        """SIGKILL, and all of its agents are gone at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class Swarm:
    """The cluster and the questions asked of it."""

    def __init__(self, cluster: dev_cluster.DevCluster, directory: pathlib.Path) -> None:
        self.cluster = cluster
        self.crowds: list[Crowd] = []
        self.home = cluster.nodes[0]
        self._directory = directory
        self._named = 0

    # ---------------------------------------------------------------- life

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, *, managers: int, agents: int = 0) -> AsyncIterator["Swarm"]:
        """A cluster whose agents are all READY, for as long as the context lasts."""
        directory = pathlib.Path(tempfile.mkdtemp(prefix="skep-swarm-"))
        nodes, _ = dev_cluster.DevCluster.layout(directory / "managers", managers=managers, agents=0)
        cluster = dev_cluster.DevCluster(
            directory / "managers", nodes, runtime="memory", docker_socket="/nonexistent", say=print, restart=False
        )
        swarm = cls(cluster, directory)
        try:
            spec = {"Dispatcher": {"HeartbeatPeriod": int(HEARTBEAT_S * 1e9)}}
            await cluster.start(fresh=True, init={"Spec": spec})
            await cluster.ready()
            for node in await swarm.call("GET", "/nodes"):
                await swarm.drain(node)
            if agents:
                await swarm.join(agents)
            yield swarm
        finally:
            await swarm.close()

    async def close(self) -> None:
        """Ends everything."""
        await asyncio.gather(*(crowd.kill() for crowd in self.crowds))
        keep = bool(os.environ.get("SWARM_KEEP"))
        await self.cluster.stop(keep=keep)
        if keep:
            print(f"logs are kept in {self._directory}")
            return
        for path in self._directory.glob("*.log"):
            path.unlink()
        self._directory.rmdir()

    async def join(self, count: int) -> list[Crowd]:
        """So many more agents, in processes of their own; returns once all are READY."""
        token = (await self.call("GET", "/swarm"))["JoinTokens"]["Worker"]
        names = [f"agent-{self._named + number}" for number in range(count)]
        self._named += count
        parts = [names[start : start + AGENTS_PER_PROCESS] for start in range(0, count, AGENTS_PER_PROCESS)]
        log = self._directory / "agents.log"
        crowds = [await Crowd.start(part, log) for part in parts]
        self.crowds += crowds
        addr = f"127.0.0.1:{self.home.port + 1}"
        await asyncio.gather(*(crowd.ask("join", addr=addr, token=token, names=crowd.names) for crowd in crowds))
        await self.ready()
        return crowds

    async def ready(self, *, without: str = "") -> None:
        """Waits until every agent has a session; `without` is the address of a manager that does not count."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(crowd.ask("sessions", without=without) for crowd in self.crowds))

    async def lose(self, crowd: Crowd) -> None:
        """Kills a process of agents."""
        self.crowds.remove(crowd)
        await crowd.kill()

    # ---------------------------------------------------------------- what it costs

    def pids(self) -> list[int]:
        """The managers' processes."""
        return [pid for node in self.cluster.nodes if (pid := self.cluster.pid(node.name)) is not None]

    def managers(self) -> dict[int, Usage]:
        """What each manager has used so far, by its process."""
        return {pid: Usage.of([pid]) for pid in self.pids()}

    def agents(self) -> dict[int, Usage]:
        """What each process of agents has used so far."""
        return {crowd.process.pid: Usage.of([crowd.process.pid]) for crowd in self.crowds}

    async def leading(self) -> int:
        """The process of the manager that leads."""
        name, _ = await self.leader()
        pid = self.cluster.pid(name)
        if pid is None:
            raise errors.Unavailable(f"manager {name} leads and does not run")
        return pid

    # ---------------------------------------------------------------- the API

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request, repeated while there is no leader."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    return await self.cluster.call(self.home, method, path, body)
                except errors.Unavailable:
                    await asyncio.sleep(LOOK_S)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Waits for a condition, looking as often as LOOK_SHARE allows."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                began = time.monotonic()
                if await condition():
                    return
                await asyncio.sleep(max(LOOK_S, (time.monotonic() - began) * (1 - LOOK_SHARE) / LOOK_SHARE))

    async def service(self, name: str) -> dict[str, Any]:
        """The service with its status."""
        query = urllib.parse.urlencode({"status": "true", "filters": json.dumps({"name": {name: True}})})
        found: list[dict[str, Any]] = await self.call("GET", f"/services?{query}")
        return next(each for each in found if each["Spec"]["Name"] == name)

    async def running(self, name: str, count: int) -> None:
        """Waits until exactly `count` tasks of the service run that shall run."""

        async def there() -> bool:
            return bool((await self.service(name))["ServiceStatus"]["RunningTasks"] == count)

        await self.until(there)

    async def create(self, name: str, replicas: int) -> None:
        """A service."""
        await self.call("POST", "/services/create", spec(name, replicas=replicas))

    async def remove(self, name: str) -> None:
        """Removes a service, and waits until nothing is left of its tasks on the agents."""
        await self.call("DELETE", f"/services/{name}")
        await self.on_agents(0)

    async def tasks_on_agents(self) -> int:
        """How many tasks run, as the agents see it."""
        return sum([int((await crowd.ask("count"))["tasks"]) for crowd in self.crowds])

    async def on_agents(self, count: int) -> None:
        """Waits until so many tasks run on all agents together; costs the managers nothing."""

        async def there() -> bool:
            return await self.tasks_on_agents() == count

        await self.until(there)

    async def drain(self, node: dict[str, Any]) -> None:
        """Empties a node."""
        fresh = await self.call("GET", f"/nodes/{node['ID']}")
        await self.call(
            "POST", f"/nodes/{node['ID']}/update?version={fresh['Version']['Index']}",
            {**fresh["Spec"], "Availability": "drain"},
        )  # fmt: skip

    async def leader(self) -> tuple[str, str]:
        """(name, cluster address) of the manager that leads."""
        nodes = await self.call("GET", "/nodes")
        found = next(node for node in nodes if node.get("ManagerStatus", {}).get("Leader"))
        return found["Description"]["Hostname"], found["ManagerStatus"]["Addr"]


def spec(name: str, *, replicas: int, version: int = 1, parallelism: int = 0) -> dict[str, Any]:
    """A service whose tasks start at once and run for ever."""
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {"Image": IMAGE, "Command": ["x"], "Env": [f"V={version}"]}},
        "Mode": {"Replicated": {"Replicas": replicas}},
        "UpdateConfig": {"Parallelism": parallelism, "Monitor": 1_000_000, "Order": "stop-first"},
    }
