"""A worker's tasks through what becomes of their engine: crash, restart, hang; and what it clears away."""

import asyncio
from typing import Any

import pytest

from agent.runtime import docker
from agent.runtime.docker import client
from skep import pb
from tests.agent.runtime import workloads
from tests.engine import conftest, dockerd, working

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("how", ["crash", "upgrade", "hang"])
def test_tasks_are_neither_failed_nor_restarted_while_their_engine_is_away(node: conftest.Node, how: str) -> None:
    own = node.engine.restartable()
    away = {"crash": own.kill, "upgrade": own.shut_down, "hang": own.pause}[how]
    back = own.resume if how == "hang" else own.start

    async def body(_: docker.DockerRuntime) -> None:
        runtime = node.make(call_s=1.0)
        await runtime.open()
        async with working.working(node, runtime) as made:
            old, new = working.new_id(), working.new_id()
            made.assign(old, full=True)
            await made.reach(old, "RUNNING")
            before = made.container(old)
            await asyncio.to_thread(away)
            try:
                made.assign(new)  # what comes meanwhile waits
                await made.reach(new, "PREPARING")
                await made.until(lambda: "engine" in made.worker.statuses()[new].err, what="the reason in the status")
            finally:
                await asyncio.to_thread(back)
            await made.reach(new, "RUNNING")
            assert made.container(old) == before
            over = {"TASK_STATE_FAILED", "TASK_STATE_REJECTED", "TASK_STATE_COMPLETE", "TASK_STATE_SHUTDOWN"}
            assert [told for told in made.told if told[1] in over] == []
        await runtime.close()

    node.run(body)


def test_what_ended_while_the_agent_was_away_is_told_and_what_runs_is_adopted(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        stays, ends = working.new_id(), working.new_id()
        async with working.working(node, runtime) as made:
            made.assign(stays, ends, full=True)
            await made.reach(stays, "RUNNING")
            await made.reach(ends, "RUNNING")
            before, gone = made.container(stays), made.container(ends)
        dockerd.call(node.engine.socket, "POST", f"/containers/{gone[0]}/kill")
        async with working.working(node, runtime) as again:
            again.assign(stays, ends, full=True)
            await again.reach(stays, "RUNNING")
            await again.reach(ends, "FAILED")
            assert again.worker.statuses()[ends].err == "task: non-zero exit (137): killed by SIGKILL"
            assert again.container(stays) == before

    node.run(body)


def test_ours_and_unknown_is_removed_and_strangers_are_not(node: conftest.Node) -> None:
    socket = node.engine.socket

    def start(*, name: str = "", image: str = dockerd.BUSYBOX_IMAGE, **labels: str) -> str:
        body = {"Image": image, "Cmd": ["sleep", "600"], "Labels": labels, "HostConfig": {"Init": True}}
        made = str(dockerd.call(socket, "POST", f"/containers/create?name={name}", body)["Id"])
        dockerd.call(socket, "POST", f"/containers/{made}/start")
        return made

    def exists(container: str) -> bool:
        return container in {each["Id"] for each in dockerd.call(socket, "GET", "/containers/json")}

    ours = {"io.skep.node": node.node_id, "io.skep.task": "forgotten1"}
    forgotten = start(name="web.1.forgotten1", **ours)
    dockerd.call(socket, "POST", f"/commit?container={forgotten}&repo=debug&tag=1", {})  # keeps the labels
    strangers = [
        start(team="bees"),
        start(**{"io.skep.task": "forgotten1"}),
        start(**{"io.skep.node": "another", "io.skep.task": "forgotten1"}),
        start(**{"io.skep.node": node.node_id}),
        start(image="debug:1"),
        start(image="debug:1", name="forgotten1-debug"),
    ]

    async def body(runtime: docker.DockerRuntime) -> None:
        async with working.working(node, runtime) as made:
            known = working.new_id()
            made.assign(known, full=True)
            await made.reach(known, "RUNNING")
            await made.until(lambda: not exists(forgotten), what="the end of the forgotten container")
            assert [each for each in strangers if not exists(each)] == []
            made.assign(full=True)  # stop means stop: nothing is assigned any more
            await workloads.until(runtime.list, lambda held: held == [], what="the end of everything of ours")
        assert [each for each in strangers if not exists(each)] == []

    try:
        node.run(body)
    finally:
        for each in strangers:
            dockerd.call(socket, "DELETE", f"/containers/{each}?force=1")
        dockerd.call(socket, "DELETE", "/images/debug:1")


def test_a_task_costs_the_engine_few_calls(node: conftest.Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        asked: list[str] = []
        call = runtime._engine._call

        async def counted(method: str, path: str, **options: Any) -> Any:
            asked.append(f"{method} {path}")
            return await call(method, path, **options)

        monkeypatch.setattr(runtime._engine, "_call", counted)
        async with working.working(node, runtime) as made:
            first, second = working.new_id(), working.new_id()
            made.assign(first, full=True)
            await made.reach(first, "RUNNING")
            asked.clear()
            made.assign(second)
            await made.reach(second, "RUNNING")
            # Create, start, inspect; an event may come late and have it looked at once more.
            assert 3 <= len(asked) <= 5, asked
            asked.clear()
            made.worker.apply(pb.Assignments(removed_tasks=[second]))
            await workloads.until(runtime.list, lambda held: held == [first], what="the end of the container")
            relevant = [each for each in asked if "/containers/json" not in each]
            assert 2 <= len(relevant) <= 5, asked

    node.run(body)


def test_a_container_that_was_made_though_the_engine_broke_off_is_taken_up(
    node: conftest.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        labour = runtime._engine.labour
        broken: list[str] = []

        async def breaking(path: str, **options: Any) -> Any:
            answer = await labour(path, **options)
            if path == "/containers/create" and not broken:
                broken.append(answer["Id"])
                raise client.EngineAway("the container engine broke off")
            return answer

        monkeypatch.setattr(runtime._engine, "labour", breaking)
        async with working.working(node, runtime) as made:
            task_id = working.new_id()
            made.assign(task_id, full=True)
            await made.reach(task_id, "RUNNING")
            assert made.container(task_id)[0] == broken[0]

    node.run(body)
