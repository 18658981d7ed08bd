"""What goes wrong in a simulation, and when: drawn from the seed."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from manager.raft import memory_transport
from skep import errors
from tests.simulation import managers, memory_disk, shadow

MANAGERS_MAX = 6
DOWN_S = 3.0
STANDS_S = 5.0


def part(names: Sequence[str], rng: random.Random, cut: Callable[[str, str], None]) -> None:
    """Two islands, by chance: cuts every way from one to the other."""
    island = {name for name in names if rng.random() < 0.5}
    for source in names:
        for target in names:
            if (source in island) != (target in island):
                cut(source, target)


def swallow(network: memory_transport.MemoryNetwork, source: str, target: str, *, within_s: float) -> None:
    """Nothing gets from one manager to another; that is noticed after a while, and the link breaks."""
    network.swallow(source, target)

    def notice() -> None:
        if (source, target) in network.holes:
            network.cut(source, target)

    asyncio.get_running_loop().call_later(within_s, notice)


class Faults:
    """Does harm until `running` is false, then `mend` makes everything well again."""

    def __init__(self, world: managers.World) -> None:
        self._world = world
        self._rng = random.Random(f"{world.seed} faults")
        self._tasks: list[asyncio.Task[None]] = []
        self.running = True
        self.slow: dict[str, float] = {}
        # The weather of this seed: which faults there are at all, how many, and how fast the network is. Seeds that
        # differ in kind find more than seeds that differ in detail.
        self._usual_delay_s = self._rng.choice((0.003, 0.01, 0.15))
        self._pause_s = self._rng.choice((0.3, 1.2, 2.5))
        self._actions = [
            (action, weight)
            for action, weight in (
                (self._crash, 5), (self._crash_at_operation, 4), (self._partition, 4), (self._cut_one_way, 3),
                (self._slow_link, 3), (self._stall_disk, 2), (self._snapshot, 4), (self._transfer, 2), (self._add, 2),
                (self._remove, 2), (self._crash_all, 1), (self._isolate_leader, 4), (self._swallow, 3),
                (self._pause, 4),
            )
            if self._rng.random() < 0.5
        ]  # fmt: skip
        self._actions.append((self._heal, 1 + sum(weight for _, weight in self._actions) // 3))
        self.counts: dict[str, int] = {}

    def delay_s(self, source: str, target: str) -> float:
        """How long a frame takes."""
        slow = self.slow.get(source, 0.0) + self.slow.get(target, 0.0)
        return self._rng.uniform(0.0005, self._usual_delay_s) + slow * self._rng.random()

    async def run(self) -> None:
        """One fault after the other."""
        while self.running:
            await asyncio.sleep(self._rng.uniform(0, self._pause_s))
            (action,) = self._rng.choices([a for a, _ in self._actions], [weight for _, weight in self._actions])
            self.counts[action.__name__] = self.counts.get(action.__name__, 0) + 1
            await action()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    def _some(self) -> managers.Manager | None:
        alive = self._world.alive()
        return alive[self._rng.randrange(len(alive))] if alive else None

    # ---------------------------------------------------------------- machines

    async def _crash(self) -> None:
        if (victim := self._some()) is not None:
            await victim.kill(power=self._rng.random() < 0.5)
            self._spawn(self._restart(victim, self._rng.uniform(0, DOWN_S)))

    async def _crash_all(self) -> None:
        """The whole room goes dark."""
        for victim in self._world.alive():
            await victim.kill(power=True)
            self._spawn(self._restart(victim, self._rng.uniform(0, DOWN_S / 2)))

    async def _crash_at_operation(self) -> None:
        if (victim := self._some()) is not None and victim.handle.crash_in is None:
            victim.handle.crash_in = self._rng.randrange(12)

    async def _pause(self) -> None:
        """A machine stands still, and does not notice."""
        victim = self._some()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, managers.Stopwatch)
        if victim is not None and loop.pause(victim.process):
            self._spawn(loop.resume_after(victim.process, self._rng.uniform(0.1, STANDS_S)))

    async def _restart(self, victim: managers.Manager, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if not victim.alive and not victim.given_up:
            await victim.start(join=self._join_seeds(victim))

    def _join_seeds(self, victim: managers.Manager) -> dict[str, str]:
        return {name: other.addr for name, other in self._world.managers.items() if other is not victim}

    async def watch_failures(self) -> None:
        """Machines that stopped in the middle of a disk operation come back; any other failure is a finding."""
        while True:
            await asyncio.sleep(0.05)
            for manager in list(self._world.managers.values()):
                if manager.node is None or not manager.node.failure.done():
                    continue
                error = manager.node.failure.result()
                if not isinstance(error, memory_disk.Crashed):
                    raise shadow.Violation(f"{manager.name} stopped: {error!r}") from error
                await manager.kill(power=True)
                self._spawn(self._restart(manager, self._rng.uniform(0, DOWN_S)))

    # ---------------------------------------------------------------- network and disks

    async def _partition(self) -> None:
        part(list(self._world.managers), self._rng, self._world.network.cut)

    async def _isolate_leader(self) -> None:
        leader = self._world.leader()
        for name in self._world.managers:
            if leader is not None and name != leader.node_id:
                self._world.network.cut(leader.node_id, name)
                self._world.network.cut(name, leader.node_id)

    async def _cut_one_way(self) -> None:
        names = list(self._world.managers)
        if len(names) > 1:
            source, target = self._rng.sample(names, 2)
            self._world.network.cut(source, target)

    async def _heal(self) -> None:
        self._world.network.heal()
        self.slow.clear()
        for manager in self._world.managers.values():
            manager.offload.stall_s = 0.0

    async def _swallow(self) -> None:
        names = list(self._world.managers)
        if len(names) > 1:
            swallow(self._world.network, *self._rng.sample(names, 2), within_s=self._rng.uniform(0.5, 4.0))

    async def _slow_link(self) -> None:
        self.slow[self._rng.choice(list(self._world.managers))] = self._rng.uniform(0.01, 2.0)

    async def _stall_disk(self) -> None:
        if (victim := self._some()) is not None:
            victim.offload.stall_s = self._rng.uniform(0.01, 1.5)

    async def _snapshot(self) -> None:
        if (victim := self._some()) is not None and victim.core is not None:
            victim.core.snapshot_now()

    # ---------------------------------------------------------------- members

    async def _transfer(self) -> None:
        leader = self._world.leader()
        if leader is not None:
            self._spawn(self._attempt(leader.transfer_leadership()))

    async def _attempt(self, change: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(errors.SkepError):
            await change

    async def _add(self) -> None:
        leader = self._world.leader()
        if leader is None or len(self._world.managers) >= MANAGERS_MAX:
            return
        newcomer = self._world.new_manager()
        await newcomer.start(join=leader.members())
        self._spawn(self._attempt(leader.add_member(newcomer.name, newcomer.addr)))

    async def _remove(self) -> None:
        leader = self._world.leader()
        if leader is not None and len(leader.members()) > 2:
            self._spawn(self._attempt(leader.remove_member(self._rng.choice(list(leader.members())))))

    # ---------------------------------------------------------------- the end

    async def mend(self) -> None:
        """No more faults: everything runs, every link works."""
        self.running = False
        await self._heal()
        for task in self._tasks:
            await task
        self._tasks.clear()
        for manager in list(self._world.managers.values()):
            manager.handle.crash_in = None
            if not manager.alive:
                await manager.start(join=self._join_seeds(manager))
