"""Plans, what-if, explanations and revisions on the command line: what is sent, printed and returned."""

import json
from typing import Any

import pytest

from skep.cli import what_if
from tests.skep.cli import fake_skepd, objects

Skepd = fake_skepd.FakeSkepd
Capsys = pytest.CaptureFixture[str]
Json = dict[str, Any]
WEB = objects.identifier("svcweb")


def outcome(slot: int, action: str, source: str = "n1", target: str = "n1", **more: Any) -> Json:
    return {
        "Slot": slot, "Place": str(slot), "Action": action, "TaskID": f"t{slot}",
        "From": source, "FromName": source, "To": target,
        "ToName": target, **more,
    }  # fmt: skip


def plan(verdict: str = "changes", tasks: list[Json] | None = None, **more: Any) -> Json:
    tasks = [outcome(1, "kept"), outcome(2, "moved", target="n2")] if tasks is None else tasks
    counts: dict[str, int] = {}
    for task in tasks:
        counts[task["Action"]] = counts.get(task["Action"], 0) + 1
    web = {"ID": WEB, "Name": "web", "Counts": counts, "Running": 2, "RunningLeast": 1, "Tasks": tasks}
    nodes = [{"ID": "n1", "Name": "n1", "Before": 2, "After": 1}, {"ID": "n2", "Name": "n2", "Before": 0, "After": 1}]
    return {
        "Verdict": verdict, "AtRest": True, "Complete": True, "DurationSeconds": 5.0, "Notes": [],
        "Fields": [{"Path": "TaskTemplate.ContainerSpec.Image", "Before": "a:1", "After": "a:2"}],
        "Services": [web], "Nodes": nodes, **more,
    }  # fmt: skip


def answer(skepd: Skepd, path: str, body: Json, *, method: str = "POST", status: int = 200) -> None:
    skepd.routes[method, path] = lambda request: (status, body)


def test_the_plan_of_an_update_is_shown_and_nothing_is_sent_but_the_question(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service()]
    path = f"/skep/v1/services/{WEB}/plan"
    answer(skepd, path, plan())
    assert skepd.run("service", "update", "--plan", "--image", "a:2", "web") == 2
    (sent,) = skepd.sent("POST", path)
    assert sent.query["version"] == "10"
    assert sent.body["TaskTemplate"]["ContainerSpec"]["Image"] == "a:2"
    assert not skepd.sent("POST", f"/services/{WEB}/update")
    out = capsys.readouterr().out
    assert out == (
        "FIELD                              BEFORE    AFTER\n"
        "TaskTemplate.ContainerSpec.Image   a:1       a:2\n"
        "\n"
        "web: 1 kept, 1 moved; of 2 that run, 1 run all the time\n"
        "  SLOT      ACTION    FROM      TO\n"
        "  2         moved     n1        n2\n"
        "\n"
        "Tasks by node: n1 2 -> 1, n2 0 -> 1\n"
        "\n"
        "Nothing has been changed. This is what would happen.\n"
    )


@pytest.mark.parametrize(
    ("verdict", "code", "words"),
    [("nothing", 0, "Nothing to do."), ("changes", 2, "would happen"), ("infeasible", 3, "Not all of this")],
)
def test_the_exit_code_is_the_verdict(skepd: Skepd, capsys: Capsys, verdict: str, code: int, words: str) -> None:
    skepd.services = [objects.service()]
    answer(skepd, f"/skep/v1/services/{WEB}/plan", plan(verdict))
    assert skepd.run("service", "scale", "--plan", "web=5") == code
    assert words in capsys.readouterr().out
    assert skepd.sent("POST", f"/skep/v1/services/{WEB}/plan")[0].body["Mode"]["Replicated"]["Replicas"] == 5


def test_several_plans_end_with_the_gravest(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service(), objects.service("api", objects.spec("api"))]
    answer(skepd, f"/skep/v1/services/{WEB}/plan", plan("infeasible"))
    answer(skepd, f"/skep/v1/services/{objects.identifier('svcapi')}/plan", plan("nothing"))
    assert skepd.run("service", "scale", "--plan", "--json", "web=5", "api=1") == 3
    assert [each["Verdict"] for each in json.loads(capsys.readouterr().out)] == ["infeasible", "nothing"]


