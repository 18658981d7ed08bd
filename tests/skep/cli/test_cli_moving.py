"""`node drain` and `rebalance`: what is sent, printed and returned."""

import json
from typing import Any

import pytest

from tests.skep.cli import fake_skepd, objects

Skepd = fake_skepd.FakeSkepd
Capsys = pytest.CaptureFixture[str]
Json = dict[str, Any]
MINUTE_NS = 60 * 10**9
GAP = {
    "TaskID": "t1", "Name": "db.1", "NodeID": "n1", "NodeName": "n1", "Why": "must never run twice",
    "Expected": "up to 10 s to stop", "ExpectedSeconds": 10.0,
}  # fmt: skip
PLAN: Json = {
    "Verdict": "infeasible", "AtRest": True, "Complete": True, "DurationSeconds": 5.0, "Notes": [], "Services": [],
    "Fields": [{"Node": "n1", "Path": "Availability", "Before": "active", "After": "drain"}], "Nodes": [],
    "Gaps": [GAP],
}  # fmt: skip


def answer(skepd: Skepd, path: str, *bodies: Any, method: str = "POST", status: int = 200) -> None:
    """Answers with the bodies one after another, the last one again and again."""
    left = list(bodies)
    skepd.routes[method, path] = lambda request: (status, left.pop(0) if len(left) > 1 else left[0])


def node(name: str, *left: str, draining: bool = True, homeless: list[Json] | None = None) -> Json:
    return {
        "ID": name, "Name": name, "Draining": draining, "Homeless": homeless or [],
        "Left": [{"TaskID": task, "Name": task, "Why": "waits for its turn"} for task in left],
    }  # fmt: skip


def test_what_has_a_gap_is_told_first(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/drain", {"Gaps": [GAP]})
    assert skepd.run("node", "drain", "--deadline", "5m", "n1", "self") == 0
    (sent,) = skepd.sent("POST", "/skep/v1/drain")
    assert sent.body == {"Nodes": ["n1", objects.identifier("noden1")], "Deadline": 5 * MINUTE_NS}
    assert capsys.readouterr().out == (
        "Not without a gap:\n"
        "  TASK      NODE      EXPECTED GAP         WHY\n"
        "  db.1      n1        up to 10 s to stop   must never run twice\n"
        "\n"
        "Node n1 is being drained.\n"
        "Node self is being drained.\n"
        "Look with 'skep node drain --wait n1 self', stop with --cancel.\n"
    )


def test_waiting_tells_what_is_left(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/drain", {"Gaps": []})
    answer(skepd, "/skep/v1/drain", [node("n1", "web.1", "web.2")], [node("n1", "web.1")], [node("n1")], method="GET")
    assert skepd.run("node", "drain", "--wait", "n1") == 0
    assert skepd.sent("GET", "/skep/v1/drain")[0].query == {"node": "n1"}
    assert capsys.readouterr().out.splitlines() == [
        "Node n1 is being drained.",
        "n1: 2 tasks left: web.1 waits for its turn; web.2 waits for its turn",
        "n1: 1 task left: web.1 waits for its turn",
        "n1: empty",
    ]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (node("n1", homeless=[{"TaskID": "t", "Name": "web.1", "Why": "no suitable node"}]), "web.1: no suitable node"),
        (node("n1", draining=False), "take tasks again"),
    ],
)
def test_a_drain_that_did_not_come_about_fails(skepd: Skepd, capsys: Capsys, found: Json, words: str) -> None:
    answer(skepd, "/skep/v1/drain", {"Gaps": []})
    answer(skepd, "/skep/v1/drain", [found], method="GET")
    assert skepd.run("node", "drain", "--wait", "n1") == 1
    assert words in capsys.readouterr().err


