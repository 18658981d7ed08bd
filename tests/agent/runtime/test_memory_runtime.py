"""The memory runtime's behaviours and test hooks."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable

import pytest

from agent.runtime import base, memory
from skep import clock, errors, ids, pb
from tests.agent.runtime import workloads


def with_runtime(body: Callable[[memory.MemoryRuntime], Awaitable[None]]) -> None:
    async def main() -> None:
        runtime = memory.MemoryRuntime(node_id="n1", clock=clock.SystemClock(), rng=ids.seeded_rng(1))
        await runtime.open()
        await body(runtime)
        await runtime.close()

    asyncio.run(main())


def test_lifecycle_and_crash() -> None:
    async def body(runtime: memory.MemoryRuntime) -> None:
        work = workloads.workload(ports=[workloads.host_port(80)])
        task_id = work.task.id
        assert await runtime.observe(task_id) == base.ABSENT
        seen = await workloads.run(runtime, work)
        assert seen.phase is base.Phase.RUNNING
        assert seen.ports[0].published_port
        assert runtime.running() == [task_id]
        runtime.crash(task_id, exit_code=3, error="boom")
        with pytest.raises(KeyError):
            runtime.crash(task_id)
        seen = await runtime.observe(task_id)
        assert (seen.phase, seen.exit_code, seen.error) == (base.Phase.EXITED, 3, "boom")
        await runtime.remove(task_id)
        assert await runtime.list() == []

    with_runtime(body)


def test_stop_takes_the_grace_period_at_most() -> None:
    async def body(runtime: memory.MemoryRuntime) -> None:
        runtime.behaviours["web"] = memory.MemoryBehaviour(stop_s=60.0)
        container = pb.ContainerSpec(stop_grace_period=20_000_000)
        work = workloads.workload(container=container)
        await workloads.run(runtime, work)
        await runtime.stop(work)
        assert (await runtime.observe(work.task.id)).exit_code == 137

    with_runtime(body)


def test_failures_by_image_and_service() -> None:
    async def body(runtime: memory.MemoryRuntime) -> None:
        runtime.behaviours["bad"] = memory.MemoryBehaviour(fail_prepare="no such image")
        runtime.behaviours["flaky"] = memory.MemoryBehaviour(fail_prepare="registry busy", fail_prepare_times=2)
        runtime.behaviours["unstartable"] = memory.MemoryBehaviour(fail_start="exec format error")
        with pytest.raises(base.TaskFatal, match="no such image"):
            await runtime.prepare(workloads.workload(container=pb.ContainerSpec(image="bad")), lambda _: None)
        flaky = workloads.workload(container=pb.ContainerSpec(image="flaky"))
        for _ in range(2):
            with pytest.raises(base.TaskTemporary):
                await runtime.prepare(flaky, lambda _: None)
        await runtime.prepare(flaky, lambda _: None)
        unstartable = workloads.workload(service="unstartable")
        await runtime.prepare(unstartable, lambda _: None)
        with pytest.raises(base.TaskFatal, match="exec format"):
            await runtime.start(unstartable)

    with_runtime(body)


def test_ends_by_itself_with_an_event() -> None:
    async def body(runtime: memory.MemoryRuntime) -> None:
        runtime.default = memory.MemoryBehaviour(exit_after_s=0.01, exit_code=4)
        work = workloads.workload()
        await workloads.run(runtime, work)
        events = runtime.events()
        assert await anext(events) == ""
        while (await runtime.observe(work.task.id)).phase is not base.Phase.EXITED:
            assert await anext(events) == work.task.id
        assert (await runtime.observe(work.task.id)).exit_code == 4

    with_runtime(body)


def test_health_verdicts() -> None:
    async def body(runtime: memory.MemoryRuntime) -> None:
        check = pb.HealthConfig(test=["CMD", "x"])
        work = workloads.workload(container=pb.ContainerSpec(healthcheck=check))
        assert (await workloads.run(runtime, work)).healthy is None
        await workloads.until(lambda: runtime.observe(work.task.id), lambda seen: bool(seen.healthy), what="healthy")
        runtime.set_healthy(work.task.id, healthy=False)
        assert (await runtime.observe(work.task.id)).healthy is False

    with_runtime(body)


def test_hang_and_resume() -> None:
    async def body(runtime: memory.MemoryRuntime) -> None:
        runtime.hang()
        waiting = asyncio.create_task(runtime.list())
        await asyncio.sleep(0)
        assert not waiting.done()
        runtime.resume()
        assert await waiting == []

    with_runtime(body)


def test_survives_close_and_open() -> None:
    async def body(runtime: memory.MemoryRuntime) -> None:
        work = workloads.workload()
        await workloads.run(runtime, work)
        await runtime.close()
        assert [task_id async for task_id in runtime.events()] == []
        await runtime.open()
        assert runtime.running() == [work.task.id]
        runtime.print_line(work.task.id, "hello")
        assert await workloads.output(runtime, work.task.id) == "hello\n"
        runtime.reboot()
        assert (await runtime.observe(work.task.id)).exit_code == 255
        with pytest.raises(errors.NotFound):
            await workloads.output(runtime, "nothing")

    with_runtime(body)


def test_thousands_of_tasks_are_cheap(tmp_path: pathlib.Path) -> None:
    async def body(runtime: memory.MemoryRuntime) -> None:
        works = [workloads.workload() for _ in range(3000)]
        await asyncio.gather(*(workloads.run(runtime, work) for work in works))
        assert len(runtime.running()) == 3000
        await asyncio.gather(*(runtime.stop(work) for work in works))
        assert runtime.running() == []

    with_runtime(body)
