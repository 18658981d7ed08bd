"""Figures of tasks: one line each, live for many, and a word about a task that gives none."""

import json
from typing import Any

from manager.http import messages
from skep import channel, errors, pb
from tests.manager.http import rigs


async def figures(pipe: channel.Channel) -> None:
    """Two messages in odd pieces, or as many as are taken."""
    pipe.say_ready()
    number = 0
    while True:
        number += 1
        message = pb.TaskStats(pids=number, nano_cpus=500_000_000, memory_bytes=1000, sent_bytes=-1).SerializeToString()
        framed = len(message).to_bytes(4, "big") + message
        await pipe.send(framed[:3])
        await pipe.send(framed[3:])
        if not pipe.opened.stats.follow or number == 3:
            pipe.end()
            return


async def lines(rig: rigs.Rig, target: str, *, most: int = 100) -> list[dict[str, Any]]:
    response = await rig.api.handle(messages.Request(method="GET", target=target))
    assert response.stream is not None, response.body
    found: list[dict[str, Any]] = []
    async for piece in response.stream:
        found.append(json.loads(piece))
        if len(found) == most:
            break
    await response.stream.aclose()
    assert rig.manager.channels.open_now == 0
    return found


async def deploy(rig: rigs.Rig) -> None:
    for name in ("web", "api"):
        await rig.create(rigs.spec(name))
    await rig.machine.settle()


def test_one_line_of_each_running_task() -> None:
    async def work(rig: rigs.Rig) -> None:
        await deploy(rig)
        rig.manager.channels.agent = figures
        found = await lines(rig, "/skep/v1/stats?service=web")
        assert sorted(line["Name"] for line in found) == ["web.1", "web.2"]
        assert found[0]["NanoCPUs"] == 500_000_000
        assert found[0]["SentBytes"] == -1
        assert len(await lines(rig, "/skep/v1/stats")) == 4
        assert (await rig.refused("GET", "/skep/v1/stats?service=nope"))[0] == 404

    rigs.run(work)


def test_a_task_is_followed_to_its_end() -> None:
    async def work(rig: rigs.Rig) -> None:
        await deploy(rig)
        rig.manager.channels.agent = figures
        found = await lines(rig, "/skep/v1/tasks/web.1/stats?stream=1")
        assert [line["Pids"] for line in found] == [1, 2, 3]

    rigs.run(work)


def test_a_task_that_gives_no_figures_says_why_and_spoils_nothing() -> None:
    async def work(rig: rigs.Rig) -> None:
        await deploy(rig)
        failing = next(iter(rig.manager.store.view().tasks)).id

        async def some(pipe: channel.Channel) -> None:
            if pipe.opened.task_id == failing:
                pipe.end(errors.FailedPrecondition("it is not running"))
            else:
                await figures(pipe)

        rig.manager.channels.agent = some
        found = await lines(rig, "/skep/v1/stats?stream=1", most=10)
        assert [line["Error"] for line in found if line["TaskID"] == failing] == ["it is not running"]
        assert len([line for line in found if "Error" not in line]) == 9

    rigs.run(work)
