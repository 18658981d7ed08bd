"""Managers' consensus in virtual time: the real node, journal and log on a simulated disk and network."""

import asyncio
import collections
import dataclasses
import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from manager.raft import config, core, log, memory_transport, node, ops
from manager.store import store
from skep import ids
from tests import virtual_time
from tests.simulation import memory_disk, process, shadow

T = TypeVar("T")


class Stopwatch(virtual_time.VirtualLoop):
    """Virtual time with a look at everything after each turn.

    A process that is paused (a virtual machine that its host does not run, a debugger, a machine that swaps) does
    nothing; what comes in meanwhile waits, and its clock goes on.
    """

    # Of the base class, and not in the stubs.
    _ready: "collections.deque[asyncio.Handle]"
    _scheduled: "list[asyncio.TimerHandle]"

    def __init__(self) -> None:
        super().__init__(watches_files=False)
        self.after_turn: Callable[[], None] = lambda: None
        self._paused: dict[process.Process, list[asyncio.Handle]] = {}  # what it is going to do afterwards

    def _run_once(self) -> None:
        if self._paused:
            for _ in range(len(self._ready)):
                handle = self._ready.popleft()
                owner = _owner(handle)
                held = None if owner is None else self._paused.get(owner)
                (self._ready if held is None else held).append(handle)
        super()._run_once()  # type: ignore[misc]  # not in the stubs
        try:
            self.after_turn()
        except BaseException:
            self.after_turn = lambda: None  # once is enough: what follows is cleaning up
            raise

    # ---------------------------------------------------------------- pauses

    def pause(self, standing: process.Process) -> bool:
        """Nothing of the process runs until `resume`; False when that is so already."""
        if standing in self._paused:
            return False
        # Nobody else can set a timer for it meanwhile.
        timers = [each for each in self._scheduled if _owner(each) is standing]
        self._scheduled[:] = [each for each in self._scheduled if _owner(each) is not standing]
        heapq.heapify(self._scheduled)
        self._paused[standing] = [*timers]
        return True

    def resume(self, standing: process.Process) -> None:
        """It goes on, if it was paused: with what was due, in order."""
        for handle in self._paused.pop(standing, []):
            if isinstance(handle, asyncio.TimerHandle):
                heapq.heappush(self._scheduled, handle)
            else:
                self._ready.append(handle)

    async def resume_after(self, standing: process.Process, seconds: float) -> None:
        """Resumes it once so much time has passed."""
        await asyncio.sleep(seconds)
        self.resume(standing)

    def let_go(self) -> None:
        """The run is over: what stands still goes on, and nobody looks any more."""
        self.after_turn = lambda: None
        for standing in list(self._paused):
            self.resume(standing)


def _owner(handle: asyncio.Handle) -> process.Process | None:
    return process.owner(handle._context)  # type: ignore[attr-defined]  # not in the stubs


