"""Members of a Raft group as processes, from the parent's side: start, kill -9, write, ask."""

import asyncio
import base64
import contextlib
import json
import pathlib
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from skep import pb
from tests.manager.raft import raft_cluster, raft_member

REPO = pathlib.Path(__file__).resolve().parents[3]
READY_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 300.0
LOOK_S = 0.01
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)


def free_addr() -> str:
    """An address on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Member:
    """One process, and the way to talk to it."""

    def __init__(self, root: pathlib.Path, name: str, papers: raft_cluster.Papers, *, lossy: bool) -> None:
        """`lossy`: SIGKILL takes what was not synced along, as a loss of power does."""
        self.name = name
        self._lossy = lossy
        self.addr = free_addr()
        self.control = free_addr()
        self.process: asyncio.subprocess.Process | None = None
        self._root = root
        self._papers = papers
        self._channel: grpc.aio.Channel | None = None
        self._commit: Call
        self._ask: Call

    def configure(self, *, bootstrap: Mapping[str, str] | None, join: Mapping[str, str] | None, **times: float) -> None:
        """Writes what the process reads when it starts."""
        papers = self._papers
        settings = {
            "addr": self.addr,
            "control": self.control,
            "bootstrap": bootstrap,
            "join": join,
            "config": times,
            "lossy": self._lossy,
            "authority": base64.b64encode(papers.authority).decode(),
            "key": base64.b64encode(papers.key).decode(),
            "certificate": base64.b64encode(papers.certificate).decode(),
        }
        (self._root / f"{self.name}.json").write_text(json.dumps(settings))

    async def start(self) -> None:
        """Starts the process; it may take a while to answer."""
        log = (self._root / f"{self.name}.log").open("ab")
        with log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.manager.raft.raft_member", str(self._root), self.name,
                cwd=REPO, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        if self._channel is not None:
            return
        options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100),
                   ("grpc.min_reconnect_backoff_ms", 50), ("grpc.use_local_subchannel_pool", 1),
                   ("grpc.max_receive_message_length", 1 << 30))  # fmt: skip
        self._channel = grpc.aio.insecure_channel(self.control, options=options)
        self._commit = self._channel.unary_unary(raft_member.COMMIT)
        self._ask = self._channel.unary_unary(raft_member.ASK)

    async def kill(self) -> None:
        """SIGKILL. Calls under way fail as they do when a process dies; the channel finds the next one."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def close(self) -> None:
        """Kills it for good."""
        if self.process is not None:
            await self.kill()
        if self._channel is not None:
            await self._channel.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.returncode is None

    async def commit(self, encoded: bytes, *, timeout_s: float = 30.0) -> int:
        """The index of a committed pb.Transaction. Raises grpc.RpcError."""
        return int(await self._commit(encoded, timeout=timeout_s))

    async def ask(self, do: str, *, timeout_s: float = CALL_TIMEOUT_S, **arguments: object) -> dict[str, Any]:
        """See raft_member.Control.ask_*."""
        request = json.dumps({"do": do, **arguments}).encode()
        answer: dict[str, Any] = json.loads(await self._ask(request, timeout=timeout_s, wait_for_ready=True))
        return answer


class Group:
    """Members under one directory."""

    def __init__(self, root: pathlib.Path, *, lossy: bool = False, **times: float) -> None:
        self._root = root
        self._lossy = lossy
        self._times = times
        self._authority = raft_cluster.Authority()
        self.members: list[Member] = []

    def new(self) -> Member:
        """A member that is neither configured nor started."""
        name = f"m{len(self.members)}"
        self.members.append(Member(self._root, name, self._authority.papers(name), lossy=self._lossy))
        return self.members[-1]

    async def begin(self, count: int) -> None:
        """Starts a new group of that many."""
        members = [self.new() for _ in range(count)]
        addrs = {member.name: member.addr for member in members}
        for member in members:
            member.configure(bootstrap=addrs, join=None, **self._times)
        await asyncio.gather(*(member.start() for member in members))
        await self.leader()

    async def join(self) -> Member:
        """Starts a newcomer that waits for a leader to bring it in."""
        addrs = {member.name: member.addr for member in self.members}
        member = self.new()
        member.configure(bootstrap=None, join=addrs, **self._times)
        await member.start()
        return member

    async def leader(self) -> Member:
        """The member in charge, once there is one."""
        found: list[Member] = []

        async def led() -> bool:
            for member in self.members:
                with contextlib.suppress(grpc.RpcError):
                    if member.alive and (await member.ask("status", timeout_s=2.0))["leads"]:
                        found.append(member)
                        return True
            return False

        await until("a leader", led)
        return found[0]

    async def level(self) -> None:
        """Waits until all members that live have applied the same."""

        async def same() -> bool:
            states = await asyncio.gather(*(m.ask("status", timeout_s=10.0) for m in self.members if m.alive))
            return len({state["applied"] for state in states}) == 1 and any(state["leads"] for state in states)

        await until("all members level", same)


async def until(what: str, condition: Callable[[], Awaitable[bool]], *, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Waits for a condition; a call that fails counts as not yet. AssertionError when it takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        with contextlib.suppress(grpc.RpcError):
            if await condition():
                return
        assert loop.time() < deadline, f"not within {timeout_s:.0f} s: {what}"
        await asyncio.sleep(LOOK_S)


@contextlib.asynccontextmanager
async def running(root: pathlib.Path, count: int, *, lossy: bool = False, **times: float) -> AsyncIterator[Group]:
    """A group that is gone afterwards."""
    group = Group(root, lossy=lossy, **times)
    try:
        await group.begin(count)
        yield group
    finally:
        await asyncio.gather(*(member.close() for member in group.members))


def transaction(op: pb.Op) -> bytes:
    """One operation, ready for Member.commit."""
    return pb.Transaction(ops=[op]).SerializeToString()
