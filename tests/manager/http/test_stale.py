"""Reads without a quorum: answered from the manager's own store, marked, and only when asked for. Back-pressure."""

import json

import pytest

from manager.store import commit
from skep import errors
from tests.manager.http import rigs


@pytest.mark.parametrize(
    ("query", "headers"), [("?stale=1", {}), ("", {"skep_stale": "1"}), ("", {"skep_stale": "true"})]
)
def test_a_manager_without_a_leader_answers_what_it_knows(query: str, headers: dict[str, str]) -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec("web"))
        rig.manager.committer.is_leader = False
        rig.manager.leader_id = ""
        rig.manager.behind_s = 12.34
        status, text = await rig.refused("GET", "/services")
        assert (status, "does not have a leader" in text) == (503, True)
        for path in ("/services", "/services/web", "/nodes", "/tasks", "/swarm"):
            answer = await rig.ask("GET", path + query, **headers)
            assert answer.status == 200
            assert answer.headers["Skep-Stale"] == "true"
            assert answer.headers["Skep-Index"] == str(rig.manager.store.index)
            assert answer.headers["Skep-Age"] == "12.3"
        (found,) = json.loads((await rig.ask("GET", "/services" + query, **headers)).body)
        assert found["Spec"]["Name"] == "web"
        rig.manager.behind_s = None
        assert (await rig.ask("GET", "/nodes" + query, **headers)).headers["Skep-Age"] == "unknown"

    rigs.run(work)


def test_nothing_is_stale_unless_it_was_asked_for() -> None:
    async def work(rig: rigs.Rig) -> None:
        for target in ("/services", "/services?stale=0"):
            answer = await rig.ask("GET", target)
            assert "Skep-Stale" not in answer.headers
        assert "Skep-Stale" not in (await rig.ask("GET", "/version?stale=1")).headers

    rigs.run(work)


def test_changes_and_logs_take_the_leader() -> None:
    async def work(rig: rigs.Rig) -> None:
        service_id = await rig.create(rigs.spec("web"))
        for method, target, word in (
            ("POST", "/services/create?stale=1", "a change takes the leader"),
            ("DELETE", f"/services/{service_id}?stale=1", "a change takes the leader"),
            ("GET", f"/services/{service_id}/logs?stale=1&stdout=1", "the output of tasks takes the leader"),
        ):
            status, text = await rig.refused(method, target, rigs.spec("x") if method == "POST" else None)
            assert (status, word in text) == (400, True)

    rigs.run(work)


def test_too_much_waiting_is_503_with_the_reason() -> None:
    async def work(rig: rigs.Rig) -> None:
        problem = commit.NotProposed("too many changes are waiting to be committed; try again later")
        rig.manager.committer.problems += [problem] * 1000
        status, text = await rig.refused("POST", "/services/create", rigs.spec("web"))
        assert (status, text) == (503, problem.message)
        rig.manager.committer.problems.clear()
        rig.manager.committer.barriers += [errors.Unavailable("too many reads are waiting; try again later")] * 1000
        status, text = await rig.refused("GET", "/services")
        assert (status, text) == (503, "too many reads are waiting; try again later")

    rigs.run(work)
