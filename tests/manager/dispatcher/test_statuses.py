"""Reports into the store: batched, never backwards, retried when they raced."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from manager.dispatcher import metrics, statuses
from manager.store import ops
from skep import errors, pb
from tests import virtual_time
from tests.agent import joined

until = virtual_time.until


class Bench(joined.Cluster):
    """A store and a status writer, without sessions."""

    def __init__(self) -> None:
        super().__init__(joined.Network())
        self.writer = statuses.StatusWriter(
            target=self.store, committer=self.committer, clock=self.clock, metrics=metrics.Metrics()
        )

    def report(self, node_id: str, state: pb.TaskState.ValueType, *task_ids: str, message: str = "") -> None:
        report = pb.StatusReport()
        for task_id in task_ids:
            update = report.updates.add(task_id=task_id)
            update.status.state = state
            update.status.message = message
        self.writer.offer(node_id, report)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        work = asyncio.create_task(self.writer.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def all_at(self, state: pb.TaskState.ValueType, names: list[str]) -> Callable[[], bool]:
        return lambda: all(self.state(name) == state for name in names)


RUNNING, ACCEPTED, FAILED = pb.TASK_STATE_RUNNING, pb.TASK_STATE_ACCEPTED, pb.TASK_STATE_FAILED


def test_reports_of_many_agents_share_a_transaction() -> None:
    async def main() -> None:
        bench = Bench()
        names = [f"t{number}" for number in range(300)]
        await bench.create(*(joined.task(name, f"n{number % 10}") for number, name in enumerate(names)))
        before = bench.committer.commits
        async with bench.running():
            for number, name in enumerate(names):
                bench.report(f"n{number % 10}", RUNNING, name)
            await until(bench.all_at(RUNNING, names))
            assert bench.committer.commits == before + 1

    virtual_time.run(main)


def test_only_the_latest_counts_and_nothing_goes_back() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.create(joined.task("t1", "n1"))
        before = bench.committer.commits
        async with bench.running():
            bench.report("n1", ACCEPTED, "t1")
            bench.report("n1", RUNNING, "t1")
            bench.report("n1", ACCEPTED, "t1")
            await until(bench.all_at(RUNNING, ["t1"]))
            assert bench.committer.commits == before + 1
            bench.report("n1", ACCEPTED, "t1")
            await virtual_time.holds(bench.all_at(RUNNING, ["t1"]), for_s=1)
            bench.report("n1", RUNNING, "t1", message="pid changed")
            await until(lambda: bench.task("t1").status.message == "pid changed")

    virtual_time.run(main)


def test_the_same_report_again_is_not_written() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.create(joined.task("t1", "n1"))
        async with bench.running():
            bench.report("n1", RUNNING, "t1")
            await until(bench.all_at(RUNNING, ["t1"]))
            before, applied = bench.committer.commits, bench.task("t1").status.applied_at
            bench.report("n1", RUNNING, "t1")
            await virtual_time.holds(lambda: bench.committer.commits == before, for_s=1)
            assert bench.task("t1").status.applied_at == applied

    virtual_time.run(main)


def test_what_an_agent_may_not_say_is_dropped() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.create(joined.task("t1", "n1"))
        before = bench.committer.commits
        async with bench.running():
            bench.report("n2", RUNNING, "t1")  # another node's task
            bench.report("n1", RUNNING, "t9")  # no such task
            bench.report("n1", pb.TASK_STATE_ORPHANED, "t1")
            bench.report("n1", pb.TASK_STATE_REMOVE, "t1")
            bench.report("n1", pb.TASK_STATE_NEW, "t1")
            await virtual_time.holds(lambda: bench.committer.commits == before, for_s=1)
            assert bench.state("t1") == pb.TASK_STATE_ASSIGNED

    virtual_time.run(main)


def test_a_race_with_another_writer_is_decided_again() -> None:
    async def main() -> None:
        bench = Bench()
        names = [f"t{number}" for number in range(20)]
        await bench.create(*(joined.task(name, "n1") for name in names))
        stopped, removed = pb.Task(), bench.task("t9")
        stopped.CopyFrom(bench.task("t4"))
        stopped.desired_state = pb.TASK_STATE_SHUTDOWN
        bench.committer.before = [ops.update(stopped), ops.delete(removed)]
        names.remove("t9")
        async with bench.running():
            bench.report("n1", RUNNING, *names, "t9")
            await until(bench.all_at(RUNNING, names))
            assert bench.task("t4").desired_state == pb.TASK_STATE_SHUTDOWN

    virtual_time.run(main)


def test_no_quorum_for_a_while() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.create(joined.task("t1", "n1"))
        bench.committer.refusals = [errors.Unavailable("no quorum") for _ in range(5)]
        async with bench.running():
            bench.report("n1", RUNNING, "t1")
            await virtual_time.holds(bench.all_at(pb.TASK_STATE_ASSIGNED, ["t1"]), for_s=0.5)
            bench.report("n1", FAILED, "t1")
            await until(bench.all_at(FAILED, ["t1"]))

    virtual_time.run(main)


def test_a_transaction_that_is_too_large_is_split() -> None:
    async def main() -> None:
        bench = Bench()
        names = [f"t{number}" for number in range(8)]
        await bench.create(*(joined.task(name, "n1") for name in names))
        bench.committer.refusals = [errors.Invalid("too large") for _ in range(3)]
        async with bench.running():
            bench.report("n1", RUNNING, *names)
            await until(bench.all_at(RUNNING, names))

    virtual_time.run(main)


def test_an_evicted_task_is_rejected_once_it_has_stopped() -> None:
    async def main() -> None:
        bench = Bench()
        evicted = joined.task("t1", "n1", state=RUNNING, desired=pb.TASK_STATE_SHUTDOWN)
        evicted.evicted = "assigned node no longer meets constraints"
        await bench.create(evicted)
        async with bench.running():
            bench.report("n1", pb.TASK_STATE_SHUTDOWN, "t1", message="shutdown")
            await until(bench.all_at(pb.TASK_STATE_REJECTED, ["t1"]))
            assert bench.task("t1").status.err == "assigned node no longer meets constraints"
            before = bench.committer.commits
            bench.report("n1", pb.TASK_STATE_SHUTDOWN, "t1", message="shutdown")  # as every new session does
            await asyncio.sleep(1.0)
            assert bench.committer.commits == before

    virtual_time.run(main)
