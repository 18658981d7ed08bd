"""Draining and rebalancing over HTTP: the plan, the start, the progress, the way back."""

import json
from typing import Any

import pytest

from tests.manager.http import rigs

Json = dict[str, Any]
MINUTE_NS = 60 * 10**9


async def post(rig: rigs.Rig, target: str, body: Any = None) -> Any:
    answer = await rig.ask("POST", target, body)
    assert answer.status == 200, answer.body
    return json.loads(answer.body) if answer.body else None


async def nodes_of(rig: rigs.Rig, service: str = "web") -> dict[int, str]:
    """The name of each slot's node."""
    names = {node["ID"]: node["Description"]["Hostname"] for node in await rig.get("/nodes")}
    tasks = await rig.get("/tasks", filters={"service": [service], "desired-state": ["running"]})
    return {each["Slot"]: names[each["NodeID"]] for each in tasks}


def goals(plan: Json) -> dict[int, str]:
    (service,) = plan["Services"]
    return {each["Slot"]: each["ToName"] for each in service["Tasks"]}


def test_nodes_are_drained_together_as_planned() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=6))
        await rig.create(rigs.spec("db", replicas=3) | {"Labels": {"io.skep.at-most-once": "true"}})
        await rig.machine.settle()
        wanted = {"Nodes": ["n1", "n2"], "Deadline": 5 * MINUTE_NS}
        index = rig.manager.store.index
        plan = await post(rig, "/skep/v1/drain/plan", wanted)
        assert rig.manager.store.index == index
        assert plan["Verdict"] == "changes"
        assert [(each["Node"], each["Path"], each["After"]) for each in plan["Fields"]] == [
            ("n1", "Availability", "drain"),
            ("n2", "Availability", "drain"),
        ]
        assert {each["NodeName"] for each in plan["Gaps"]} == {"n1", "n2"}
        assert all(each["Name"].startswith("db.") and each["ExpectedSeconds"] >= 10 for each in plan["Gaps"])
        started = await post(rig, "/skep/v1/drain", wanted)
        assert [each["Name"] for each in started["Gaps"]] == [each["Name"] for each in plan["Gaps"]]
        before = await rig.get("/skep/v1/drain?node=n1&node=n2")
        assert [(each["Name"], each["Draining"], len(each["Left"])) for each in before] == [
            ("n1", True, 3), ("n2", True, 3),
        ]  # fmt: skip
        assert before[0]["Left"][0]["Why"] == "waits for its turn"
        await rig.machine.settle()
        after = await rig.get("/skep/v1/drain?node=n1&node=n2")
        assert [(each["Left"], each["Homeless"]) for each in after] == [([], [])] * 2
        assert set((await nodes_of(rig)).values()) == {"n0"}
        assert len(await nodes_of(rig)) == 6
        await post(rig, "/skep/v1/drain/cancel", {"Nodes": ["n1", "n2"]})
        assert [(await rig.get(f"/nodes/{name}"))["Spec"]["Availability"] for name in ("n1", "n2")] == ["active"] * 2

    rigs.run(work)


def test_what_found_no_place_is_told_afterwards() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=1, Placement={"Constraints": ["node.hostname==n1"]}))
        await rig.machine.settle()
        started = await post(rig, "/skep/v1/drain", {"Nodes": ["n1"], "Deadline": 0})
        assert "no place elsewhere" in started["Gaps"][0]["Why"]
        await rig.machine.settle()
        (found,) = await rig.get("/skep/v1/drain?node=n1")
        assert found["Left"] == []
        (lost,) = found["Homeless"]
        assert (lost["Name"], lost["Why"]) == ("web.1", "no suitable node (2 not node.hostname==n1; 1 drained)")

    rigs.run(work)


@pytest.mark.parametrize(
    ("target", "body", "status", "words"),
    [
        ("/skep/v1/drain", {}, 400, "names or IDs of nodes"),
        ("/skep/v1/drain", {"Nodes": ["n1"], "Deadline": "10m"}, 400, "nanoseconds"),
        ("/skep/v1/drain", {"Nodes": ["n1"], "Deadline": -1}, 400, "between 0 and 7 days"),
        ("/skep/v1/drain", {"Nodes": ["n1", "n9"]}, 404, "n9"),
        ("/skep/v1/drain/plan", {"Nodes": ["n9"]}, 404, "n9"),
        ("/skep/v1/drain/cancel", {"Nodes": ["n1"]}, 400, "not being drained"),
        ("/skep/v1/rebalance", {"Moves": 0}, 400, "moves must be between 1 and"),
        ("/skep/v1/rebalance", {"AtATime": 1.5}, 400, "AtATime: expected an integer"),
        ("/skep/v1/rebalance", {"MinBenefit": 1}, 400, "min benefit must be between 2 and"),
        ("/skep/v1/rebalance", {"Speed": 1}, 400, "speed: unknown"),
        ("/skep/v1/rebalance/plan", [], 400, "expected an object"),
        ("/skep/v1/rebalance/cancel", None, 400, "nothing to cancel"),
        ("/skep/v1/rebalance/policy", {"Auto": "yes"}, 400, "true"),
    ],
)
def test_refusals(target: str, body: Any, status: int, words: str) -> None:
    async def work(rig: rigs.Rig) -> None:
        found = await rig.refused("POST", target, body)
        assert found[0] == status, found
        assert words in found[1]
        assert (await rig.get("/nodes/n1"))["Spec"]["Availability"] == "active"

    rigs.run(work)


def test_the_load_is_evened_out_as_planned() -> None:
    async def work(rig: rigs.Rig) -> None:
        await post(rig, "/skep/v1/drain", {"Nodes": ["n1", "n2"], "Deadline": 0})
        await rig.create(rigs.spec(replicas=6))
        await rig.machine.settle()
        await post(rig, "/skep/v1/drain/cancel", {"Nodes": ["n1", "n2"]})
        await rig.machine.settle()
        assert set((await nodes_of(rig)).values()) == {"n0"}
        assert (await rig.get("/skep/v1/rebalance"))["Active"] is False
        plan = await post(rig, "/skep/v1/rebalance/plan", {"MinAge": 0})
        assert plan["Verdict"] == "changes"
        assert plan["Services"][0]["RunningLeast"] == 6
        begun = await post(rig, "/skep/v1/rebalance", {"MinAge": 0, "AtATime": 2})
        assert begun["Active"]
        assert begun["Limits"] == {"Moves": 1000, "AtATime": 2, "MinBenefit": 2, "MinAge": 0}
        await rig.machine.settle()
        assert await nodes_of(rig) == goals(plan)
        over = await rig.get("/skep/v1/rebalance")
        assert (over["Active"], over["Moved"], over["Unhealthy"]) == (False, 4, False)
        assert (await post(rig, "/skep/v1/rebalance/plan"))["Verdict"] == "nothing"

    rigs.run(work)


def test_the_policy_survives_an_update_of_the_cluster_by_docker() -> None:
    async def work(rig: rigs.Rig) -> None:
        assert (await rig.get("/skep/v1/rebalance"))["Auto"] is False
        await post(rig, "/skep/v1/rebalance/policy", {"Auto": True})
        swarm = await rig.get("/swarm")
        spec = {**swarm["Spec"], "TaskHistoryRetentionLimit": 3}
        await post(rig, f"/swarm/update?version={swarm['Version']['Index']}", spec)
        assert (await rig.get("/skep/v1/rebalance"))["Auto"] is True
        await post(rig, "/skep/v1/rebalance/policy", {"Auto": False})
        assert (await rig.get("/skep/v1/rebalance"))["Auto"] is False

    rigs.run(work)
