"""Commands, files, figures and connections of tasks that are containers. See `agent.runtime.access`.

What a command has started in a container is the engine's: it is ended here only where it is proven to be ours.
"""

import asyncio
import contextlib
import datetime
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

from agent.runtime import access
from agent.runtime.docker import client, hijack, netns
from agent.runtime.process import proof
from skep import channel, errors, frames, pb, stamps

CONSOLE_SIZE: client.Version = (1, 42)  # engines since then take the size along with the command
EXIT_S = 5.0  # from the end of a command's output until the engine knows its exit code
LOOK_S = 0.02
HANGUP_S = 1.0  # for a command whose user has gone, before it is killed
RESIZE_TRIES = 10  # engines refuse while the command is being born
COPY_IDLE_S = 60.0  # an engine that neither takes nor gives anything of a copy for so long hangs
CANNOT_START = 126

Json = dict[str, Any]


class DockerAccess:
    """Enters containers."""

    def __init__(self, engine: client.Client, inspect: Callable[[str], Awaitable[Json | None]]) -> None:
        """`inspect` gives the engine's view of a task's container; None when there is none."""
        self._engine = engine
        self._inspect = inspect

    async def _container(self, task_id: str, *, running: bool = True) -> Json:
        container = await self._inspect(task_id)
        if container is None:
            raise errors.NotFound(f"task {task_id} has no container on this node")
        if running and not (container.get("State") or {}).get("Running"):
            raise errors.FailedPrecondition(f"task {task_id} is not running")
        return container

    # ---------------------------------------------------------------- commands

    async def exec(self, task_id: str, what: pb.ExecStart, pipe: channel.Channel) -> int:
        """See Access."""
        container = await self._container(task_id)
        size = [what.size.rows, what.size.columns] if what.tty and what.HasField("size") else None
        known_size = {"ConsoleSize": size} if size and self._engine.version >= CONSOLE_SIZE else {}
        body = {
            "Cmd": list(what.command), "Tty": what.tty, "AttachStdin": what.stdin, "AttachStdout": True,
            "AttachStderr": True, "Env": list(what.env), "User": what.user, "WorkingDir": what.dir, **known_size,
        }  # fmt: skip
        with _refused():
            made = await self._engine.post(f"/containers/{container['Id']}/exec", body=body)
            command = str(made["Id"])
            reader, writer = await hijack.post(
                self._engine, f"/exec/{command}/start", {"Detach": False, "Tty": what.tty, **known_size}
            )
        pipe.say_ready()
        feeding = asyncio.ensure_future(self._feed(command, what, pipe, writer))
        try:
            await _output(reader, pipe, tty=what.tty)
            return await self._exit_code(command)
        except asyncio.CancelledError:
            await hijack.close(writer)
            await self._hang_up(command, str(container["Id"]))
            raise
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            await hijack.close(writer)

    async def _feed(
        self, command: str, what: pb.ExecStart, pipe: channel.Channel, writer: asyncio.StreamWriter
    ) -> None:
        """Input and sizes of the terminal, until there is no more input."""
        if what.tty and what.HasField("size"):
            await self._resize(command, what.size)
        with contextlib.suppress(OSError):
            while (piece := await pipe.receive()) is not None:
                if isinstance(piece, pb.TerminalSize):
                    await self._resize(command, piece)
                elif what.stdin:
                    writer.write(piece.data)
                    await writer.drain()
            if what.stdin and not pipe.is_over:
                writer.write_eof()

    async def _resize(self, command: str, size: pb.TerminalSize) -> None:
        for _ in range(RESIZE_TRIES):
            with contextlib.suppress(errors.SkepError):
                query = {"h": str(size.rows), "w": str(size.columns)}
                await self._engine.post(f"/exec/{command}/resize", query=query)
                return
            await asyncio.sleep(LOOK_S)

    async def _exit_code(self, command: str) -> int:
        deadline = asyncio.get_running_loop().time() + EXIT_S
        while True:
            found: Json = await self._engine.get(f"/exec/{command}/json")
            code = found.get("ExitCode")
            if not found.get("Running") and code is not None:
                return int(code)
            if asyncio.get_running_loop().time() > deadline:
                return int(code) if code is not None else CANNOT_START
            await asyncio.sleep(LOOK_S)

    async def _hang_up(self, command: str, container_id: str) -> None:
        """Nobody waits for the command any more: what a terminal that is closed does to it, then SIGKILL."""
        try:
            found: Json = await self._engine.get(f"/exec/{command}/json")
        except errors.SkepError:
            return
        pid = int(found.get("Pid") or 0)

        def proven() -> bool:
            return netns.holds(pid, container_id)

        if not found.get("Running") or not proof.signal_if(pid, signal.SIGHUP, proven=proven):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANGUP_S):
                while proven():  # noqa: ASYNC110 - it is no child of ours
                    await asyncio.sleep(LOOK_S)
        proof.signal_if(pid, signal.SIGKILL, proven=proven)

    # ---------------------------------------------------------------- files

    async def archive_out(self, task_id: str, path: str, pipe: channel.Channel) -> None:
        """See Access."""
        container = await self._container(task_id, running=False)
        with _refused():
            async with self._engine.stream(
                "GET", f"/containers/{container['Id']}/archive", query={"path": path}, idle_s=COPY_IDLE_S
            ) as chunks:
                pipe.say_ready()
                async for chunk in chunks:
                    await pipe.send(chunk)

    async def archive_in(self, task_id: str, path: str, pipe: channel.Channel) -> None:
        """See Access."""
        container = await self._container(task_id, running=False)
        version = self._engine.version
        url = f"http://engine/v{version[0]}.{version[1]}/containers/{container['Id']}/archive"
        pipe.say_ready()
        connector = aiohttp.UnixConnector(self._engine.socket)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=client.PING_S)
        try:
            async with (
                asyncio.timeout(None) as limit,
                aiohttp.ClientSession(connector=connector, trust_env=False, timeout=timeout) as session,
                session.put(
                    url, params={"path": path}, data=_upload(pipe, limit), headers={"Content-Type": "application/x-tar"}
                ) as response,
            ):
                raw = await response.read()
        except TimeoutError:
            raise client.EngineAway(
                f"the container engine at {self._engine.socket} does not take the upload any more"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise client.EngineAway(f"the container engine broke off the upload: {error}") from error
        if response.status >= 400:  # noqa: PLR2004
            with _refused():
                raise hijack.refusal(response.status, raw)

    # ---------------------------------------------------------------- figures

    async def stats(self, task_id: str) -> AsyncIterator[pb.TaskStats]:
        """See Access."""
        container = await self._container(task_id)
        limit = int((container.get("HostConfig") or {}).get("Memory") or 0)
        with _refused():
            async with self._engine.stream(
                "GET", f"/containers/{container['Id']}/stats", query={"stream": "1"}, idle_s=client.CALL_S
            ) as chunks:
                before: Json | None = None
                async for sample in _lines(chunks):
                    if before is not None:
                        found = stats_of(before, sample, limit_bytes=limit)
                        if found is None:
                            return
                        yield found
                    before = sample

    # ---------------------------------------------------------------- connections

    async def connect(self, task_id: str, port: int) -> access.Connection:
        """See Access. Inside the container's network where this machine lets us, else over its addresses."""
        container = await self._container(task_id)
        networks = (container.get("NetworkSettings") or {}).get("Networks") or {}
        addresses = [str(each[key]) for each in networks.values() for key in ("IPAddress", "GlobalIPv6Address")
                     if each.get(key)]  # fmt: skip
        pid = int((container.get("State") or {}).get("Pid") or 0)
        problem: OSError = ConnectionRefusedError("it has no network that could be reached")
        if netns.holds(pid, str(container["Id"])):
            try:
                made = await netns.connect(pid, ["127.0.0.1", *addresses, "::1"], port)
                return await asyncio.open_connection(sock=made)
            except PermissionError as error:
                problem = error
            except OSError as error:
                problem, addresses = error, []
        for address in addresses:
            try:
                async with asyncio.timeout(netns.CONNECT_S):
                    return await asyncio.open_connection(address, port)
            except (OSError, TimeoutError) as error:
                problem = OSError(str(error) or "it does not answer in time")
        raise errors.FailedPrecondition(f"task {task_id} takes no connection to port {port}: {problem}")


@contextlib.contextmanager
def _refused() -> Any:
    """What the engine refuses is not worth another try by itself, and not a conflict of anything of ours."""
    try:
        yield
    except (errors.Conflict, client.EngineFailed) as error:
        raise errors.FailedPrecondition(str(error)) from error


async def _output(reader: asyncio.StreamReader, pipe: channel.Channel, *, tty: bool) -> None:
    if tty:
        await access.to_channel(reader, pipe)
        return
    parser = frames.Parser()
    while data := await reader.read(access.COPY_BYTES):
        for kind, payload in parser.feed(data):
            stream = pb.CHANNEL_STREAM_ERROR if kind == frames.STDERR else pb.CHANNEL_STREAM_MAIN
            await pipe.send(payload, stream=stream)


async def _upload(pipe: channel.Channel, limit: asyncio.Timeout) -> AsyncIterator[bytes]:
    """What the user sends, who may take his time. The engine may not: `limit` runs while it is to take or answer."""

    def bound(idle_s: float | None) -> None:
        if not limit.expired():
            limit.reschedule(None if idle_s is None else asyncio.get_running_loop().time() + idle_s)

    while (piece := await pipe.receive()) is not None:
        if isinstance(piece, pb.ChannelData):
            bound(COPY_IDLE_S)
            yield piece.data
            bound(None)
    if pipe.is_over:
        raise ConnectionAbortedError("the sender has gone")
    bound(COPY_IDLE_S)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[Json]:
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield json.loads(line)


def stats_of(before: Json, sample: Json, *, limit_bytes: int) -> pb.TaskStats | None:
    """Two samples of the engine as one of ours; None when the container has stopped."""
    at, earlier = _seconds(sample.get("read", "")), _seconds(before.get("read", ""))
    if at is None or earlier is None or at <= earlier:
        return None
    used = _number(sample, "cpu_stats", "cpu_usage", "total_usage") - _number(
        before, "cpu_stats", "cpu_usage", "total_usage"
    )
    memory = sample.get("memory_stats") or {}
    details = memory.get("stats") or {}
    cache = int(details.get("inactive_file") or details.get("total_inactive_file") or 0)
    networks = (sample.get("networks") or {}).values()
    blocks = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []

    def moved(operation: str) -> int:
        return sum(int(each["value"]) for each in blocks if str(each.get("op", "")).lower() == operation)

    return pb.TaskStats(
        at=stamps.stamp(at),
        nano_cpus=max(0, round(used / (at - earlier))),
        memory_bytes=max(0, int(memory.get("usage") or 0) - cache),
        memory_limit_bytes=limit_bytes,
        pids=_number(sample, "pids_stats", "current"),
        received_bytes=sum(int(each.get("rx_bytes") or 0) for each in networks),
        sent_bytes=sum(int(each.get("tx_bytes") or 0) for each in networks),
        read_bytes=moved("read"),
        written_bytes=moved("write"),
    )


def _number(value: Json, *path: str) -> int:
    found: Any = value
    for name in path:
        found = (found or {}).get(name)
    return int(found or 0)


def _seconds(text: str) -> float | None:
    """An engine's time stamp; None for year 1, which is Go's for "never"."""
    try:
        moment = datetime.datetime.fromisoformat(text[:19] + "+00:00")
    except ValueError:
        return None
    if moment.year <= 1:
        return None
    fraction = text[19:].partition("Z")[0]
    return moment.timestamp() + (float(fraction) if fraction.startswith(".") else 0.0)
