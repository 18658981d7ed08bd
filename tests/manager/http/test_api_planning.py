"""Questions over HTTP: plans, what-if, explanations, revisions. What is asked changes nothing."""

import json
from typing import Any

import pytest

from manager.http import planning
from tests.manager.http import rigs

GB = 1000**3
Json = dict[str, Any]


async def post(rig: rigs.Rig, target: str, body: Any = None) -> Json:
    answer = await rig.ask("POST", target, body)
    assert answer.status == 200, answer.body
    found: Json = json.loads(answer.body)
    return found


async def service(rig: rigs.Rig, name: str = "web") -> tuple[Json, str]:
    """The service's specification, and the query that names its version."""
    found = await rig.get(f"/services/{name}")
    return found["Spec"], f"version={found['Version']['Index']}"


def only(found: Json) -> Json:
    (one,) = found["Services"]
    assert isinstance(one, dict)
    return one


def test_the_plan_of_an_update_comes_true() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=3))
        await rig.machine.settle()
        spec, version = await service(rig)
        index = rig.manager.store.index
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = "nginx:2"
        spec["Mode"]["Replicated"]["Replicas"] = 4
        plan = await post(rig, f"/skep/v1/services/web/plan?{version}", spec)
        assert rig.manager.store.index == index
        assert plan == await post(rig, f"/skep/v1/services/web/plan?{version}", spec), "the same question"
        assert (plan["Verdict"], plan["AtRest"], plan["Complete"]) == ("changes", True, True)
        assert plan["Fields"] == [
            {"Path": "TaskTemplate.ContainerSpec.Image", "Before": "nginx", "After": "nginx:2"},
            {"Path": "Mode.Replicated.Replicas", "Before": 3, "After": 4},
        ]
        told = only(plan)
        assert told["UpdateStatus"]["State"] == "completed"
        assert told["Running"] == 3
        answer = await rig.ask("POST", f"/services/web/update?{version}", spec)
        assert answer.status == 200
        await rig.machine.settle()
        tasks = await rig.get("/tasks", filters={"service": ["web"], "desired-state": ["running"]})
        assert {each["Slot"]: each["To"] for each in told["Tasks"]} == {each["Slot"]: each["NodeID"] for each in tasks}

    rigs.run(work)


def test_plans_of_creations_nodes_and_refusals() -> None:
    async def work(rig: rigs.Rig) -> None:
        plan = await post(rig, "/skep/v1/services/plan", rigs.spec(replicas=3))
        assert only(plan)["Counts"] == {"new": 3}
        assert {each["ToName"] for each in only(plan)["Tasks"]} == {"n0", "n1", "n2"}
        huge: Json = {"Resources": {"Reservations": {"MemoryBytes": 900 * GB}}}
        plan = await post(rig, "/skep/v1/services/plan", rigs.spec(replicas=1, **huge))
        assert plan["Verdict"] == "infeasible"
        assert "needs 900 GB memory" in only(plan)["Tasks"][0]["Reason"]
        await rig.create(rigs.spec(replicas=3))
        await rig.machine.settle()
        node = await rig.get("/nodes/n1")
        drained = {**node["Spec"], "Availability": "drain"}
        plan = await post(rig, f"/skep/v1/nodes/n1/plan?version={node['Version']['Index']}", drained)
        (moved,) = [each for each in only(plan)["Tasks"] if each["Action"] != "kept"]
        assert (moved["Action"], moved["FromName"]) == ("moved", "n1")
        assert (await rig.get("/nodes/n1"))["Spec"]["Availability"] == "active"
        spec, version = await service(rig)
        assert (await post(rig, f"/skep/v1/services/web/plan?{version}", spec))["Verdict"] == "nothing"
        assert await rig.refused("POST", "/skep/v1/services/web/plan?version=1", spec) == (
            500,
            "update out of sequence",
        )
        status, _ = await rig.refused("POST", "/skep/v1/services/plan", rigs.spec())
        assert status == 409, "the name is taken"
        status, _ = await rig.refused("POST", "/skep/v1/services/nobody/plan?version=1", spec)
        assert status == 404

    rigs.run(work)


def test_what_if() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=3, Resources={"Reservations": {"MemoryBytes": 5 * GB}}))
        await rig.machine.settle()
        lost = await post(rig, "/skep/v1/what-if", {"Lose": ["n1"]})
        assert lost["Verdict"] == "infeasible"
        assert only(lost)["Counts"] == {"kept": 2, "infeasible": 1}
        saved = await post(
            rig, "/skep/v1/what-if",
            {
                "lose": ["n1"],
                "add": [{"count": 2, "nano_cpus": 4 * 10**9, "memory_bytes": 8 * GB, "labels": {"a": "b"}}],
            },
        )  # fmt: skip
        assert only(saved)["Counts"] == {"kept": 2, "moved": 1}
        assert any(each["ToName"] == "added-1" for each in only(saved)["Tasks"])
        manager = await post(rig, "/skep/v1/what-if", {"Lose": ["n0"]})
        assert manager["Verdict"] == "infeasible"
        assert "quorum" in manager["Notes"][0]
        bodies: list[Any] = [
            {},
            [],
            {"Lose": "n1"},
            {"Add": [{"Count": "x"}]},
            {"Add": [{"MemoryBytes": -1}]},
            {"Add": [3]},
        ]
        for body in bodies:
            assert (await rig.refused("POST", "/skep/v1/what-if", body))[0] == 400
        assert (await rig.refused("POST", "/skep/v1/what-if", {"Lose": ["nobody"]}))[0] == 404

    rigs.run(work)


