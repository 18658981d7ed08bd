"""The network between all machines: delays, partitions (also one-way), connections that break, calls that get lost.

Streams keep what TCP keeps: order, each message once, or the end of the stream. What is under way while a direction is
cut arrives when the cut is healed, unless the connection broke meanwhile. A process that is killed resets its
connections; a machine that loses power says nothing, and only answers strangers when it is back.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from google.protobuf import message as protobuf

from manager.http import forward
from manager.raft import memory_transport
from manager.store import commit
from skep import errors, link, pb
from tests.simulation import process
from tests.simulation.cluster import timing

A = TypeVar("A", bound=protobuf.Message)
B = TypeVar("B", bound=protobuf.Message)
T = TypeVar("T")

BACKLOG_MAX = 64  # messages in one direction before `send` waits
CONNECT_S = 1.0  # at most, until a connection is refused


class Network:
    """Who reaches whom, and how fast. Machines are known by name."""

    def __init__(self, rng: random.Random, *, watch: Callable[[str, str, pb.RaftFrame], None]) -> None:
        self._rng = rng
        self.usual_delay_s = 0.003
        self.slow: dict[str, float] = {}  # seconds that messages from and to a machine take longer
        self.raft = memory_transport.MemoryNetwork(delay_s=self.delay_s, watch=watch)
        self.up: dict[str, process.Process] = {}  # by machine
        self.powered: dict[str, bool] = {}
        self._connections: dict[Connection, None] = {}
        self._healed = asyncio.Event()

    def delay_s(self, source: str, target: str) -> float:
        """How long a message takes."""
        if source == target:
            return 0.0001
        slow = self.slow.get(source, 0.0) + self.slow.get(target, 0.0)
        return self._rng.uniform(0.0005, self.usual_delay_s) + slow * self._rng.random()

    # ---------------------------------------------------------------- faults

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target`."""
        if source != target:
            self.raft.cut(source, target)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether that direction is cut."""
        return (source, target) in self.raft.cuts

    def heal(self, *, but: str = "") -> None:
        """All cuts are over, but those of one machine, and what is stuck arrives."""
        kept = [(source, target) for source, target in self.raft.cuts if but in {source, target}]
        self.raft.heal()
        for source, target in kept:
            self.raft.cut(source, target)
        self.slow.clear()
        for connection in list(self._connections):
            connection.flush()
        self._healed.set()
        self._healed = asyncio.Event()

    def reset(self, machine: str) -> None:
        """Breaks every connection of a machine, as a firewall does that was restarted."""
        for connection in list(self._connections):
            if machine in connection.names:
                connection.reset()

    def started(self, machine: str, running: process.Process) -> None:
        """A process runs on the machine."""
        self.up[machine] = running
        self.powered[machine] = True

    def stopped(self, machine: str, *, power: bool) -> None:
        """The machine's process is dead, or with `power` the machine is."""
        self.up.pop(machine, None)
        self.powered[machine] = not power
        for connection in list(self._connections):
            if machine in connection.names:
                connection.abandon(machine, silently=power)

    # ---------------------------------------------------------------- streams

    async def connect(self, source: str, target: str) -> "tuple[link.AgentLink, link.ManagerLink]":
        """Both ends of a new stream. Raises Unavailable when `target` cannot be reached."""
        await self._dial(source, target)
        connection = Connection(self, source, target)
        self._connections[connection] = None
        return connection.near, connection.far

    async def _dial(self, source: str, target: str) -> None:
        await asyncio.sleep(self.delay_s(source, target) + self.delay_s(target, source))
        silent = self.is_cut(source, target) or self.is_cut(target, source) or not self.powered.get(target)
        if silent:
            await asyncio.sleep(self._rng.uniform(0.05, CONNECT_S))
        if silent or target not in self.up:
            raise commit.NotProposed(f"{source}: failed to connect to {target}")

    def forget(self, connection: "Connection") -> None:
        """The connection is no more."""
        self._connections.pop(connection, None)

    # ---------------------------------------------------------------- calls

    async def call(self, source: str, target: str, serve: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs `serve` in the process at `target` and brings the answer back.

        Raises NotProposed when `target` was never reached, Unavailable when no answer came (it may have been done).
        """
        await self._dial(source, target)
        running: asyncio.Task[T] | None = None
        try:
            async with asyncio.timeout(forward.FIRST_PART_S):
                await self._travel(source, target)
                there = self.up.get(target)
                if there is None:
                    raise errors.Unavailable(f"the call to {target} broke off")
                running = there.spawn(serve())
                await asyncio.wait([running])
                if running.cancelled():
                    raise errors.Unavailable(f"the call to {target} broke off")
                await self._travel(target, source)
                return running.result()
        except TimeoutError:
            raise errors.Unavailable(f"{target} did not answer in time") from None
        finally:
            if running is not None and not running.done() and not self.is_cut(source, target):
                running.cancel()

    async def _travel(self, source: str, target: str) -> None:
        await asyncio.sleep(self.delay_s(source, target))
        while self.is_cut(source, target):
            await self._healed.wait()


class Connection:
    """One stream between two machines."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self.names = (source, target)
        self.network = network
        up: _Way[pb.AgentMessage] = _Way(network, source, target, pb.AgentMessage.FromString)
        down: _Way[pb.ManagerMessage] = _Way(network, target, source, pb.ManagerMessage.FromString)
        up.back, down.back = down, up
        self._ways = {source: up, target: down}
        self._both: tuple[_Way[Any], _Way[Any]] = (up, down)
        self.near: link.AgentLink = End(up, down)
        self.far: link.ManagerLink = End(down, up)

    def flush(self) -> None:
        """What is stuck arrives, where nothing is cut."""
        for way in self._both:
            way.flush()
        if all(way.over for way in self._both):
            self.network.forget(self)

    def reset(self) -> None:
        """Broken, and both ends know."""
        for way in self._both:
            way.snap()
        self.network.forget(self)

    def abandon(self, machine: str, *, silently: bool) -> None:
        """The process at one end is dead."""
        for way in self._both:
            if way.source == machine:
                if not silently:
                    way.push_end(_RESET)
                way.sender_gone = True
            if way.target == machine:
                way.receiver_gone = True


_RESET = errors.Unavailable("the connection was reset")


class _Way(Generic[A]):
    """One direction of a stream."""

    def __init__(self, network: Network, source: str, target: str, decode: Callable[[bytes], A]) -> None:
        self.source = source
        self.target = target
        self.back: _Way[Any] = self
        self.over = False  # the receiver has been told of the end
        self.error: errors.SkepError | None = None  # with which it ended
        self.broken = False
        self.sender_gone = False
        self.receiver_gone = False
        self.arrived: deque[A] = deque()
        self._network = network
        self._decode = decode
        self._stuck: deque[bytes | errors.SkepError | None] = deque()
        self._under_way = 0
        self._free_at = 0.0
        self._ending = False
        self.changed = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the sender has to wait."""
        return self._under_way + len(self.arrived) >= BACKLOG_MAX

    def push(self, message: A) -> None:
        """Sends."""
        self._push(message.SerializeToString())

    def push_end(self, error: errors.SkepError | None) -> None:
        """Ends the stream once everything sent before has arrived."""
        if not self._ending:
            self._ending = True
            self._push(error)

    def _push(self, item: bytes | errors.SkepError | None) -> None:
        loop = timing.loop()  # true time: both ends' clocks may differ
        self._under_way += 1
        self._free_at = max(self._free_at, loop.true_time() + self._network.delay_s(self.source, self.target))
        loop.call_truly_at(self._free_at, self._arrive, item)

    def _arrive(self, item: bytes | errors.SkepError | None) -> None:
        if self._stuck or self._network.is_cut(self.source, self.target):
            self._stuck.append(item)
            return
        self._under_way -= 1
        if self.broken or self.over:
            return
        if self.receiver_gone:
            if self._network.powered.get(self.target) and not self.sender_gone:
                self.back.push_end(_RESET)
            return
        if isinstance(item, bytes):
            self.arrived.append(self._decode(item))
        else:
            self.over = True
            self.error = item
            if item is _RESET:
                self.arrived.clear()
                self.back.broken = True
                self.back.changed.set()
        self.changed.set()

    def flush(self) -> None:
        if not self._network.is_cut(self.source, self.target):
            stuck, self._stuck = self._stuck, deque()
            for item in stuck:
                self._arrive(item)

    def snap(self) -> None:
        self.broken = True
        self.arrived.clear()
        self.changed.set()

    async def wait(self) -> None:
        self.changed.clear()
        await self.changed.wait()


class End(Generic[A, B]):
    """One end of a stream: see link.Link."""

    def __init__(self, outgoing: _Way[A], incoming: _Way[B]) -> None:
        self._out = outgoing
        self._in = incoming
        self._closed = False
        self._sending = asyncio.Lock()

    async def send(self, message: A) -> None:
        async with self._sending:
            while self._out.full and not self._dead:
                await self._out.wait()
            if self._dead:
                raise errors.Unavailable("the stream is closed")
            self._out.push(message)

    @property
    def _dead(self) -> bool:
        return self._closed or self._out.broken or self._in.over

    async def receive(self) -> B | None:
        way = self._in
        while not way.arrived:
            if way.broken:
                raise errors.Unavailable("the stream broke")
            if way.over:
                if way.error is not None:
                    # A new one each time: an error keeps the frames it was raised through, and the whole run in them.
                    raise type(way.error)(way.error.message)
                return None
            if self._closed:
                return None
            await way.wait()
        message = way.arrived.popleft()
        way.changed.set()
        return message

    async def close(self, error: errors.SkepError | None = None) -> None:
        if not self._closed:
            self._closed = True
            self._out.push_end(error)
            self._out.changed.set()
            self._in.arrived.clear()
            self._in.receiver_gone = True
            self._in.changed.set()
