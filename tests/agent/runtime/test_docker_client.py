"""The Docker runtime against a fake engine that can be told to misbehave."""

import asyncio
import json
import pathlib
from typing import Any

import pytest

from agent.runtime import base, docker
from agent.runtime.docker import client, driver, spec
from skep import clock, errors, ids, policies
from tests.agent.runtime import fakes, workloads

SLOW_S = 0.4  # what an engine takes that has much to do


def test_statuses_become_errors(tmp_path: pathlib.Path) -> None:
    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await fakes.answer(writer, int(query["status"]), {"message": f"words {query['status']}"})

    async def main() -> None:
        async with fakes.engine(tmp_path / "s", handler), fakes.connected(tmp_path / "s") as made:
            expected: list[tuple[str, type[errors.SkepError]]] = [
                ("400", errors.Invalid), ("404", errors.NotFound), ("409", errors.Conflict),
                ("500", client.EngineFailed), ("503", client.EngineFailed), ("403", errors.Denied),
            ]  # fmt: skip
            for status, kind in expected:
                with pytest.raises(kind, match=f"words {status}"):
                    await made.get("/x", query={"status": status})
            assert await made.post("/x", query={"status": "200"}) == {"message": "words 200"}

    asyncio.run(main())


def test_silence_nonsense_and_hang_ups_are_temporary(tmp_path: pathlib.Path) -> None:
    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call.endswith("/silent"):
            await asyncio.sleep(0)
            return
        if call.endswith("/nonsense"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxyz")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n{")
        writer.close()

    async def main() -> None:
        async with (
            fakes.engine(tmp_path / "s", handler),
            fakes.connected(tmp_path / "s", call_s=0.1) as made,
        ):
            for path, words in (("/silent", "in time"), ("/nonsense", "no JSON"), ("/hangup", "broke off")):
                with pytest.raises(base.TaskTemporary, match=words):
                    await made.get(path)

    asyncio.run(main())


def test_long_work_is_waited_for_while_the_engine_answers_and_given_up_when_it_hangs(tmp_path: pathlib.Path) -> None:
    hung = asyncio.Event()

    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call.endswith("/slow"):
            await asyncio.sleep(SLOW_S)
            await fakes.answer(writer, 201, {"Id": "c1"})
        elif call.endswith("/hang"):
            hung.set()

    async def main() -> None:
        async with (
            fakes.engine(tmp_path / "s", handler),
            fakes.connected(tmp_path / "s", call_s=0.1) as made,
        ):
            assert await made.labour("/slow", timeout_s=60) == {"Id": "c1"}
            call = made._call

            async def silent(method: str, path: str, **options: Any) -> Any:
                if hung.is_set() and path == "/version":
                    return await call("GET", "/silent", **options)  # nothing answers there
                return await call(method, path, **options)

            made._call = silent  # type: ignore[method-assign]
            with pytest.raises(client.EngineAway, match="does not answer"):
                await made.labour("/hang", timeout_s=60)

    asyncio.run(main())


def test_what_is_stuck_keeps_nobody_from_asking(tmp_path: pathlib.Path) -> None:
    stuck: list[str] = []

    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call.startswith("GET"):
            await fakes.answer(writer, 200, {"ID": "e1"})
        else:  # the engine waits for a file server that is gone
            stuck.append(call)

    async def main() -> None:
        async with fakes.engine(tmp_path / "s", handler), fakes.connected(tmp_path / "s") as made:
            calls = [made.labour("/containers/create", timeout_s=60) for _ in range(client.CALLS_MAX)]
            calls += [made.delete(f"/containers/c{number}", timeout_s=60) for number in range(client.CALLS_MAX)]
            waiting = [asyncio.ensure_future(each) for each in calls]
            await workloads.until(lambda: asyncio.sleep(0, len(stuck)), lambda n: n == len(calls), what="all stuck")
            async with asyncio.timeout(5.0):
                assert await made.get("/info") == {"ID": "e1"}
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(main())


def test_creates_that_hang_keep_nothing_from_being_started(tmp_path: pathlib.Path) -> None:
    stuck: list[str] = []

    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call == "POST /containers/create" and query["name"].startswith("web.1.stuck"):
            stuck.append(call)
        elif call == "POST /containers/create":
            await fakes.answer(writer, 201, {"Id": "c1"})
        elif call == "GET /containers/json":
            await fakes.answer(writer, 200, [])
        else:
            await fakes.answer(writer, 200, {"Id": "sha256:1"})

    async def main() -> None:
        runtime = docker.DockerRuntime(
            node_id="n1", socket=str(tmp_path / "s"), clock=clock.SystemClock(), rng=ids.seeded_rng(1)
        )
        async with fakes.engine(tmp_path / "s", handler):
            await runtime.open()
            ready = workloads.workload(task_id="ready")
            await runtime.prepare(ready, progress=lambda _: None)
            many = [workloads.workload(task_id=f"stuck{number}") for number in range(2 * driver.CREATES_MAX)]
            waiting = [asyncio.ensure_future(runtime.prepare(each, progress=lambda _: None)) for each in many]
            await workloads.until(
                lambda: asyncio.sleep(0, len(stuck)), lambda n: n == driver.CREATES_MAX, what="creates that hang"
            )
            async with asyncio.timeout(5.0):
                await runtime.start(ready)
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await runtime.close()

    asyncio.run(main())