def test_too_many_questions_at_once_are_turned_away() -> None:
    async def work(rig: rigs.Rig) -> None:
        for _ in range(planning.AT_ONCE_MAX):
            assert planning._seats.acquire(blocking=False)
        try:
            status, message = await rig.refused("POST", "/skep/v1/services/plan", rigs.spec())
        finally:
            planning._seats.release(planning.AT_ONCE_MAX)
        assert (status, "try again" in message) == (503, True)
        assert (await post(rig, "/skep/v1/services/plan", rigs.spec()))["Verdict"] == "changes"

    rigs.run(work)


def test_explanations() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=1, Placement={"Constraints": ["node.labels.disk==ssd"]}))
        await rig.machine.settle()
        found = await rig.get("/skep/v1/explain/service/web")
        assert found["Fix"] == "skep node update --label-add disk=ssd n0"
        assert [each["Fits"] for each in found["Nodes"]] == [False] * 3
        assert found["Nodes"][0]["Failing"][0] == {
            "Rule": "constraint", "Need": "node.labels.disk==ssd", "Have": "no node.labels.disk",
            "Remedy": "skep node update --label-add disk=ssd n0",
        }  # fmt: skip
        (task,) = await rig.get("/tasks")
        for reference in (task["ID"], "web.1", f"web.1.{task['ID']}"):
            found = await rig.get(f"/skep/v1/explain/task/{reference}", why_not="n2")
            assert found["Summary"] == task["Status"]["Err"]
            assert found["WhyNot"].startswith("n2 does not take it: needs node.labels.disk==ssd")
        assert (await rig.get("/skep/v1/explain/node/n2"))["Waits"][0]["Subject"] == "web.1"
        for path, status in (
            ("service/nobody", 404), ("task/web.7", 404), ("node/n9", 404), ("volume/x", 404),
            ("service/web?why_not=n9", 404),
            ("node/n1?why_not=n2", 400),
        ):  # fmt: skip
            assert (await rig.refused("GET", f"/skep/v1/explain/{path}"))[0] == status

    rigs.run(work)


def test_revisions_and_the_way_back_to_any_of_them() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=1))
        for image in ("nginx:2", "nginx:3"):
            spec, version = await service(rig)
            spec["TaskTemplate"]["ContainerSpec"]["Image"] = image
            assert (await rig.ask("POST", f"/services/web/update?{version}", spec)).status == 200
        found = await rig.get("/skep/v1/services/web/revisions")
        assert [(each["Number"], each["Current"], each["Previous"]) for each in found] == [
            (1, False, False), (2, False, True), (3, True, False),
        ]  # fmt: skip
        assert "Changes" not in found[0]
        assert found[2]["Changes"] == [
            {"Path": "TaskTemplate.ContainerSpec.Image", "Before": "nginx:2", "After": "nginx:3"}
        ]
        _, version = await service(rig)
        plan = await post(rig, f"/skep/v1/services/web/plan?{version}&rollback=1&to=1")
        assert plan["Fields"][0]["After"] == "nginx"
        await post(rig, f"/skep/v1/services/web/rollback?{version}&to=1")
        spec, version = await service(rig)
        assert spec["TaskTemplate"]["ContainerSpec"]["Image"] == "nginx"
        await rig.machine.settle()
        found = await rig.get("/skep/v1/services/web/revisions")
        assert [each["Number"] for each in found if each["Current"] or each["Previous"]] == [1, 3]
        assert (await rig.get("/services/web"))["UpdateStatus"]["State"] == "rollback_completed"
        _, version = await service(rig)
        status, message = await rig.refused("POST", f"/skep/v1/services/web/rollback?{version}&to=9")
        assert (status, message) == (404, "service web has no revision 9 (any more); kept are 1, 2, 3")
        status, message = await rig.refused("POST", f"/skep/v1/services/web/rollback?{version}&to=1")
        assert (status, "already" in message) == (400, True)
        for bad in ("x", "0", "-1"):
            assert (await rig.refused("POST", f"/skep/v1/services/web/rollback?{version}&to={bad}"))[0] == 400
        assert (await rig.refused("POST", "/skep/v1/services/web/rollback?version=1&to=2"))[0] == 500
        await post(rig, f"/skep/v1/services/web/rollback?{version}")
        assert (await service(rig))[0]["TaskTemplate"]["ContainerSpec"]["Image"] == "nginx:3"

    rigs.run(work)


@pytest.mark.parametrize("target", ["/skep/v1/services/plan", "/skep/v1/what-if"])
def test_questions_go_to_the_leader(target: str) -> None:
    async def work(rig: rigs.Rig) -> None:
        rig.manager.committer.is_leader = False
        status, _ = await rig.refused("POST", target, {"Lose": ["n1"]})
        assert status == 503

    rigs.run(work)