def test_waiting_has_an_end(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/drain", {"Gaps": []})
    answer(skepd, "/skep/v1/drain", [node("n1", "web.1")], method="GET")
    assert skepd.run("node", "drain", "--wait", "--timeout", "3s", "n1") == 1
    assert "the drain goes on" in capsys.readouterr().err


def test_the_plan_of_a_drain(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/drain/plan", PLAN)
    assert skepd.run("node", "drain", "--plan", "n1", "n2") == 3
    out = capsys.readouterr().out
    assert out.startswith("Not without a gap:\n")
    assert "n1 Availability   active    drain" in out
    assert skepd.run("node", "drain", "--plan", "--json", "n1") == 3
    assert json.loads(capsys.readouterr().out) == PLAN
    assert not skepd.sent("POST", "/skep/v1/drain")


def test_the_way_back(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/drain/cancel", None)
    assert skepd.run("node", "drain", "--cancel", "n1") == 0
    assert capsys.readouterr().out == "Node n1 takes tasks again.\n"


@pytest.mark.parametrize(
    "flags", [("--cancel", "--wait"), ("--cancel", "--plan"), ("--json",), ("--timeout", "1s"), ("--deadline", "soon")]
)
def test_flags_that_do_not_go_together(skepd: Skepd, flags: tuple[str, ...]) -> None:
    assert skepd.run("node", "drain", *flags, "n1") == 1
    assert skepd.requests == []


def test_a_node_that_is_none(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/drain", {"message": "node n9 not found"}, status=404)
    assert skepd.run("node", "drain", "n9") == 1
    assert "'skep node ls' shows them" in capsys.readouterr().err


# ------------------------------------------------------------------ rebalance


def standing(moved: int, message: str, **more: Any) -> Json:
    return {
        "Auto": False, "Active": True, "Begun": moved, "Moved": moved, "UnderWay": 0, "Unhealthy": False,
        "Message": message, "RequestedAt": objects.stamp(objects.NOW), **more,
    }  # fmt: skip


def test_rebalancing_is_waited_for(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/rebalance", standing(0, "looking"))
    over = standing(2, "the load is even now", Active=False)
    answer(skepd, "/skep/v1/rebalance", standing(1, "1 task on the move"), over, method="GET")
    assert skepd.run("rebalance", "--moves", "5", "--at-a-time", "1", "--min-benefit", "3", "--min-age", "2m") == 0
    assert skepd.requests[0].body == {"Moves": 5, "AtATime": 1, "MinBenefit": 3, "MinAge": 2 * MINUTE_NS}
    assert capsys.readouterr().out == "1 task moved; 1 task on the move\n2 tasks moved; the load is even now\n"


def test_an_unhealthy_move_is_a_failure(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/rebalance", standing(0, "looking"))
    over = standing(1, "stopped: web.2 on n3 ended", Active=False, Unhealthy=True)
    answer(skepd, "/skep/v1/rebalance", over, method="GET")
    assert skepd.run("rebalance") == 1
    assert "stopped: web.2 on n3 ended" in capsys.readouterr().err


def test_the_other_ways_of_rebalance(skepd: Skepd, capsys: Capsys) -> None:
    answer(skepd, "/skep/v1/rebalance/plan", {**PLAN, "Verdict": "nothing", "Gaps": [], "Fields": []})
    answer(skepd, "/skep/v1/rebalance/policy", None)
    answer(skepd, "/skep/v1/rebalance/cancel", None)
    answer(skepd, "/skep/v1/rebalance", standing(0, "looking"))
    answer(skepd, "/skep/v1/rebalance", standing(3, "cancelled", Active=False, Auto=True), method="GET")
    assert skepd.run("rebalance", "--plan", "--min-age", "0") == 0
    assert skepd.requests[-1].body == {"MinAge": 0}
    assert skepd.run("rebalance", "--auto", "on") == 0
    assert skepd.requests[-1].body == {"Auto": True}
    assert skepd.run("rebalance", "--cancel") == 0
    assert skepd.run("rebalance", "--detach") == 0
    capsys.readouterr()
    assert skepd.run("rebalance", "--status") == 0
    assert capsys.readouterr().out == (
        "Over: 3 tasks moved; cancelled.\nPolicy: nodes that join or return get their share by themselves.\n"
    )
    assert skepd.run("rebalance", "--status", "--cancel") == 1