def test_no_engine_there(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        made = client.Client(f"unix://{tmp_path}/nothing")
        with pytest.raises(errors.Unavailable, match="nothing: No such file or directory"):
            await made.open()
        with pytest.raises(errors.Unavailable, match="nothing: No such file or directory"):
            await made.get("/x")
        await made.close()
        with pytest.raises(errors.Unavailable, match="closed"):
            await made.get("/x")

    asyncio.run(main())


def test_an_engine_that_comes_late_is_spoken_to_in_its_own_version(tmp_path: pathlib.Path) -> None:
    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        # What is asked for in another version keeps its prefix here.
        await fakes.answer(writer, 200 if call == "GET /containers/json" else 400, [])

    async def main() -> None:
        runtime = docker.DockerRuntime(
            node_id="n1", socket=str(tmp_path / "s"), clock=clock.SystemClock(), rng=ids.seeded_rng(1)
        )
        with pytest.raises(errors.Unavailable, match="cannot connect to the container engine"):
            await runtime.open()
        with pytest.raises(base.TaskTemporary, match="cannot connect to the container engine"):
            await runtime.observe("t1")
        async with fakes.engine(tmp_path / "s", handler):
            assert await runtime.list() == []
        await runtime.close()

    asyncio.run(main())


def test_events_begin_when_the_engine_is_there(tmp_path: pathlib.Path) -> None:
    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        assert call == "GET /events"
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async def main() -> None:
        stirred: list[None] = []
        runtime = docker.DockerRuntime(
            node_id="n1", socket=str(tmp_path / "s"), clock=clock.SystemClock(), rng=ids.seeded_rng(1),
            stirred=lambda: stirred.append(None),
        )  # fmt: skip
        with pytest.raises(errors.Unavailable):
            await runtime.open()
        waiting = asyncio.ensure_future(anext(runtime.events()))
        await workloads.until(lambda: asyncio.sleep(0, len(stirred)), lambda n: n == 1, what="the loss being told")
        async with fakes.engine(tmp_path / "s", handler):
            assert await waiting == ""
            assert len(stirred) == 2
            await runtime.close()

    asyncio.run(main())


def test_events_reconnect_and_say_so(tmp_path: pathlib.Path) -> None:
    connections: list[dict[str, str]] = []

    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        assert call == "GET /events"
        connections.append(query)
        event = {"Action": "die", "Actor": {"Attributes": {"io.skep.task": f"t{len(connections)}"}}}
        data = json.dumps(event).encode() + b"\n"
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data)
        await writer.drain()
        writer.close()

    async def main() -> None:
        runtime = docker.DockerRuntime(
            node_id="n1", socket=str(tmp_path / "s"), clock=clock.SystemClock(), rng=ids.seeded_rng(1)
        )
        async with fakes.engine(tmp_path / "s", handler):
            await runtime.open()
            events = runtime.events()
            assert [await anext(events) for _ in range(4)] == ["", "t1", "", "t2"]
            assert json.loads(connections[0]["filters"])["label"] == ["io.skep.node=n1"]
            await runtime.close()
            rest = [event async for event in events]
            assert len(rest) <= 1

    asyncio.run(main())


def test_few_containers_are_stopped_at_once_but_none_waits_for_the_stubborn_ones(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping: list[str] = []
    ended = asyncio.Event()  # all containers together

    async def handler(call: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call == "GET /containers/json":
            tasks = [f"t{number}" for number in range(2 * driver.ENDINGS_MAX + 1)]
            listed = [{"Id": f"c-{task}", "Labels": {spec.TASK: task}, "Names": [f"/web.1.{task}"]} for task in tasks]
            await fakes.answer(writer, 200, listed)
            return
        stopping.append(call.split("/")[2])
        await ended.wait()
        await fakes.answer(writer, 200, {})

    async def count(wanted: int) -> None:
        await workloads.until(lambda: asyncio.sleep(0, len(stopping)), lambda n: n >= wanted, what=f"{wanted} stops")
        assert len(stopping) == wanted

    async def main() -> None:
        monkeypatch.setattr(driver, "STUBBORN_S", 3600.0)
        runtime = docker.DockerRuntime(
            node_id="n1", socket=str(tmp_path / "s"), clock=clock.SystemClock(), rng=ids.seeded_rng(1)
        )
        last = f"t{2 * driver.ENDINGS_MAX}"
        async with fakes.engine(tmp_path / "s", handler):
            await runtime.open()
            many = [workloads.workload(task_id=f"t{number}") for number in range(driver.ENDINGS_MAX)]
            stops = [asyncio.create_task(runtime.stop(each)) for each in many]
            await count(driver.ENDINGS_MAX)
            # Managers count on how long it takes at most.
            leased = workloads.workload(task_id=last)
            leased.spec.labels[policies.AT_MOST_ONCE] = "true"
            late = [workloads.workload(task_id=f"t{driver.ENDINGS_MAX + number}") for number in range(3)]
            stops += [asyncio.create_task(runtime.stop(each)) for each in (*late, leased)]
            await count(driver.ENDINGS_MAX + 1)
            assert stopping[-1] == f"c-{last}"
            ended.set()
            await asyncio.gather(*stops)
            assert len(stopping) == driver.ENDINGS_MAX + 4
            stopping.clear()
            ended.clear()
            monkeypatch.setattr(driver, "STUBBORN_S", 0.05)
            stops = [asyncio.create_task(runtime.stop(each)) for each in (*many, *late)]
            await count(driver.ENDINGS_MAX + 3)
            ended.set()
            await asyncio.gather(*stops)
            await runtime.close()

    asyncio.run(main())
