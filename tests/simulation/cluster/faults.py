"""What goes wrong in a cluster, and when: drawn from the seed."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from agent.runtime import memory
from manager.raft import node
from skep import errors
from tests.simulation import faults, shadow
from tests.simulation.cluster import machine, timing

MACHINES_MAX = 10
LEASED_EVERY_S, LEASED_FOR_S = (2.0, 12.0), (2.0, 25.0)  # longer than a lease, and than its node is waited for
PAUSE_S = 8.0  # of a machine that stands still, at most
DOWN_S = 6.0  # of a machine or daemon, at most; longer than a short heartbeat's patience
Action = Callable[[], Awaitable[None]]


class Faults:
    """Does harm until `running` is false, then `mend` makes everything well again."""

    def __init__(self, site: machine.Site) -> None:
        self._site = site
        self._rng = rng = random.Random(f"{site.seed} faults")
        self._restarts: list[asyncio.Task[None]] = []
        self._cut_off = ""  # who runs what must never run twice
        self.running = True
        self.counts: dict[str, int] = {}
        # The weather of this seed: which faults there are at all, how many, and how fast the network is.
        site.network.usual_delay_s = rng.choice((0.002, 0.01, 0.1))
        self._pause_s = rng.choice((0.5, 2.0, 5.0))
        self._actions: list[tuple[Action, int]] = [
            (action, weight)
            for action, weight in (
                (self._kill, 5), (self._lose_power, 3), (self._lose_all_power, 1), (self._crash_at_operation, 2),
                (self._partition, 3), (self._cut_one_way, 3), (self._isolate_leader, 3), (self._isolate_one, 3),
                (self._reset, 2), (self._slow_link, 2), (self._stall_disk, 2), (self._snapshot, 2),
                (self._transfer, 2), (self._jump_clock, 2), (self._hang_engine, 2), (self._slow_engine, 2),
                (self._crash_task, 4), (self._save_record, 2), (self._unreliable_engine, 3), (self._lose_for_good, 1),
                (self._join, 2), (self._pause, 4), (self._swallow, 3),
            )
            if rng.random() < 0.5
        ]  # fmt: skip
        self._actions.append((self._heal, 1 + sum(weight for _, weight in self._actions) // 3))
        for each in site.machines.values():
            each.engine.behaviours.update(_behaviours(rng))

    async def run(self) -> None:
        """One fault after the other."""
        besides = asyncio.get_running_loop().create_task(self._isolate_leased())
        try:
            await self._run()
        finally:
            besides.cancel()
            self._cut_off = ""

    async def _run(self) -> None:
        while self.running:
            await asyncio.sleep(self._rng.uniform(0, self._pause_s))
            if self._site.calm:
                continue
            (action,) = self._rng.choices([each for each, _ in self._actions], [weight for _, weight in self._actions])
            name = getattr(action, "__name__", "")
            self.counts[name] = self.counts.get(name, 0) + 1
            await action()

    def _some(self, *, alive: bool = True, manages: bool = False) -> machine.Machine | None:
        able = [
            each for each in self._site.machines.values() if (each.alive or not alive) and (each.manages or not manages)
        ]
        return able[self._rng.randrange(len(able))] if able else None

    def leader(self) -> node.RaftNode | None:
        """Who believes to be in charge; the one of the highest term."""
        parts = [each.part for each in self._site.machines.values() if each.part is not None]
        return max((part.raft for part in parts if part.raft.is_leader), key=lambda each: each.term, default=None)

    # ---------------------------------------------------------------- machines

    async def _kill(self) -> None:
        if (victim := self._some()) is not None:
            await self._crash(victim, power=False)

    async def _lose_power(self) -> None:
        if (victim := self._some()) is not None:
            await self._crash(victim, power=True)

    async def _lose_all_power(self) -> None:
        """The whole room goes dark."""
        for victim in list(self._site.machines.values()):
            await self._crash(victim, power=True)

    async def _crash(self, victim: machine.Machine, *, power: bool) -> None:
        if victim.alive:
            await victim.kill(power=power)
            after_s = self._rng.uniform(0, DOWN_S)
            self._restarts.append(asyncio.get_running_loop().create_task(self._restart(victim, after_s)))

    async def _restart(self, victim: machine.Machine, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if not victim.alive and not victim.lost:
            victim.start()

    async def _lose_for_good(self) -> None:
        """A worker dies and never comes back; its node object is somebody's to remove."""
        workers = [each for each in self._site.machines.values() if not each.manages and not each.lost]
        if len(workers) > 1:
            victim = workers[self._rng.randrange(len(workers))]
            victim.lost = True
            await victim.kill(power=True)

    async def _join(self) -> None:
        """A new machine: the certificate authority makes its node, then its agent comes."""
        leader = self.leader()
        daemon = self._site.machines[leader.node_id].daemon if leader is not None else None
        if leader is not None and daemon is not None and len(self._site.machines) < MACHINES_MAX:
            joining = self._site.join()
            joining.engine.behaviours.update(_behaviours(self._rng))
            joining.lost = True  # until it is certain that it is admitted
            asking = daemon.spawn(self._site.admit(leader, joining.name))
            self._restarts.append(asyncio.get_running_loop().create_task(_admitted(asking, joining)))

    async def _pause(self) -> None:
        """A machine stands still, and does not notice."""
        victim = self._some()
        if victim is not None and victim.daemon is not None and timing.loop().pause(victim.daemon):
            after_s = self._rng.uniform(0.1, PAUSE_S)
            # Nobody can stop what is there, or is just being started; afterwards that takes a while.
            self._site.running.out_of_reach(victim.engine.known(), until=asyncio.get_running_loop().time() + after_s)
            self._restarts.append(
                asyncio.get_running_loop().create_task(timing.loop().resume_after(victim.daemon, after_s))
            )

    async def _crash_at_operation(self) -> None:
        victim = self._some(manages=True)
        if victim is not None and victim.handle.crash_in is None:
            victim.handle.crash_in = self._rng.randrange(12)

    async def watch_failures(self) -> None:
        """Machines that stopped in the middle of a disk operation come back; any other failure is a finding."""
        while True:
            await asyncio.sleep(0.05)
            for victim in list(self._site.machines.values()):
                if victim.alive and victim.failure:
                    shadow.require(victim.failure == "power", f"{victim.name} stopped: {victim.failure}")
                    await self._crash(victim, power=True)

    # ---------------------------------------------------------------- network, disks, clocks

    async def _partition(self) -> None:
        faults.part(list(self._site.machines), self._rng, self._site.network.cut)

    async def _isolate_leader(self) -> None:
        leader = self.leader()
        if leader is not None:
            self._isolate(leader.node_id)

    async def _isolate_one(self) -> None:
        if (victim := self._some(alive=False)) is not None:
            self._isolate(victim.name)

    def _isolate(self, name: str) -> None:
        for other in self._site.machines:
            self._site.network.cut(name, other)
            self._site.network.cut(other, name)

    async def _isolate_leased(self) -> None:
        """Who runs what must never run twice is cut off again and again: by chance alone that is rare, and soon over.

        Draws for itself, so that seeds without such a task are what they would be without it.
        """
        rng = random.Random(f"{self._site.seed} leased")
        if self._site.calm or rng.random() < 0.5:
            return
        while True:
            await asyncio.sleep(rng.uniform(*LEASED_EVERY_S))
            machines = self._site.running.leased()
            if machines:
                name = "_isolate_leased"
                self.counts[name] = self.counts.get(name, 0) + 1
                self._cut_off = rng.choice(machines)
                self._isolate(self._cut_off)
                await asyncio.sleep(rng.uniform(*LEASED_FOR_S))
                self._cut_off = ""
                self._site.network.heal()

    async def _swallow(self) -> None:
        """Between two managers nothing arrives one way, and the link breaks only when that is noticed."""
        names = list(self._site.managers)
        if len(names) > 1:
            faults.swallow(self._site.network.raft, *self._rng.sample(names, 2), within_s=self._rng.uniform(0.5, 4.0))

    async def _cut_one_way(self) -> None:
        names = list(self._site.machines)
        if len(names) > 1:
            self._site.network.cut(*self._rng.sample(names, 2))

    async def _reset(self) -> None:
        if (victim := self._some()) is not None:
            self._site.network.reset(victim.name)

    async def _heal(self) -> None:
        self._site.network.heal(but=self._cut_off)
        for each in self._site.machines.values():
            each.offload.stall_s = 0.0
            each.engine.calm_down()

    async def _slow_link(self) -> None:
        if (victim := self._some(alive=False)) is not None:
            self._site.network.slow[victim.name] = self._rng.uniform(0.01, 2.0)

    async def _stall_disk(self) -> None:
        if (victim := self._some(manages=True)) is not None:
            victim.offload.stall_s = self._rng.uniform(0.01, 1.5)

    async def _jump_clock(self) -> None:
        if (victim := self._some(alive=False)) is not None:
            victim.clock.offset_s = self._rng.choice((-100.0, -5.0, -1.0, 0.0, 1.0, 5.0, 100.0))

    # ---------------------------------------------------------------- managers

    async def _snapshot(self) -> None:
        victim = self._some(manages=True)
        if victim is not None and victim.part is not None and victim.part.raft._core is not None:
            victim.part.raft._core.snapshot_now()

    async def _transfer(self) -> None:
        leader = self.leader()
        daemon = self._site.machines[leader.node_id].daemon if leader is not None else None
        if leader is not None and daemon is not None:
            daemon.run(_attempt(leader))

    # ---------------------------------------------------------------- engines

    async def _hang_engine(self) -> None:
        if (victim := self._some(alive=False)) is not None:
            victim.engine.hang()
            for task_id in victim.engine.running():  # nobody can stop them
                self._site.running.lied_about[task_id] = None

    async def _unreliable_engine(self) -> None:
        if (victim := self._some(alive=False)) is not None:
            victim.engine.unreliable = self._rng.choice((0.05, 0.2, 0.5))

    async def _slow_engine(self) -> None:
        if (victim := self._some(alive=False)) is not None:
            victim.engine.behaviours.update(_behaviours(self._rng))

    async def _crash_task(self) -> None:
        running = list(self._site.running.tasks().items())
        if running:
            task_id, name = running[self._rng.randrange(len(running))]
            self._site.machines[name].engine.crash(task_id, exit_code=self._rng.choice((0, 1, 137)))

    async def _save_record(self) -> None:
        for each in self._site.machines.values():
            each.save()

    # ---------------------------------------------------------------- the end

    async def mend(self) -> None:
        """No more faults: everything runs, every link works, every clock is right."""
        self.running = False
        await self._heal()
        for restart in self._restarts:
            await restart
        for each in self._site.machines.values():
            each.clock.offset_s = 0.0
            each.handle.crash_in = None
            if each.failure and each.alive:
                await each.kill(power=True)
            if not each.alive and not each.lost:
                each.start()


