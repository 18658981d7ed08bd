"""A process full of agents: real sessions over gRPC and mutual TLS, tasks on the memory runtime.

Each agent has what a machine's has (certificate, record, worker, session), in one event loop with the others. They join
by the real join call, each with a key of its own; only the root certificate is fetched once for all, and the calls
share a channel. Commands come as lines of JSON over standard input, answers go out the same way; it ends with the
input.
"""

import asyncio
import contextlib
import gc
import json
import resource
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from agent import link, managers, session, worker
from agent.runtime import memory
from agent.tasks import record
from skep import clock, errors, ids, pb
from skep.daemon import logs
from skep.security import enroll, keys, tls, tokens
from skep.security import identity as identities
from skep.v1 import ca_pb2_grpc

JOINING_MAX = 32  # join calls at the same time, of one process
STARTING_MAX = 25  # agents of one process that look for a manager: they have one machine's cores, not one's each
JOIN_TIMEOUT_S = 60.0
JOIN_RETRY_S = 0.2
NANO_CPUS = 64_000_000_000
MEMORY_BYTES = 256 << 30
LOOK_S = 0.05


class Agent:
    """One node."""

    def __init__(self, name: str, identity: identities.Identity, addrs: list[str], *, rng: ids.Rng) -> None:
        time = clock.SystemClock()
        self.name = name
        self.identity = identity
        self._runtime = memory.MemoryRuntime(
            node_id=identity.node_id, clock=time, rng=rng, nano_cpus=NANO_CPUS, memory_bytes=MEMORY_BYTES
        )
        self._record = record.Record(record.IN_MEMORY)
        self._worker = worker.Worker(
            runtime=self._runtime, record=self._record, clock=time, uptime=clock.SystemUptime(), rng=rng
        )
        self.session = session.AgentSession(
            connect=link.connector(lambda addr: _dial(identity, addr)),
            managers=managers.ManagerBook(None, seeds=addrs),
            worker=self._worker,
            describe=self._describe,
            rng=rng,
        )
        self._running: asyncio.Task[None] | None = None

    @property
    def tasks(self) -> int:
        """How many tasks run here."""
        return len(self._runtime.running())

    async def start(self) -> None:
        """Opens the worker and looks for the managers."""
        await self._worker.open()
        self._running = asyncio.create_task(self.session.run())

    async def stop(self) -> None:
        """Ends the session, as a machine that is switched off."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._worker.close()
        self._record.close()

    async def _describe(self) -> pb.NodeDescription:
        description = await self._runtime.describe()
        description.hostname = self.name
        subject, public_key = keys.issuer(self.identity.root_pem)
        description.tls_info.CopyFrom(
            pb.TLSInfo(
                trust_root=self.identity.root_pem.decode(),
                cert_issuer_subject=subject,
                cert_issuer_public_key=public_key,
            )
        )
        return description


def _dial(identity: identities.Identity, addr: str) -> grpc.aio.Channel:
    """As a machine's agent does. Closing looks for calls on the channel among all tasks of the process: not here."""
    channel = tls.channel(identity, addr, options=link.CHANNEL_OPTIONS)

    async def close(grace: float | None = None) -> None:
        del grace
        channel._channel.close()  # type: ignore[attr-defined]

    channel.close = close  # type: ignore[method-assign]
    return channel


class Joiner:
    """Gets certificates by the join call."""

    def __init__(self, addr: str, token: str, root_pem: bytes) -> None:
        """`addr` is a join port; `root_pem` is what it presents."""
        if not tokens.parse(token).is_for(root_pem):
            raise errors.Denied("the token belongs to another cluster")
        self._token = token
        self._root_pem = root_pem
        self._channel = tls.unauthenticated_channel(root_pem, addr)
        self._gate = asyncio.Semaphore(JOINING_MAX)

    async def join(self, name: str) -> tuple[identities.Identity, list[str]]:
        """A new node of the cluster: its identity and the managers' addresses."""
        key_pem = keys.new_key()
        request = pb.IssueCertificateRequest(csr_pem=keys.new_csr(key_pem), token=self._token, hostname=name)
        async with self._gate:
            answer = await ca_pb2_grpc.JoinStub(self._channel).IssueCertificate(request, timeout=JOIN_TIMEOUT_S)
        identity = keys.verified(
            key_pem=key_pem, cert_pem=answer.cert_pem, root_pem=self._root_pem, now=clock.SystemClock().now()
        )
        return identity, list(answer.managers)

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()


class Crowd:
    """All agents of this process."""

    def __init__(self) -> None:
        self._rng = ids.system_rng()
        self._agents: dict[str, Agent] = {}

    async def carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        """One command; its answer."""
        match order["do"]:
            case "join":
                await self._join(order["addr"], order["token"], order["names"])
                return {"joined": len(self._agents)}
            case "count":
                return self._count()
            case "sessions":  # once every agent has one, with a manager other than this one
                await self._until_registered(without=order.get("without", ""))
                return self._count()
            case _:
                raise ValueError(f"unknown command {order}")

    async def _join(self, addr: str, token: str, names: list[str]) -> None:
        joiner = Joiner(addr, token, await enroll.fetch_root(addr))
        try:
            joined = await asyncio.gather(*(joiner.join(name) for name in names))
        finally:
            await joiner.close()
        for name, (identity, addrs) in zip(names, joined, strict=True):
            self._agents[name] = Agent(name, identity, addrs, rng=self._rng)
        gc.freeze()
        starting: list[Agent] = []
        for name in names:
            while len(starting) >= STARTING_MAX:
                await asyncio.sleep(LOOK_S)
                starting = [each for each in starting if not each.session.manager]
            await self._agents[name].start()
            starting.append(self._agents[name])

    def _count(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "tasks": sum(each.tasks for each in self._agents.values()),
            "sessions": sum(bool(each.session.manager) for each in self._agents.values()),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "memory_kb": usage.ru_maxrss,
        }

    async def _until_registered(self, *, without: str) -> None:
        def registered(each: Agent) -> bool:
            return each.session.manager not in {"", without}

        while not all(registered(each) for each in self._agents.values()):  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(LOOK_S)


async def _lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode()


async def serve() -> None:
    """Carries out commands, one after the other, until standard input ends."""
    crowd = Crowd()
    async for line in _lines():
        order = json.loads(line)
        try:
            answer = await crowd.carry_out(order)
        except Exception as error:  # noqa: BLE001  # told to the bench, which ends with it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    logs.configure(level="error", json=False)
    gc.set_threshold(50_000, 20, 100)  # as skepd does
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
