"""A leader that was cut off and does not know it: it must not serve reads that its successor has outdated."""

import asyncio
import random

import pytest

from manager.raft import config, memory_transport, node
from skep import errors, pb
from tests import virtual_time
from tests.simulation import managers, mutants, shadow

SEEDS = 12


async def _stale_read(seed: int) -> bool | None:
    """Whether a deposed leader answered after its successor wrote; None when it had stepped down."""
    network = memory_transport.MemoryNetwork()
    world = managers.World(seed, random.Random(seed), network, shadow.Checker(), config.RaftConfig())
    for _ in range(3):
        world.new_manager()
    members = {name: manager.addr for name, manager in world.managers.items()}
    for manager in world.managers.values():
        await manager.start(bootstrap=members)
    await virtual_time.until(lambda: world.leader() is not None)
    old = world.leader()
    assert old is not None
    for name in members:
        if name != old.node_id:
            network.cut(old.node_id, name)
            network.cut(name, old.node_id)
    await virtual_time.until(lambda: world.leader() not in (None, old), every_s=0.001)
    new = world.leader()
    assert new is not None
    await new.commit([pb.Op(kind=pb.OP_KIND_CREATE, object=pb.Object(task=pb.Task(id="news")))])
    answer = await _read(old) if old.is_leader else None
    for manager in world.managers.values():
        await manager.kill(power=False)
        await manager.stop()
    return answer


async def _read(old: node.RaftNode) -> bool:
    try:
        async with asyncio.timeout(10):
            await old.barrier()
    except errors.Unavailable:
        return False
    return True


def _answers() -> list[bool | None]:
    answers: list[bool | None] = []
    for seed in range(1, SEEDS + 1):
        with asyncio.Runner(loop_factory=managers.Stopwatch) as runner:
            answers.append(runner.run(_stale_read(seed)))
    return answers


def test_a_deposed_leader_serves_no_stale_read() -> None:
    answers = _answers()
    assert False in answers, "no seed had two at once that believe to lead: this shows nothing"
    assert True not in answers


def test_without_the_barrier_it_would() -> None:
    with mutants.put_back(mutants.MUTANTS["reads without a barrier"]):
        assert True in _answers()


@pytest.mark.parametrize("name", sorted(mutants.MUTANTS))
def test_every_known_fault_can_be_put_back(name: str) -> None:
    ((owner, attribute, _),) = mutants.MUTANTS[name]
    before = getattr(owner, attribute)
    with mutants.put_back(mutants.MUTANTS[name]):
        assert getattr(owner, attribute) is not before
    assert getattr(owner, attribute) is before
