"""Who answers: the leader, everybody else through it, and nobody twice."""

import asyncio

from manager.http import api
from manager.store import commit
from skep import errors
from tests.manager.http import rigs


def test_reads_wait_for_a_leader_and_writes_are_not_repeated_blindly() -> None:
    async def work(rig: rigs.Rig) -> None:
        committer = rig.manager.committer
        committer.barriers.append(errors.Unavailable("no quorum just now"))
        assert await rig.get("/services") == []
        committer.problems.append(commit.NotProposed("queue full"))
        await rig.create(rigs.spec("one"))
        committer.problems.append(errors.Unavailable("lost the lead"))
        status, message = await rig.refused("POST", "/services/create", rigs.spec("two"))
        assert status == 500
        assert message.startswith("the change may or may not have been made, look before you repeat it")
        committer.is_leader = False
        rig.manager.leader_id = ""
        for method, target in (("GET", "/services"), ("DELETE", "/services/one")):
            status, message = await rig.refused(method, target)
            assert (status, message) == (503, api.NO_LEADER)

    rigs.run(work)


def test_an_election_ends_the_waiting() -> None:
    async def work(rig: rigs.Rig) -> None:
        rig.manager.committer.is_leader = False
        rig.manager.leader_id = ""
        answer = asyncio.ensure_future(rig.ask("GET", "/services"))
        await asyncio.sleep(0)
        rig.manager.committer.is_leader = True
        rig.manager.leader_id = rig.manager.node_id
        assert (await answer).status == 200

    rigs.run(work)


async def follower_of(rig: rigs.Rig) -> rigs.Rig:
    follower = rigs.Rig(seed=2)
    await follower.machine.found()
    follower.manager.committer.is_leader = False
    follower.manager.leader_id = rig.manager.node_id
    follower.manager.leader = rig.api
    return follower


def test_followers_forward_once() -> None:
    async def work(rig: rigs.Rig) -> None:
        follower = await follower_of(rig)
        service_id = await follower.create(rigs.spec(replicas=1))
        assert (await rig.get(f"/services/{service_id}"))["Spec"]["Name"] == "web"
        assert await follower.get("/services", status="true") == await rig.get("/services", status="true")
        assert (await follower.refused("GET", "/services/nope")) == (404, "service nope not found")
        await rig.machine.settle()
        (task,) = await follower.get("/tasks")
        rig.manager.logs.add(task["ID"], b"over there\n")
        answer = await follower.ask("GET", "/services/web/logs?stdout=1")
        assert answer.body == b"\x01\0\0\0\0\0\0\x0bover there\n"
        assert answer.headers["Content-Type"] == "application/vnd.docker.raw-stream"
        # Two managers that take each other for the leader: each refuses what comes from the other.
        rig.manager.committer.is_leader = False
        before = len(follower.manager.forwarded)
        status, message = await follower.refused("DELETE", "/services/web")
        assert status == 503
        assert "does not lead" in message
        assert len(follower.manager.forwarded) > before + 1
        assert rig.manager.forwarded == []

    rigs.run(work)


def test_a_leader_that_is_just_stopping_is_not_the_end_of_a_write() -> None:
    async def work(rig: rigs.Rig) -> None:
        follower = await follower_of(rig)
        rig.machine.manager, rig.machine.state = None, "pending"  # its parts are stopped one after the other
        answer = asyncio.ensure_future(follower.ask("POST", "/services/create", rigs.spec(replicas=1)))
        while not follower.manager.forwarded:  # noqa: ASYNC110
            await asyncio.sleep(0)
        follower.manager.leader_id = follower.manager.node_id
        follower.manager.committer.is_leader = True
        assert (await answer).status == 201

    rigs.run(work)
