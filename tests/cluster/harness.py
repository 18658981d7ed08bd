"""Real clusters for tests: skepd processes on loopback, driven through the real `skep` command.

A test is a coroutine that gets a `Cluster`; everything it started is gone afterwards, whatever happened.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from skep import errors
from skep.cli import dev_cluster

POLL_S = 0.1
CONVERGE_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 90.0
HEARTBEAT_S = 1.0  # a third of the time after which a silent node is down
PATIENT_S = (
    4.0  # for tests in which a daemon is killed and is to find its tasks as they were: a busy machine starts it late
)
Task = dict[str, Any]
Node = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command came back with."""

    code: int
    out: str
    err: str


class Cluster:
    """A running cluster and the questions tests ask it. `home` is the node that is talked to."""

    def __init__(self, cluster: dev_cluster.DevCluster) -> None:
        self.cluster = cluster
        self.home = cluster.nodes[0]

    @property
    def names(self) -> list[str]:
        """Names of all nodes."""
        return [node.name for node in self.cluster.nodes]

    def talk_to(self, name: str) -> None:
        """Commands go to this node from now on."""
        self.home = next(node for node in self.cluster.nodes if node.name == name)

    async def skep(self, *arguments: str, check: bool = True, env: dict[str, str] | None = None) -> Outcome:
        """Runs the real command in a process of its own; with `check` a failure is the test's."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "skep", "--host", f"unix://{self.home.socket}", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            out, err = await process.communicate()
        outcome = Outcome(process.returncode or 0, out.decode(), err.decode())
        assert not check or outcome.code == 0, f"skep {' '.join(arguments)}: {outcome}"
        return outcome

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request to the API of the node that is talked to, patient with elections."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CONVERGE_TIMEOUT_S
        while True:
            try:
                return await self.cluster.call(self.home, method, path, body)
            except errors.Unavailable:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(POLL_S)

    async def tasks(self, service: str) -> list[Task]:
        """All tasks of a service, dead ones too."""
        chosen = urllib.parse.urlencode({"filters": json.dumps({"service": {service: True}})})
        tasks: list[Task] = await self.call("GET", f"/tasks?{chosen}")
        return tasks

    async def running(self, service: str) -> list[Task]:
        """Tasks that run and shall run."""
        return [
            task for task in await self.tasks(service)
            if task["Status"]["State"] == "running" and task["DesiredState"] == "running"
        ]  # fmt: skip

    async def nodes(self) -> list[Node]:
        """All nodes."""
        nodes: list[Node] = await self.call("GET", "/nodes")
        return nodes

    async def leader(self) -> str:
        """Name of the leading node."""
        found: list[str] = []

        async def known() -> bool:
            found[:] = [
                node["Description"]["Hostname"] for node in await self.nodes()
                if node.get("ManagerStatus", {}).get("Leader")
            ]  # fmt: skip
            return len(found) == 1

        await until("a leader", known)
        return found[0]

    async def converged(self, service: str, count: int) -> list[Task]:
        """Waits until exactly `count` tasks of the service are wanted and all of them run; returns them."""
        found: list[Task] = []

        async def there() -> bool:
            tasks = await self.tasks(service)
            wanted = [task for task in tasks if task["DesiredState"] in {"running", "ready"}]
            found[:] = [task for task in wanted if task["Status"]["State"] == "running"]
            return len(wanted) == len(found) == count

        try:
            await until(f"{service} {count}/{count}", there)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(await self.tasks(service), indent=1)[:6000]}") from error
        return sorted(found, key=lambda task: int(task["Slot"]))


def alive(pid: int) -> bool:
    """Whether a process of that ID is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(what: str, condition: Callable[[], Awaitable[bool]], *, timeout_s: float = CONVERGE_TIMEOUT_S) -> None:
    """Waits for a condition; AssertionError naming `what` when it does not come true in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not await condition():
        assert loop.time() < deadline, f"not within {timeout_s:.0f} s: {what}"
        await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def running_cluster(
    directory: pathlib.Path,
    *,
    managers: int = 3,
    agents: int = 0,
    runtime: str = "process",
    docker_socket: str = "/nonexistent",
    heartbeat_s: float = HEARTBEAT_S,
) -> AsyncIterator[Cluster]:
    """A cluster that is ready, and stopped and swept afterwards. Daemons that die stay dead until `respawn`."""
    nodes, _ = dev_cluster.DevCluster.layout(directory / "c", managers=managers, agents=agents)
    cluster = dev_cluster.DevCluster(
        directory / "c", nodes, runtime=runtime, docker_socket=docker_socket, say=print, restart=False
    )
    try:
        period_ns = int(heartbeat_s * 1_000_000_000)
        await cluster.start(fresh=True, init={"Spec": {"Dispatcher": {"HeartbeatPeriod": period_ns}}})
        await cluster.ready()
        yield Cluster(cluster)
    finally:
        for node in nodes:
            if node.log.exists():
                print(f"--- {node.name}\n{node.log.read_text(errors='replace')[-3000:]}")
        await cluster.stop(keep=False)
