"""The driver on the memory runtime: failures, retries, a stop in the middle of things, runtimes that lie."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from agent.runtime import base, memory
from agent.tasks import driver, lease, machine, output, record
from skep import ids, pb
from tests import virtual_time
from tests.agent import joined

until = virtual_time.until


class Bench:
    """One driver on a memory runtime."""

    def __init__(self, behaviour: memory.MemoryBehaviour, *, health_check: bool = False) -> None:
        self.clock = virtual_time.LoopClock()
        rng = ids.seeded_rng(3)
        self.runtime = memory.MemoryRuntime(node_id="n1", clock=self.clock, rng=rng, default=behaviour)
        self.published: list[pb.TaskStatus] = []
        self.lease = lease.Lease(uptime=virtual_time.LoopUptime(), record=record.Record(record.IN_MEMORY))
        self.tools = driver.Tools(
            runtime=self.runtime,
            node=pb.Node,
            files=lambda _: (),
            lease=self.lease,
            publish=lambda _task_id, status: self.published.append(status),
            gate=asyncio.Semaphore(2),
            confirmed=asyncio.Event(),
            clock=self.clock,
            rng=rng,
        )
        self.tools.confirmed.set()
        self.spec = joined.revision().spec
        if health_check:
            self.spec.task.container.healthcheck.test.extend(["CMD", "true"])
        self.driver = self.make(joined.task("t1", "n1"))

    def make(self, task: pb.Task) -> driver.Driver:
        return driver.Driver(task=task, spec=self.spec, status=task.status, tools=self.tools)

    def wish(self, desired: pb.TaskState.ValueType) -> None:
        assert self.driver.assign(joined.task("t1", "n1", desired=desired))

    @property
    def states(self) -> list[str]:
        return list(dict.fromkeys(pb.TaskState.Name(each.state)[11:] for each in self.published))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        work = asyncio.create_task(self.driver.run())
        watch = asyncio.create_task(self._watch())
        try:
            yield work
        finally:
            for each in (work, watch):
                each.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _watch(self) -> None:
        async for _ in self.runtime.events():
            self.driver.look()


def at(made: Bench, state: pb.TaskState.ValueType) -> Callable[[], bool]:
    return lambda: made.driver.status.state == state


def test_statuses_on_the_way_to_running() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        async with made.running():
            await until(at(made, machine.RUNNING))
            assert made.states == ["ACCEPTED", "PREPARING", "READY", "STARTING", "RUNNING"]
            final = made.published[-1]
            assert final.message == "started"
            assert final.container.pid > 0
            assert final.timestamp.seconds > 1_600_000_000

    virtual_time.run(main)


def test_a_temporary_failure_is_tried_again_and_shown() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour(fail_prepare="registry busy", fail_prepare_times=4))
        async with made.running():
            await until(lambda: made.driver.status.err == "registry busy")
            assert made.driver.status.state == machine.PREPARING
            await until(at(made, machine.RUNNING))
            assert made.driver.status.err == ""

    virtual_time.run(main)


def test_a_fatal_failure_before_the_start_rejects() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour(fail_prepare="no such image"))
        async with made.running():
            await until(at(made, machine.REJECTED))
            assert made.driver.status.err == "no such image"

    virtual_time.run(main)


def test_a_fatal_failure_at_the_start_fails() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour(fail_start="exec format error"))
        async with made.running():
            await until(at(made, machine.FAILED))
            assert "exec format error" in made.driver.status.err

    virtual_time.run(main)


def test_a_runtime_that_crashes_costs_its_task_only() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())

        async def broken(*_: object) -> None:
            raise ZeroDivisionError

        made.runtime.prepare = broken  # type: ignore[method-assign, assignment]
        async with made.running() as work:
            await until(at(made, machine.REJECTED))
            assert made.driver.status.err == "internal error: ZeroDivisionError"
            assert not work.done()

    virtual_time.run(main)


def test_a_stop_breaks_off_a_long_preparation() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour(prepare_s=3600.0))
        async with made.running():
            await until(at(made, machine.PREPARING))
            made.wish(machine.SHUTDOWN)
            await until(at(made, machine.SHUTDOWN), within_s=1.0)
            assert await made.runtime.list() == []

    virtual_time.run(main)


def test_a_stop_does_not_wait_for_the_next_try() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour(fail_prepare="registry busy", fail_prepare_times=1000))
        async with made.running():
            # The pauses between two tries have grown to their longest by the end of this.
            await until(at(made, machine.PREPARING))
            await virtual_time.holds(at(made, machine.PREPARING), for_s=120.0, every_s=1.0)
            made.wish(machine.SHUTDOWN)
            await until(at(made, machine.SHUTDOWN), within_s=0.5)

    virtual_time.run(main)


def test_a_task_waits_for_its_turn_and_can_be_stopped_while_it_does() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        async with made.tools.gate, made.tools.gate, made.running():
            await until(at(made, machine.STARTING))
            made.wish(machine.SHUTDOWN)
            await until(at(made, machine.SHUTDOWN), within_s=1.0)

    virtual_time.run(main)


def test_exit_codes() -> None:
    async def main() -> None:
        for code, state in ((0, machine.COMPLETE), (9, machine.FAILED)):
            made = Bench(memory.MemoryBehaviour(exit_after_s=30.0, exit_code=code))
            async with made.running():
                await until(at(made, state))
                assert made.driver.status.container.exit_code == code

    virtual_time.run(main)


def test_health_decides_when_it_runs_and_when_it_fails() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour(healthy_after_s=20.0, unhealthy_after_s=100.0), health_check=True)
        loop = asyncio.get_running_loop()
        async with made.running():
            await until(at(made, machine.RUNNING))
            assert loop.time() >= 20.0
            await until(at(made, machine.FAILED), within_s=120)
            assert made.driver.status.err == "task: non-zero exit (143): unhealthy container"
            assert made.runtime.running() == []

    virtual_time.run(main)


def test_the_wish_never_goes_back() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        made.wish(machine.SHUTDOWN)
        assert not made.driver.assign(joined.task("t1", "n1", desired=machine.RUNNING))
        async with made.running():
            await until(at(made, machine.SHUTDOWN))

    virtual_time.run(main)


def test_letting_go_leaves_the_container_and_another_driver_goes_on() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        async with made.running():
            await until(at(made, machine.RUNNING))
        assert made.runtime.running() == ["t1"]
        before = made.driver.status
        again = joined.task("t1", "n1")
        again.status.CopyFrom(before)
        made.driver = made.make(again)
        made.published.clear()
        async with made.running():
            await virtual_time.holds(lambda: made.runtime.running() == ["t1"], for_s=10)
            assert made.published == []
            made.runtime.crash("t1", exit_code=1)
            await until(at(made, machine.FAILED))

    virtual_time.run(main)


def test_a_forgotten_task_is_removed_in_silence() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour(stop_s=2.0))
        async with made.running() as work:
            await until(at(made, machine.RUNNING))
            said = len(made.published)
            made.driver.forget()
            await until(work.done)
            assert await made.runtime.list() == []
            assert len(made.published) == said

    virtual_time.run(main)


def test_an_engine_that_hangs_or_is_away_changes_nothing() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        async with made.running():
            await until(at(made, machine.RUNNING))
            made.runtime.hang()
            made.driver.look()
            await virtual_time.holds(at(made, machine.RUNNING), for_s=300, every_s=5)
            made.runtime.resume()
            made.runtime.crash("t1")
            await until(at(made, machine.FAILED))

    virtual_time.run(main)


def test_an_engine_that_only_pretends_is_not_asked_without_end() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        calls = 0

        async def pretended(_workload: base.Workload) -> None:
            nonlocal calls
            calls += 1

        made.runtime.start = pretended  # type: ignore[method-assign, assignment]
        async with made.running():
            await virtual_time.holds(lambda: made.driver.status.state <= machine.STARTING, for_s=300, every_s=5)
            assert 5 < calls < 100

    virtual_time.run(main)


def test_a_lost_event_is_made_up_for() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        work = asyncio.create_task(made.driver.run())  # nobody follows the events
        await until(at(made, machine.RUNNING))
        made.runtime.crash("t1")
        await until(at(made, machine.FAILED), within_s=driver.LOOK_AGAIN_S + 1)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    virtual_time.run(main)


def test_a_task_that_managers_have_written_off_is_stopped() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        async with made.running():
            await until(at(made, machine.RUNNING))
            gone = joined.task("t1", "n1", state=pb.TASK_STATE_ORPHANED)
            assert made.driver.assign(gone)
            await until(lambda: made.runtime.running() == [])
            assert made.driver.status.state == pb.TASK_STATE_ORPHANED

    virtual_time.run(main)


def test_progress_is_told_but_not_line_by_line() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())

        async def chatty(workload: base.Workload, progress: Callable[[str], None]) -> None:
            for percent in range(100):
                progress(f"pulling {percent}%")
                await asyncio.sleep(0.1)
            await memory.MemoryRuntime.prepare(made.runtime, workload, progress)

        made.runtime.prepare = chatty  # type: ignore[method-assign]
        async with made.running():
            await until(at(made, machine.RUNNING))
            assert 3 <= sum("pulling" in each.message for each in made.published) <= 6

    virtual_time.run(main)


@pytest.mark.parametrize(("exit_code", "state"), [(3, machine.FAILED), (0, machine.COMPLETE)])
def test_an_end_is_told_with_the_end_of_the_output(exit_code: int, state: machine.State) -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        async with made.running():
            await until(at(made, machine.RUNNING))
            for number in range(30):
                made.runtime.print_line("t1", f"line {number}")
            made.runtime.crash("t1", exit_code=exit_code)
            await until(at(made, state))
        printed = made.driver.status.last_output.splitlines()
        assert (len(printed), printed[-1]) == (20, "line 29")
        assert [each.last_output for each in made.published[:-1]] == [""] * (len(made.published) - 1)

    virtual_time.run(main)


def test_a_stop_on_request_is_told_with_the_end_of_the_output() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        async with made.running():
            await until(at(made, machine.RUNNING))
            for number in range(30):
                made.runtime.print_line("t1", f"line {number}")
            made.wish(machine.SHUTDOWN)
            await until(at(made, machine.SHUTDOWN))
        printed = made.driver.status.last_output.splitlines()
        assert (len(printed), printed[-1]) == (20, "line 29")

    virtual_time.run(main)


def test_a_start_that_fails_is_told_with_what_was_printed_until_then() -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour(fail_start="exec format error"))
        prepare = made.runtime.prepare

        async def prepared(workload: base.Workload, progress: Callable[[str], None]) -> None:
            await prepare(workload, progress)
            made.runtime.print_line("t1", "entrypoint: begun")

        made.runtime.prepare = prepared  # type: ignore[method-assign]
        async with made.running():
            await until(at(made, machine.FAILED))
        assert made.driver.status.last_output == "entrypoint: begun\n"

    virtual_time.run(main)


@pytest.mark.parametrize("moment", ["removed", "never started"])
def test_nobody_is_asked_for_output_that_has_no_place_or_is_not_there(moment: str) -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())
        asked: list[str] = []
        logs = made.runtime.logs

        def counted(task_id: str, options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
            asked.append(task_id)
            return logs(task_id, options)

        made.runtime.logs = counted  # type: ignore[method-assign]
        if moment == "never started":
            made.driver = made.make(joined.task("t1", "n1", desired=machine.READY))
        async with made.running():
            await until(at(made, machine.RUNNING if moment == "removed" else machine.READY))
            made.wish(machine.REMOVE if moment == "removed" else machine.SHUTDOWN)
            await until(at(made, machine.SHUTDOWN))
        assert asked == []

    virtual_time.run(main)


@pytest.mark.parametrize("ends", [True, False])
def test_the_last_line_may_be_written_after_the_end(*, ends: bool) -> None:
    async def main() -> None:
        made = Bench(memory.MemoryBehaviour())

        async def late(task_id: str, options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
            yield pb.LogEntry(data=b"first\n")
            if options.follow:
                await asyncio.sleep(0.5)
                yield pb.LogEntry(data=b"last\n")
            if not ends:
                await asyncio.Event().wait()

        made.runtime.logs = late  # type: ignore[method-assign]
        async with made.running():
            await until(at(made, machine.RUNNING))
            made.runtime.crash("t1", exit_code=3)
            await until(at(made, machine.FAILED), within_s=output.TIMEOUT_S + 0.5)
        assert made.driver.status.last_output == "first\nlast\n"

    virtual_time.run(main)


@pytest.mark.parametrize(
    ("data", "length", "end"),
    [(b"", 0, ""), (b"x" * 9000, 2048, "x"), ("ä".encode() * 2000, 2048, "ä"), (b"\xff" * 3000, 2046, "\ufffd")],
)
def test_the_end_of_the_output_is_bounded_text(data: bytes, length: int, end: str) -> None:
    text = output.clip(data)
    assert len(text.encode()) == length
    assert text.endswith(end)
