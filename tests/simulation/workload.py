"""Clients of the simulated managers: writes, versioned updates, linearizable reads; and what they may expect."""

import asyncio
import random

from manager.raft import node
from manager.store import commit
from skep import errors, pb
from tests.simulation import managers, shadow

ANSWER_WITHIN_S = 30.0  # virtual; a caller that waits longer is considered forgotten
REGISTERS = 3
RECENT = 40  # acknowledged writes that a read looks for


class Clients:
    """A few concurrent clients and their memory of what they were told."""

    def __init__(self, world: managers.World) -> None:
        self._world = world
        self.acknowledged: list[str] = []
        self.denied: dict[str, None] = {}
        self.unknown: dict[str, None] = {}
        self.reads = 0
        self.increments = dict.fromkeys(range(REGISTERS), 0)  # acknowledged
        self.maybe_increments = dict.fromkeys(range(REGISTERS), 0)
        self.running = True
        self._pause_s = random.Random(f"{world.seed} clients").choice((0.02, 0.1, 0.3))

    async def run(self, number: int) -> None:
        """One client, until `running` is false."""
        rng = random.Random(f"{self._world.seed} client {number}")
        count = 0
        while self.running:
            leader = self._pick(rng)
            if leader is None:
                await asyncio.sleep(rng.uniform(0, self._pause_s))
                continue
            count += 1
            action = rng.random()
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    if action < 0.6:
                        await self._create(leader, f"c{number}-{count}")
                    elif action < 0.8:
                        await self._increment(leader, rng.randrange(REGISTERS))
                    else:
                        await self._read(leader)
            except TimeoutError:
                raise shadow.Violation(f"client {number} was not answered by {leader.node_id}") from None
            await asyncio.sleep(rng.uniform(0, self._pause_s) * (rng.random() < 0.7))

    def _pick(self, rng: random.Random) -> node.RaftNode | None:
        leading = [m.node for m in self._world.alive() if m.node is not None and m.node.is_leader]
        return leading[rng.randrange(len(leading))] if leading else None

    async def _create(self, leader: node.RaftNode, name: str) -> None:
        operation = pb.Op(kind=pb.OP_KIND_CREATE, object=pb.Object(task=pb.Task(id=name)))
        try:
            await leader.commit([operation])
        except (commit.NotProposed, errors.Conflict):
            self.denied[name] = None
        except errors.Unavailable:
            self.unknown[name] = None
        else:
            self.acknowledged.append(name)

    async def _increment(self, leader: node.RaftNode, register: int) -> None:
        """Adds one to a register, based on what this manager's store says: refused when that is not the newest."""
        name = f"r{register}"
        store = self._world.managers[leader.node_id].store
        stored = store.view().tasks.get(name)
        fresh = pb.Task(id=name)
        if stored is not None:
            fresh.CopyFrom(stored)
        fresh.slot += 1
        kind = pb.OP_KIND_CREATE if stored is None else pb.OP_KIND_UPDATE
        operation = pb.Op(kind=kind, object=pb.Object(task=fresh), based_on=fresh.version.index)
        try:
            await leader.commit([operation])
        except (commit.NotProposed, errors.Conflict):
            return
        except errors.Unavailable:
            self.maybe_increments[register] += 1
        else:
            self.increments[register] += 1

    async def _read(self, leader: node.RaftNode) -> None:
        known = self.acknowledged[-RECENT:]
        increments = dict(self.increments)
        try:
            await leader.barrier()
        except errors.Unavailable:
            return
        self.reads += 1
        view = self._world.managers[leader.node_id].store.view()
        for name in known:
            shadow.require(view.tasks.get(name) is not None, f"{leader.node_id} served a read without {name}")
        for register, count in increments.items():
            stored = view.tasks.get(f"r{register}")
            value = 0 if stored is None else stored.slot
            shadow.require(value >= count, f"{leader.node_id} served register {register} = {value}, was {count}")

    def check_end(self, manager: managers.Manager) -> None:
        """After everything has settled: nothing acknowledged is lost, nothing denied is there."""
        view = manager.store.view()
        for name in self.acknowledged:
            shadow.require(view.tasks.get(name) is not None, f"{manager.name} lost acknowledged {name}")
        for name in self.denied:
            shadow.require(view.tasks.get(name) is None, f"{manager.name} has {name}, which was denied")
        for register, count in self.increments.items():
            stored = view.tasks.get(f"r{register}")
            value = 0 if stored is None else stored.slot
            most = count + self.maybe_increments[register]
            shadow.require(
                count <= value <= most, f"{manager.name}: register {register} is {value}, not {count}..{most}"
            )