async def _admitted(asking: "asyncio.Task[None]", joining: machine.Machine) -> None:
    await asyncio.wait([asking])
    if not asking.cancelled() and asking.exception() is None:
        joining.lost = False
        joining.start()


async def _attempt(leader: node.RaftNode) -> None:
    with contextlib.suppress(errors.SkepError):
        await leader.transfer_leadership()


def _behaviours(rng: random.Random) -> dict[str, memory.MemoryBehaviour]:
    """How one engine treats the images of this simulation."""
    app = memory.MemoryBehaviour(
        prepare_s=rng.uniform(0, 0.3), start_s=rng.uniform(0, 0.3), stop_s=rng.uniform(0, 1.0),
        stop_exit_code=rng.choice((0, 143)),
    )  # fmt: skip
    return {
        "app:1": app,
        "app:2": app,
        "app:3": memory.MemoryBehaviour(stop_s=rng.uniform(0, 8.0), start_s=rng.uniform(0, 2.0)),
        "missing:1": memory.MemoryBehaviour(prepare_s=0.1, fail_prepare="no such image"),
        "crashing:1": memory.MemoryBehaviour(exit_after_s=rng.uniform(0, 2.0), exit_code=1),
        "slow:1": memory.MemoryBehaviour(prepare_s=rng.uniform(0, 8.0), start_s=rng.uniform(0, 3.0), stop_s=3.0),
        "ending:1": memory.MemoryBehaviour(exit_after_s=rng.uniform(0, 3.0)),
    }