class SlowDisk:
    """Offload in virtual time: every call takes a while, before and after it is done."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.stall_s = 0.0

    async def run(self, lane: str, call: Callable[[], T]) -> T:
        """The result of `call`, some virtual milliseconds later."""
        await asyncio.sleep(self._rng.uniform(0.0002, 0.004) + self.stall_s)
        result = call()
        await asyncio.sleep(self._rng.uniform(0.0, 0.003))
        return result

    def close(self) -> None:
        """Nothing runs."""


class WatchedLog(log.DurableLog):
    """The real log, which tells the checker what has become durable."""

    def __init__(self, name: str, handle: memory_disk.Handle, checker: shadow.Checker) -> None:
        super().__init__(handle, mark=handle.mark())
        self._name = name
        self._checker = checker

    def load(self) -> ops.State | None:  # type: ignore[explicit-override]  # typing.override came with Python 3.12
        state = super().load()
        self._checker.reloaded(self._name, state)
        return state

    def write(self, batch: Sequence[ops.Op]) -> None:  # type: ignore[explicit-override]
        super().write(batch)
        self._checker.wrote(self._name, batch)


class Manager:
    """One manager through all its runs."""

    def __init__(
        self, name: str, *, times: config.RaftConfig, seed: int, network: memory_transport.MemoryNetwork,
        checker: shadow.Checker,
    ) -> None:  # fmt: skip
        self.name = name
        self.addr = f"{name}:1"
        self.disk = memory_disk.MemoryDisk(random.Random(f"{seed} {name} disk"))
        self.store = store.Store()
        self.node: node.RaftNode | None = None
        self.core: core.RaftCore | None = None
        self.runs = 0
        self.given_up = False  # removed from the cluster for good
        self.seen = shadow.Applied(0)
        self.process = process.Process(name)
        self.handle = self.disk.handle()
        self.offload = SlowDisk(random.Random(f"{seed} {name} offload"))
        self._times = times
        self._seed = seed
        self._network = network
        self._checker = checker
        self._transport: memory_transport.MemoryTransport | None = None
        self._ends: list[asyncio.Task[None]] = []

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.node is not None

    async def start(self, *, bootstrap: Mapping[str, str] | None = None, join: Mapping[str, str] | None = None) -> None:
        """A new run of the process, on whatever the disk holds."""
        self.runs += 1
        self.handle = self.disk.handle()
        self.store = store.Store()  # nothing here reads to decide: there is nobody to catch changing a row
        self.seen = shadow.Applied(0)
        self._transport = memory_transport.MemoryTransport(node_id=self.name, network=self._network)
        started = node.RaftNode(
            node_id=self.name,
            store=self.store,
            log=WatchedLog(self.name, self.handle, self._checker),
            transport=self._transport,
            clock=virtual_time.LoopClock(),
            rng=ids.seeded_rng(self._seed * 1000 + self.runs * 10 + int(self.name[1:])),
            config=self._times,
            bootstrap=bootstrap,
            join=join,
            worker=self.offload,
        )
        self.node = started
        self.process = process.Process(f"{self.name} run {self.runs}")
        try:
            await self.process.spawn(started.start())
        except memory_disk.Crashed:
            if self.node is started:
                await self.kill(power=True)
            return
        if self.node is not started:
            return  # killed while it was starting
        self.core = started._core
        machine = started._machine
        apply = machine.apply

        def applying(index: int, body: bytes) -> object:
            self._checker.applying(self.name, index, body)
            return apply(index, body)

        machine.apply = applying  # type: ignore[method-assign,assignment]

    async def kill(self, *, power: bool) -> None:
        """The process (or, with `power`, the machine) stops at once."""
        stopped, self.node, self.core = self.node, None, None
        if stopped is not None and stopped.failure.done():
            error = stopped.failure.result()
            shadow.require(isinstance(error, memory_disk.Crashed), f"{self.name} stopped: {error!r}")
        self.handle.dead = True
        loop = asyncio.get_running_loop()
        if isinstance(loop, Stopwatch):
            loop.resume(self.process)
        if self._transport is not None:
            self._transport.kill()
        if power:
            self.disk.lose_power()
        else:
            self.disk.settle()
        if stopped is not None:
            self._ends.append(asyncio.get_running_loop().create_task(stopped.abort()))

    async def stop(self) -> None:
        """Stops in order."""
        stopped, self.node, self.core = self.node, None, None
        if stopped is not None:
            await stopped.stop()
        await asyncio.gather(*self._ends)


@dataclasses.dataclass
class World:
    """Everything in one simulation."""

    seed: int
    rng: random.Random
    network: memory_transport.MemoryNetwork
    checker: shadow.Checker
    times: config.RaftConfig
    managers: dict[str, Manager] = dataclasses.field(default_factory=dict)

    def new_manager(self) -> Manager:
        """One more machine."""
        name = f"n{len(self.managers)}"
        self.managers[name] = Manager(
            name, times=self.times, seed=self.seed, network=self.network, checker=self.checker
        )
        return self.managers[name]

    def alive(self) -> list[Manager]:
        """Managers whose process runs."""
        return [manager for manager in self.managers.values() if manager.core is not None]

    def leader(self) -> node.RaftNode | None:
        """A manager that believes to be in charge; the one of the highest term."""
        leading = [m.node for m in self.alive() if m.node is not None and m.node.is_leader]
        return max(leading, key=lambda each: each.term, default=None)

    def look(self) -> None:
        """Checks every running core."""
        for manager in self.alive():
            if manager.core is not None:
                self.checker.look_at(manager.core, manager.seen)
