"""A manager that is cut off, wholly or in part, and returns: the leader leads on in its term, and no write waits."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from manager.raft import config, memory_transport, node
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory
from tests.simulation import managers, mutants

TIMES = config.RaftConfig()
CUT_S = 10.0
WRITE_EVERY_S = 0.05
Cut = Callable[[memory_transport.MemoryNetwork, str, str, str], None]  # network, who is cut off, the leader, the third


def wholly(network: memory_transport.MemoryNetwork, cut: str, leader: str, third: str) -> None:
    hears_nothing(network, cut, leader, third)
    is_not_heard(network, cut, leader, third)


def is_not_heard(network: memory_transport.MemoryNetwork, cut: str, leader: str, third: str) -> None:
    for other in (leader, third):
        network.cut(cut, other)


def hears_nothing(network: memory_transport.MemoryNetwork, cut: str, leader: str, third: str) -> None:
    for other in (leader, third):
        network.cut(other, cut)


def from_the_leader_only(network: memory_transport.MemoryNetwork, cut: str, leader: str, _: str) -> None:
    network.cut(cut, leader)
    network.cut(leader, cut)


def does_not_hear_the_leader(network: memory_transport.MemoryNetwork, cut: str, leader: str, _: str) -> None:
    network.cut(leader, cut)


CUTS = (wholly, is_not_heard, hears_nothing, from_the_leader_only, does_not_hear_the_leader)


@contextlib.asynccontextmanager
async def writing(leader: node.RaftNode, *, busy: bool) -> AsyncIterator[None]:
    """Writes meanwhile (if `busy`), one after the other, each of which must be acknowledged without delay."""
    loop = asyncio.get_running_loop()
    acknowledged = [loop.time()]

    async def write() -> None:
        while True:
            await leader.commit([raft_cluster.create(f"t{len(acknowledged)}")])
            acknowledged.append(loop.time())
            await asyncio.sleep(WRITE_EVERY_S)

    writer = loop.create_task(write() if busy else asyncio.sleep(1e6))
    try:
        yield
    finally:
        writer.cancel()
        (outcome,) = await asyncio.gather(writer, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError), outcome
    gaps = [after - before for before, after in itertools.pairwise(acknowledged)]
    assert not busy or len(gaps) > CUT_S / WRITE_EVERY_S / 2
    assert max(gaps, default=0.0) < WRITE_EVERY_S + TIMES.heartbeat_s


async def cut_and_heal(cut: Cut, *, busy: bool) -> None:
    network = memory_transport.MemoryNetwork()
    async with raft_memory.running(network, TIMES) as world:
        manager, leader = raft_memory.leader(world)
        away, third = (other for other in world.managers.values() if other is not manager)
        await leader.commit([raft_cluster.create("before")])
        await virtual_time.until(lambda: all(each.store.index == manager.store.index for each in (away, third)))
        term = leader.term
        async with writing(leader, busy=busy):
            cut(network, away.name, manager.name, third.name)
            await virtual_time.holds(lambda: leads_in(world, leader, term), for_s=CUT_S)
            network.heal()
            await virtual_time.holds(lambda: leads_in(world, leader, term), for_s=3 * TIMES.election_max_s)
        await leader.commit([raft_cluster.create("after")])
        await virtual_time.until(lambda: away.store.index == manager.store.index, within_s=1.0)


def leads_in(world: managers.World, leader: node.RaftNode, term: int) -> bool:
    return leader.is_leader and all(
        each.node is not None and each.node.term == term for each in world.managers.values()
    )


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "quiet"])
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.__name__)
def test_the_leader_leads_on(cut: Cut, busy: bool) -> None:
    virtual_time.run(lambda: cut_and_heal(cut, busy=busy))


@pytest.mark.parametrize("name", ["elections are held without asking before", "nobody is loyal to a leader"])
def test_without_pre_vote_or_loyalty_it_would_not(name: str) -> None:
    def deposed(cut: Cut, *, busy: bool) -> bool:
        try:
            virtual_time.run(lambda: cut_and_heal(cut, busy=busy))
        except (AssertionError, ExceptionGroup):
            return True
        return False

    with mutants.put_back(mutants.MUTANTS[name]):
        assert deposed(from_the_leader_only, busy=False)
