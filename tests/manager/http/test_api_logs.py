"""Output of tasks through the API: framing, following, and what is left when the reader goes."""

import asyncio
import struct

import pytest

from manager.http import logs, messages
from skep import errors, pb
from tests.manager.http import rigs


def frames(body: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while body:
        stream, length = struct.unpack(">BxxxL", body[:8])
        found.append((stream, body[8 : 8 + length]))
        body = body[8 + length :]
    return found


def test_logs_of_a_service_and_of_a_task() -> None:
    async def work(rig: rigs.Rig) -> None:
        service_id = await rig.create(rigs.spec(replicas=1))
        await rig.machine.settle()
        (task,) = await rig.get("/tasks")
        rig.manager.logs.add(task["ID"], b"one\n")
        rig.manager.logs.add(task["ID"], b"two\n", stream=pb.LOG_STREAM_STDERR)
        answer = await rig.ask("GET", "/services/web/logs?stdout=1&stderr=1&details=1&tail=7&since=12.5")
        details = (
            f"com.docker.swarm.node.id={task['NodeID']},com.docker.swarm.service.id={service_id},"
            f"com.docker.swarm.task.id={task['ID']} "
        ).encode()
        assert frames(answer.body) == [(1, details + b"one\n"), (2, details + b"two\n")]
        query = rig.manager.logs.queries[-1]
        assert (query.tail, query.since, query.follow) == (7, 12.5, False)
        answer = await rig.ask("GET", f"/tasks/{task['ID']}/logs?stdout=True&timestamps=1")
        first = frames(answer.body)[0][1]
        stamp, _, rest = first.partition(b" ")
        assert (len(stamp), rest) == (30, b"one\n")
        assert rig.manager.logs.queries[-1].stderr is False
        for target, text in (
            ("/services/web/logs", "Bad parameters: you must choose at least one stream"),
            ("/services/web/logs?stdout=1&tail=x", "tail: expected a number of lines or all, got 'x'"),
            ("/services/web/logs?stdout=1&since=x", "since: expected seconds since the epoch, got 'x'"),
            ("/services/nope/logs?stdout=1", "service nope not found"),
        ):
            assert (await rig.refused("GET", target))[1] == text

    rigs.run(work)


@pytest.mark.parametrize(
    ("state", "ran", "has"),
    [
        (pb.TASK_STATE_READY, False, False),
        (pb.TASK_STATE_STARTING, False, True),
        (pb.TASK_STATE_SHUTDOWN, True, True),
        (pb.TASK_STATE_REJECTED, False, False),
        (pb.TASK_STATE_REJECTED, True, True),  # its node did not suit it any more
        (pb.TASK_STATE_ORPHANED, True, False),
    ],
)
def test_which_tasks_of_a_service_are_asked_for_output(state: pb.TaskState.ValueType, ran: bool, has: bool) -> None:
    task = pb.Task(node_id="n1", status=pb.TaskStatus(state=state))
    if ran:
        task.running_at.GetCurrentTime()
    assert logs._has_output(task) is has


def test_logs_of_a_terminal_are_not_framed_and_trouble_is_told_in_the_stream() -> None:
    async def work(rig: rigs.Rig) -> None:
        body = rigs.spec(replicas=1)
        body["TaskTemplate"]["ContainerSpec"]["TTY"] = True
        await rig.create(body)
        await rig.create(rigs.spec("plain", replicas=1))
        await rig.machine.settle()
        for task in await rig.get("/tasks"):
            rig.manager.logs.add(task["ID"], b"hello\r\n")
        assert (await rig.ask("GET", "/services/web/logs?stdout=1")).body == b"hello\r\n"
        rig.manager.logs.problem = errors.Unavailable("the lead was lost")
        answer = await rig.ask("GET", "/services/plain/logs?stdout=1")
        assert frames(answer.body) == [(1, b"hello\n".replace(b"\n", b"\r\n")), (3, b"the lead was lost\n")]

    rigs.run(work)


def test_following_a_service_picks_up_new_tasks_and_ends_with_it() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=1))
        await rig.machine.settle()
        (task,) = await rig.get("/tasks")
        rig.manager.logs.add(task["ID"], b"old\n")
        request = messages.Request(method="GET", target="/services/web/logs?stdout=1&follow=1")
        response = await rig.api.handle(request)
        assert response.stream is not None
        assert frames(await anext(response.stream)) == [(1, b"old\n")]
        version = (await rig.get("/services/web"))["Version"]["Index"]
        await rig.ask("POST", f"/services/web/update?version={version}", rigs.spec(replicas=2))
        following = asyncio.ensure_future(anext(response.stream))
        for row in rig.manager.store.view().tasks:
            assert row.id == task["ID"]
        while len(tasks := await rig.get("/tasks")) == 1:
            await settle_with_logs(rig, b"new\n", known=task["ID"])
        assert frames(await asyncio.wait_for(following, 5)) == [(1, b"new\n")]
        assert len(tasks) == 2
        assert (await rig.ask("DELETE", "/services/web")).status == 200
        assert [piece async for piece in response.stream] == []

    rigs.run(work)


async def settle_with_logs(rig: rigs.Rig, line: bytes, *, known: str) -> None:
    """New tasks have said `line` by the time they are seen running."""

    def wake() -> None:
        for row in rig.manager.store.view().tasks:
            if row.id != known and row.status.state < pb.TASK_STATE_READY and not rig.manager.logs.lines[1:]:
                rig.manager.logs.add(row.id, line)

    watch = rig.manager.store.watch(("task",), wake)
    await rig.machine.settle()
    watch.close()


def test_a_reader_that_leaves_takes_everything_with_it() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=1))
        await rig.machine.settle()
        (task,) = await rig.get("/tasks")
        rig.manager.logs.add(task["ID"], b"line\n")
        response = await rig.api.handle(messages.Request(method="GET", target="/services/web/logs?stdout=1&follow=1"))
        assert response.stream is not None
        await anext(response.stream)
        await response.stream.aclose()
        assert len(asyncio.all_tasks()) == 1

    rigs.run(work)
