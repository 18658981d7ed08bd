"""Three managers' consensus in virtual time, on simulated disks and a simulated network, without any faults."""

import contextlib
import random
from collections.abc import AsyncIterator, Callable

from manager.raft import config, memory_transport, node
from skep import pb
from tests import virtual_time
from tests.simulation import managers, shadow

Receive = Callable[[str, pb.RaftFrame], None]


@contextlib.asynccontextmanager
async def running(network: memory_transport.MemoryNetwork, times: config.RaftConfig) -> AsyncIterator[managers.World]:
    """With a leader; stopped in the end."""
    world = managers.World(1, random.Random(1), network, shadow.Checker(), times)
    members = {manager.name: manager.addr for manager in (world.new_manager() for _ in range(3))}
    for manager in world.managers.values():
        await manager.start(bootstrap=members)
    await virtual_time.until(lambda: world.leader() is not None)
    yield world
    for manager in world.managers.values():
        await manager.kill(power=False)
        await manager.stop()


def leader(world: managers.World) -> tuple[managers.Manager, node.RaftNode]:
    """The manager that leads, and its consensus."""
    for manager in world.managers.values():
        if manager.node is not None and manager.node is world.leader():
            return manager, manager.node
    raise AssertionError("nobody leads")


def intercept(manager: managers.Manager, make: Callable[[Receive], Receive]) -> None:
    """What this manager receives goes through `make(what it did so far)`."""
    assert manager.node is not None
    driver = manager.node._driver
    assert driver is not None
    driver.frame_received = make(driver.frame_received)  # type: ignore[method-assign,assignment]
