"""How tasks that begin on one node at the same time get in each other's way, and how not."""

import pytest

from agent.runtime import memory
from skep import pb
from tests import virtual_time
from tests.agent import joined

MANY = 100  # more than the worker starts at once
READY, RUNNING = pb.TASK_STATE_READY, pb.TASK_STATE_RUNNING
PREPARING = pb.TASK_STATE_PREPARING


def test_tasks_that_wait_for_their_image_stop_no_other_task() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            agent.runtime.behaviours["slow:1"] = memory.MemoryBehaviour(prepare_s=3600.0)
            await cluster.create(joined.task("successor", "n1", desired=READY))
            await virtual_time.until(lambda: cluster.state("successor") == READY)
            slow = joined.revision("r2", image="slow:1")
            await cluster.create(slow, *(joined.task(f"t{n}", "n1", revision_id="r2") for n in range(MANY)))
            await virtual_time.until(lambda: all(cluster.state(f"t{n}") == PREPARING for n in range(MANY)))
            await cluster.wish("successor", RUNNING)  # its predecessor has stopped
            await cluster.create(joined.task("other", "n1"))
            started = ("successor", "other")
            await virtual_time.until(lambda: all(cluster.state(each) == RUNNING for each in started), within_s=5.0)

    virtual_time.run(main)


def test_starts_that_hang_stop_no_preparation() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            agent.runtime.behaviours["stuck:1"] = memory.MemoryBehaviour(start_s=3600.0)
            stuck = joined.revision("r2", image="stuck:1")
            await cluster.create(stuck, *(joined.task(f"t{n}", "n1", revision_id="r2") for n in range(MANY)))
            await virtual_time.until(lambda: all(cluster.state(f"t{n}") > READY for n in range(MANY)))
            await cluster.create(joined.task("other", "n1", desired=READY))
            await virtual_time.until(lambda: cluster.state("other") == READY, within_s=5.0)

    virtual_time.run(main)


@pytest.mark.parametrize("rebooted", [False, True])
def test_after_another_boot_nothing_is_started_before_a_manager_has_spoken(*, rebooted: bool) -> None:
    """The latest writes to the record may be missing then, and the task's successor may run elsewhere."""

    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            agent.runtime.behaviours["slow:1"] = memory.MemoryBehaviour(start_s=20.0)
            await cluster.create(joined.revision("r2", image="slow:1"), joined.task("t1", "n1", revision_id="r2"))
            await virtual_time.until(lambda: cluster.state("t1") == pb.TASK_STATE_STARTING)
            await agent.stop()
            network.cut[agent.node_id] = None
            if rebooted:
                agent.uptime.boot = "second"
                agent.runtime.reboot()
            await agent.start()
            if not rebooted:
                await virtual_time.until(lambda: agent.runtime.running() == ["t1"], within_s=30.0)
                return
            await virtual_time.holds(lambda: not agent.runtime.running(), for_s=120.0)
            assert "restarted" in agent.worker.statuses()["t1"].message
            await agent.stop()  # once more, and still nobody has said anything
            await agent.start()
            await virtual_time.holds(lambda: not agent.runtime.running(), for_s=120.0)
            del network.cut[agent.node_id]
            await virtual_time.until(lambda: agent.runtime.running() == ["t1"], within_s=90.0)

    virtual_time.run(main)