def test_json_is_what_the_server_says(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/services/plan", plan())
    assert skepd.run("service", "create", "--plan", "--json", "--name", "web", "a:2") == 2
    assert json.loads(capsys.readouterr().out) == plan()
    assert not skepd.sent("POST", "/services/create")


def test_json_goes_with_plan_only(skepd: Skepd, capsys: Capsys) -> None:
    assert skepd.run("service", "create", "--json", "a:2") == 1
    assert "add --plan" in capsys.readouterr().err
    assert skepd.requests == []


def test_a_plan_that_met_another_change_is_asked_again(skepd: Skepd) -> None:
    skepd.services = [objects.service()]
    answers: list[fake_skepd.Answer] = [(500, {"message": "update out of sequence"}), (200, plan("nothing"))]
    skepd.routes["POST", f"/skep/v1/services/{WEB}/plan"] = lambda request: answers.pop(0)
    assert skepd.run("service", "update", "--plan", "--force", "web") == 0


def test_reasons_are_told_once_and_long_lists_are_cut(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service()]
    tasks = [outcome(slot, "infeasible", "", "", Reason="no suitable node (1 drained)") for slot in range(1, 61)]
    answer(skepd, f"/skep/v1/services/{WEB}/plan", plan("infeasible", tasks, Notes=["mind the gap"]))
    assert skepd.run("service", "scale", "--plan", "web=60") == 3
    out = capsys.readouterr().out
    assert out.count("no suitable node") == 1
    assert "60 without a node" in out
    assert ".. and 10 more" in out
    assert "Note: mind the gap" in out


def test_the_plan_of_a_node(skepd: Skepd) -> None:
    n1 = objects.identifier("noden1")
    answer(skepd, f"/skep/v1/nodes/{n1}/plan", plan())
    assert skepd.run("node", "update", "--availability", "drain", "--plan", "n1") == 2
    (sent,) = skepd.sent("POST", f"/skep/v1/nodes/{n1}/plan")
    assert (sent.query, sent.body["Availability"]) == ({"version": "5"}, "drain")
    assert not skepd.sent("POST", f"/nodes/{n1}/update")


def test_what_if(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/what-if", plan("infeasible"))
    assert skepd.run("what-if", "lose", "n2", "self") == 3
    assert skepd.run("what-if", "add", "--label", "disk=ssd", "2x4cpu8g", "1.5cpu512m") == 3
    lost, added = skepd.sent("POST", "/skep/v1/what-if")
    assert lost.body == {"Lose": ["n2", objects.identifier("noden1")]}
    labels = {"disk": "ssd"}
    assert added.body == {
        "Add": [
            {"Count": 2, "NanoCPUs": 4 * 10**9, "MemoryBytes": 8 << 30, "Labels": labels},
            {"Count": 1, "NanoCPUs": 1_500_000_000, "MemoryBytes": 512 << 20, "Labels": labels},
        ]
    }
    capsys.readouterr()
    assert skepd.run("what-if", "add", "big") == 1
    assert "2x4cpu8g" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", "x4cpu8g", "4cpu", "8g", "2x4cpu8gg"])
def test_sizes_that_are_none(words: str) -> None:
    with pytest.raises(ValueError, match="2x4cpu8g"):
        what_if.addition(words)


def test_explain_shows_every_node_and_the_remedy(skepd: Skepd, capsys: Capsys) -> None:
    rules = [
        {"Rule": "memory", "Need": "4 GB memory", "Have": "1 GB free", "Remedy": ""},
        {"Rule": "odd", "Need": "luck", "Have": "", "Remedy": ""},
    ]
    found = {
        "Kind": "task", "ID": "t1", "Name": "web.1", "Summary": "no suitable node (..)",
        "WhyNot": "n1 does not take it",
        "Waits": [{"Subject": "web.1", "For": "its restart delay", "Until": objects.stamp(objects.NOW + 4)}],
        "Nodes": [
            {"ID": "n1", "Name": "n1", "Here": False, "Fits": False, "ServiceTasks": 0, "Tasks": 3, "Failing": rules},
            {"ID": "n2", "Name": "n2", "Here": True, "Fits": True, "ServiceTasks": 1, "Tasks": 1, "Failing": []},
            {"ID": "n3", "Name": "n3", "Here": False, "Fits": True, "ServiceTasks": 1, "Tasks": 1, "Failing": []},
        ],
        "Fix": "free 3 GB on n1",
    }  # fmt: skip
    answer(skepd, "/skep/v1/explain/task/web.1", found, method="GET")
    assert skepd.run("explain", "task", "web.1", "--why-not", "n1") == 0
    assert skepd.requests[0].query == {"why_not": "n1"}
    assert capsys.readouterr().out == (
        "web.1: no suitable node (..)\n"
        "\n"
        "n1 does not take it\n"
        "\n"
        "web.1 waits for its restart delay, 4 seconds from now\n"
        "\n"
        "NODE      OF SERVICE   TASKS     ANSWER\n"
        "n1        0            3         needs 4 GB memory: 1 GB free; needs luck\n"
        "n2        1            1         is here\n"
        "n3        1            1         takes it\n"
        "\n"
        "Nearest remedy: free 3 GB on n1\n"
    )
    assert skepd.run("explain", "--json", "task", "web.1") == 0
    assert json.loads(capsys.readouterr().out) == found
    assert skepd.run("explain", "node", "self") == 1, "the fake knows no such path"
    assert skepd.requests[-1].path == f"/skep/v1/explain/node/{objects.identifier('noden1')}"


def revision(number: int, image: str, *, tasks: int = 0, **more: Any) -> Json:
    spec = objects.spec()
    spec["TaskTemplate"]["ContainerSpec"]["Image"] = image
    return {
        "ID": f"r{number}", "Number": number, "CreatedAt": objects.stamp(objects.NOW - 60 * (10 - number)),
        "Spec": spec,
        "Current": False, "Previous": False, "Tasks": tasks, **more,
    }  # fmt: skip


def test_history(skepd: Skepd, capsys: Capsys) -> None:
    fields = [{"Path": f"A.F{number}", "Before": None, "After": number} for number in range(5)]
    found = [revision(2, "a:1"), revision(3, "a:2", Changes=fields[:1], Previous=True),
             revision(4, "a:3", Changes=fields, Current=True, tasks=3)]  # fmt: skip
    answer(skepd, "/skep/v1/services/web/revisions", found, method="GET")  # type: ignore[arg-type]
    assert skepd.run("service", "history", "web") == 0
    assert capsys.readouterr().out.splitlines() == [
        "REVISION              CREATED         IMAGE     TASKS     CHANGED",
        "4          current    6 minutes ago   a:3       3         "
        "F0: (none) -> 0; F1: (none) -> 1; F2: (none) -> 2; and 2 more",
        "3          previous   7 minutes ago   a:2       0         F0: (none) -> 0",
        "2                     8 minutes ago   a:1       0         (what was before is not kept)",
    ]
    assert skepd.run("service", "history", "--format", "{{.Number}} {{.Standing}}", "web") == 0
    assert capsys.readouterr().out.splitlines() == ["4 current", "3 previous", "2 "]
    answer(skepd, "/skep/v1/services/nobody/revisions", {"message": "not found"}, method="GET", status=404)
    assert skepd.run("service", "history", "nobody") == 1
    assert "skep service ls" in capsys.readouterr().err


def test_rollback_to_a_revision(skepd: Skepd) -> None:
    skepd.services = [objects.service()]
    answer(skepd, f"/skep/v1/services/{WEB}/rollback", {"Warnings": None})
    assert skepd.run("service", "rollback", "--detach", "--to", "3", "web") == 0
    (sent,) = skepd.sent("POST", f"/skep/v1/services/{WEB}/rollback")
    assert (sent.query, sent.body) == ({"version": "10", "to": "3"}, None)
    answer(skepd, f"/skep/v1/services/{WEB}/plan", plan("nothing"))
    assert skepd.run("service", "rollback", "--plan", "--to", "3", "web") == 0
    assert skepd.run("service", "update", "--plan", "--rollback", "web") == 0
    first, second = skepd.sent("POST", f"/skep/v1/services/{WEB}/plan")
    assert first.query == {"version": "10", "rollback": "previous", "to": "3"}
    assert second.query == {"version": "10", "rollback": "previous"}
