"""The daemons behind `skep dev`: starts them, joins them into one cluster, restarts what dies, cleans up.

Each node is a real skepd with its own state directory, ports and socket; what is not real is only that they share a
machine. The file dev.json in the directory remembers the layout, so that the same cluster can be started again.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import pathlib
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from skep import client, errors, ids

START_TIMEOUT_S = 30.0  # one skepd until its socket answers; a loaded laptop takes a few seconds
STOP_TIMEOUT_S = 15.0
RESTART_DELAY_S = 1.0  # as a service manager would wait
POLL_S = 0.05
LOWEST_PORT = 15_000
FIRST_EPHEMERAL_PORT = 32_768  # Linux' default


@dataclasses.dataclass(frozen=True)
class DevNode:
    """One node of the cluster."""

    name: str
    manager: bool
    port: int  # cluster port on 127.0.0.1; the join port is the next one
    directory: pathlib.Path
    socket: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        """Where its skepd writes."""
        return self.directory / "skepd.log"


def free_port_pairs(count: int) -> list[int]:
    """`count` ports p such that p and p+1 are free on loopback now.

    They lie below the ports that the kernel gives to outgoing connections: while a node is down, nobody else's
    connection may take its port, least of all one that tries to reach it and meets itself.
    """
    limit = _first_ephemeral_port()
    starts = list(range(LOWEST_PORT, limit - 1, 2)) if limit > LOWEST_PORT + 2 * count else list(range(1024, 65534, 2))
    ids.system_rng().shuffle(starts)
    found = list(itertools.islice(filter(_is_free_pair, starts), count))
    if len(found) < count:
        raise errors.Unavailable(f"no {count} pairs of free ports on 127.0.0.1 between {min(starts)} and {max(starts)}")
    return found


def _is_free_pair(port: int) -> bool:
    with socket.socket() as first, socket.socket() as second:
        try:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
        except OSError:
            return False
        return True


def _first_ephemeral_port() -> int:
    try:
        return int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return FIRST_EPHEMERAL_PORT


class DevCluster:
    """All daemons of one dev cluster. `say` takes lines for the user."""

    def __init__(
        self,
        directory: pathlib.Path,
        nodes: Sequence[DevNode],
        *,
        runtime: str,
        docker_socket: str,
        say: Callable[[str], None],
        restart: bool = True,
    ) -> None:
        self.directory = directory
        self.nodes = list(nodes)
        self._runtime = runtime
        self._docker_socket = docker_socket
        self._say = say
        self._restart = restart
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._stopping = False

    # ---------------------------------------------------------------- layout

    @classmethod
    def layout(cls, directory: pathlib.Path, *, managers: int, agents: int) -> tuple[list[DevNode], bool]:
        """The nodes of `directory`, and whether they existed before. Writes dev.json for a new cluster."""
        record = directory / "dev.json"
        if record.exists():
            known = json.loads(record.read_text())["nodes"]
            return [cls._node(directory, **node) for node in known], True
        ports = free_port_pairs(managers + agents)
        plain: list[dict[str, Any]] = [
            {"name": f"dev-{i + 1}", "manager": i < managers, "port": port} for i, port in enumerate(ports)
        ]
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        record.write_text(json.dumps({"nodes": plain}, indent=1))
        return [cls._node(directory, **node) for node in plain], False

    @staticmethod
    def _node(directory: pathlib.Path, *, name: str, manager: bool, port: int) -> DevNode:
        home = directory / name
        return DevNode(name=name, manager=manager, port=port, directory=home, socket=home / "docker.sock")

    # ---------------------------------------------------------------- processes

    def command(self, node: DevNode) -> list[str]:
        """The command line of a node's skepd."""
        return [
            sys.executable, "-m", "skep.daemon", "--state-dir", str(node.directory), "--socket", str(node.socket),
            "--name", node.name, "--runtime", self._runtime, "--docker-socket", self._docker_socket,
        ]  # fmt: skip

    def pid(self, name: str) -> int | None:
        """Process ID of a node's skepd while it runs."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.returncode is None else None

    async def terminate(self, name: str) -> int:
        """SIGTERM: the daemon stops as for an upgrade; returns its exit code."""
        process = self._processes[name]
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        return await process.wait()

    async def ended(self, name: str) -> int:
        """Waits until a daemon ends by itself; its exit code."""
        return await self._processes[name].wait()

    async def kill(self, name: str) -> None:
        """SIGKILL: the daemon gets no chance to say anything."""
        process = self._processes[name]
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def respawn(self, name: str, *, options: Sequence[str] = ()) -> None:
        """Starts a node's skepd again, with more options if given, and waits until its API answers."""
        node = next(node for node in self.nodes if node.name == name)
        await self._spawn(node, options)
        await self._answering(node)

    async def _spawn(self, node: DevNode, options: Sequence[str] = ()) -> None:
        node.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with node.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command(node), *options, "--supervised", stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._processes[node.name] = process

    async def _keep_running(self, node: DevNode) -> None:
        while not self._stopping:
            code = await self._processes[node.name].wait()
            if self._stopping:
                return
            self._say(f"skepd of {node.name} ended ({_how(code)}); starting it again")
            await asyncio.sleep(RESTART_DELAY_S)
            await self._spawn(node)

    async def _answering(self, node: DevNode) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT_S
        while True:
            process = self._processes[node.name]
            if process.returncode is not None:
                raise errors.Unavailable(f"skepd of {node.name} ended at its start:\n{self._log_tail(node)}")
            try:
                await self.call(node, "GET", "/_ping")
            except errors.SkepError:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
            else:
                return

    def _log_tail(self, node: DevNode) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(node.log.read_text(errors="replace").splitlines()[-15:])
        return ""

    # ---------------------------------------------------------------- cluster

    async def call(self, node: DevNode, method: str, path: str, body: Any = None) -> Any:
        """One request to a node's API."""

        def ask() -> Any:
            with contextlib.closing(client.Client(f"unix://{node.socket}")) as connection:
                return connection.request(method, path, body=body, patient=False).body

        return await asyncio.to_thread(ask)

    async def start(self, *, fresh: bool, init: dict[str, Any]) -> None:
        """Starts every daemon; a fresh cluster is initialised and joined."""
        for node in self.nodes:
            await self._spawn(node)
        await asyncio.gather(*(self._answering(node) for node in self.nodes))
        if self._restart:
            self._watchers = [asyncio.create_task(self._keep_running(node)) for node in self.nodes]
        if fresh:
            await self._form(init)

    async def _form(self, init: dict[str, Any]) -> None:
        first, *others = self.nodes
        await self.call(first, "POST", "/swarm/init", {**init, **self._addresses(first)})
        tokens = (await self.call(first, "GET", "/swarm"))["JoinTokens"]
        for node in others:
            await self.call(node, "POST", "/swarm/join", {
                **self._addresses(node),
                "RemoteAddrs": [f"127.0.0.1:{first.port + 1}"],
                "JoinToken": tokens["Manager" if node.manager else "Worker"],
            })  # fmt: skip

    @staticmethod
    def _addresses(node: DevNode) -> dict[str, str]:
        addr = f"127.0.0.1:{node.port}"
        return {"ListenAddr": addr, "AdvertiseAddr": addr}

    async def ready(self, *, deadline_s: float = START_TIMEOUT_S) -> list[dict[str, Any]]:
        """Waits until every node is READY; returns them as the API shows them. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_s
        last = "no answer yet"
        while loop.time() < deadline:
            if not self._restart:
                self._must_live()
            with contextlib.suppress(errors.SkepError):
                nodes: list[dict[str, Any]] = await self.call(self.nodes[0], "GET", "/nodes")
                states = [node["Status"]["State"] for node in nodes]
                if len(states) == len(self.nodes) and all(state == "ready" for state in states):
                    return nodes
                last = f"{states.count('ready')} of {len(self.nodes)} nodes are ready"
            await asyncio.sleep(POLL_S)
        raise errors.Unavailable(f"the cluster did not come up within {deadline_s:.0f} s: {last}")

    def _must_live(self) -> None:
        for node in self.nodes:
            code = self._processes[node.name].returncode
            if code is not None:
                raise errors.Unavailable(f"skepd of {node.name} ended ({_how(code)}):\n{self._log_tail(node)}")

    async def stop(self, *, keep: bool) -> None:
        """Stops the daemons, then every task they ran; removes the directory unless it is to be kept."""
        self._stopping = True
        for watcher in self._watchers:
            watcher.cancel()
        running = [process for process in self._processes.values() if process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await asyncio.gather(*(self._ended(process) for process in running))
        await asyncio.gather(*(self._remove_tasks(node) for node in self.nodes if node.directory.exists()))
        if not keep:
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    @staticmethod
    async def _ended(process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _remove_tasks(self, node: DevNode) -> None:
        with node.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command(node), "--remove-tasks", stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
            if await process.wait() != 0:
                self._say(f"tasks of {node.name} could not all be removed:\n{self._log_tail(node)}")


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
