"""Whole commands against a fake skepd: what they send, print, and return."""

import json
import pathlib
from typing import Any

import pytest

from skep.cli import service_logs
from tests.skep.cli import fake_skepd, objects

Skepd = fake_skepd.FakeSkepd
Capsys = pytest.CaptureFixture[str]


def test_create_waits_until_all_run_and_stay(skepd: Skepd, capsys: Capsys) -> None:
    def look(number: int) -> None:
        states = ["pending", "starting", "running"]
        skepd.tasks = [objects.task(slot, states[min(number // 2, 2)], service_name="new") for slot in (1, 2)]

    skepd.on_look = look
    assert skepd.run("service", "create", "--name", "new", "--replicas", "2", "img") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        objects.identifier("svcnew"),
        "new: 0/2 running",
        "new: 2/2 running, verifying that tasks are stable",
        "new: converged",
    ]
    assert skepd.clock.now() - objects.NOW >= 5.0
    assert skepd.sent("GET", "/tasks")[0].filters == {
        "service": {objects.identifier("svcnew"): True},
        "_up-to-date": {"true": True},
    }


def test_create_detached_asks_nothing_more(skepd: Skepd) -> None:
    assert skepd.run("service", "create", "-d", "img") == 0
    assert [each.path for each in skepd.requests] == ["/services/create"]
    assert skepd.run("service", "create", "--detach=true", "img") == 0
    assert len(skepd.requests) == 2


def test_create_says_why_tasks_wait_and_gives_up_in_time(skepd: Skepd, capsys: Capsys) -> None:
    skepd.tasks = [objects.task(1, "pending", node="", error="no suitable node (1 drained)", service_name="new")]
    assert skepd.run("service", "create", "--name", "new", "--timeout", "3s", "img") == 1
    out, err = capsys.readouterr()
    assert "new: 0/1 running (no suitable node (1 drained))" in out
    assert "--timeout" in err
    assert 3.0 <= skepd.clock.now() - objects.NOW < 4.0


def test_create_whose_answer_was_lost_finds_its_service(skepd: Skepd, capsys: Capsys) -> None:
    answers: list[fake_skepd.Answer] = [
        (503, {"message": "the leader has changed"}),
        (409, {"message": "already exists"}),
    ]
    skepd.routes["POST", "/services/create"] = lambda request: answers.pop(0)
    skepd.services = [objects.service("web")]
    assert skepd.run("service", "create", "-d", "--name", "web", "nginx:1.27") == 0
    assert objects.identifier("svcweb") in capsys.readouterr().out


def test_create_of_a_name_that_is_taken_fails(skepd: Skepd, capsys: Capsys) -> None:
    skepd.routes["POST", "/services/create"] = lambda request: (409, {"message": "service web already exists"})
    assert skepd.run("service", "create", "-d", "--name", "web", "nginx:1.27") == 1
    assert capsys.readouterr().err == "Error: service web already exists\n"


def test_the_display_on_a_terminal_shows_every_slot(skepd: Skepd, capsys: Capsys) -> None:
    def look(number: int) -> None:
        skepd.tasks = [
            objects.task(1),
            objects.task(2, "running" if number > 2 else "pending", error="" if number > 2 else "no room"),
        ]

    skepd.on_look = look
    skepd.services = [objects.service(given=objects.spec(replicas=2))]
    assert skepd.run("service", "scale", "web=2", terminal=True) == 0
    out = capsys.readouterr().out
    for piece in ("web.1", "web.2", "no room", "n1", "web: converged"):
        assert piece in out


def test_the_display_of_many_slots_counts(skepd: Skepd, capsys: Capsys) -> None:
    skepd.tasks = [objects.task(slot) for slot in range(1, 31)]
    skepd.services = [objects.service(given=objects.spec(replicas=30))]
    assert skepd.run("service", "update", "--force", "web", terminal=True) == 0
    out = capsys.readouterr().out
    assert "30 running" in out
    assert "web.30" not in out


def test_ctrl_c_leaves_the_change_going(skepd: Skepd, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(skepd.clock, "pause", interrupt)
    skepd.services = [objects.service()]
    assert skepd.run("service", "scale", "web=3") == 130
    assert "goes on in the background" in capsys.readouterr().err


def test_update_that_pauses_is_a_failure_and_names_what_the_task_died_of(skepd: Skepd, capsys: Capsys) -> None:
    dead = objects.task(2, "failed", error="task: non-zero exit (7)", desired="shutdown")

    def look(number: int) -> None:
        if number > 1:
            message = f"update paused due to failure or early termination of task {dead['ID']}"
            skepd.services[0]["UpdateStatus"] = {"State": "paused", "Message": message}

    skepd.on_look = look
    skepd.services = [objects.service()]
    skepd.routes["GET", f"/tasks/{dead['ID']}"] = lambda request: (200, dead)
    assert skepd.run("service", "update", "--image", "bad", "web") == 1
    assert "non-zero exit (7)" in capsys.readouterr().err


def test_update_decides_again_when_somebody_was_faster(skepd: Skepd) -> None:
    skepd.services = [objects.service(given=objects.spec(Labels={}))]

    def look(number: int) -> None:
        if number == 2:  # between our first write and the second reading
            skepd.services[0]["Spec"]["Labels"] = {"theirs": "1"}

    def race(request: fake_skepd.Request) -> fake_skepd.Answer:
        del skepd.routes["POST", f"/services/{objects.identifier('svcweb')}/update"]
        return 500, {"message": "rpc error: code = Unknown desc = update out of sequence"}

    skepd.on_look = look
    skepd.routes["POST", f"/services/{objects.identifier('svcweb')}/update"] = race
    assert skepd.run("service", "update", "-d", "--label-add", "ours=1", "web") == 0
    assert skepd.services[0]["Spec"]["Labels"] == {"theirs": "1", "ours": "1"}


def test_rollback_stands_alone(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service()]
    assert skepd.run("service", "update", "--rollback", "--image", "x", "web") == 1
    assert "--rollback" in capsys.readouterr().err
    assert not skepd.requests
    assert skepd.run("service", "rollback", "-d", "web") == 0
    assert skepd.requests[-1].query == {"version": "10", "rollback": "previous"}


def test_scale_many_and_report_each(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service("web"), objects.service("all", objects.spec("all", mode={"Global": {}}))]
    assert skepd.run("service", "scale", "-d", "web=7", "all=2", "none=1") == 1
    out, err = capsys.readouterr()
    assert "web scaled to 7" in out
    assert "all: service all is global" in err
    assert "none: no such service" in err
    assert skepd.services[0]["Spec"]["Mode"] == {"Replicated": {"Replicas": 7}}
    for wrong in ("web", "web=-1", "web=x", "=3"):
        assert skepd.run("service", "scale", wrong) == 1
        assert wrong in capsys.readouterr().err


def test_rm_removes_what_is_there_and_names_what_is_not(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service("web")]
    assert skepd.run("service", "remove", "web", "nope") == 1
    out, err = capsys.readouterr()
    assert (out, "no such service: nope" in err) == ("web\n", True)
    assert not skepd.services


def test_service_ls_in_all_forms(skepd: Skepd, capsys: Capsys) -> None:
    ports = {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]}
    skepd.services = [objects.service("web", ServiceStatus={"RunningTasks": 2, "DesiredTasks": 3}, Endpoint=ports)]

    def printed(*flags: str) -> str:
        assert skepd.run("service", "ls", *flags) == 0
        return capsys.readouterr().out

    assert printed().splitlines() == [
        "ID             NAME      MODE         REPLICAS   IMAGE        PORTS",
        "svcweb000000   web       replicated   2/3        nginx:1.27   *:8080->80/tcp",
    ]
    assert printed("-q") == "svcweb000000\n"
    assert printed("--format", r"{{.Name}}\t{{.Replicas}}") == "web\t2/3\n"
    assert printed("--format", "table {{.Name}} {{.ID}}").splitlines() == ["NAME ID", "web svcweb000000"]
    assert json.loads(printed("--format", "json"))["Image"] == "nginx:1.27"
    printed("--filter", "name=we", "--filter", "name=ap", "-f", "label=a=b")
    assert skepd.requests[-1].filters == {"name": {"we": True, "ap": True}, "label": {"a=b": True}}
    assert skepd.requests[-1].query["status"] == "true"
    assert skepd.run("service", "ls", "--filter", "name") == 1


def test_service_ps_draws_history(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service("web")]
    skepd.tasks = [
        objects.task(2),
        objects.task(1, "failed", desired="shutdown", error="a very long explanation of what went wrong", age_s=60),
        objects.task(1, attempt=2, age_s=5),
    ]
    assert skepd.run("service", "ps", "web") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["web.1", "\\_", "web.2"]
    assert "Running 5 seconds ago" in lines[1]
    assert "Failed about a minute ago" in lines[2]
    assert '"a very long explanation of wh…"' in lines[2]
    assert skepd.run("service", "ps", "--no-trunc", "--format", "{{.Error}}|{{.Image}}", "web") == 0
    assert '"a very long explanation of what went wrong"|nginx:1.27@sha256:abc' in capsys.readouterr().out
    assert skepd.run("service", "ps", "nope") == 1


def test_service_inspect_in_all_forms(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service("web")]
    assert skepd.run("service", "inspect", "web") == 0
    assert json.loads(capsys.readouterr().out)[0]["Spec"]["Name"] == "web"
    assert skepd.requests[-1].query == {"insertDefaults": "true"}
    assert skepd.run("service", "inspect", "--pretty", "web") == 0
    assert "Replicas:          3" in capsys.readouterr().out
    assert skepd.run("service", "inspect", "--format", "{{.Spec.Mode.Replicated.Replicas}}", "web", "nope") == 1
    out, err = capsys.readouterr()
    assert (out, "no such service: nope" in err) == ("3\n", True)


def frame(line: str, *, stream: int = 1, slot: int = 1) -> bytes:
    details = ",".join(f"com.docker.swarm.{kind}.id={value}" for kind, value in (
        ("node", objects.identifier("noden1")), ("service", objects.identifier("svcweb")), ("task",
        objects.task(slot)["ID"])))  # fmt: skip
    payload = f"2026-01-02T03:04:05.000000001Z {details} {line}\n".encode()
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def test_logs_say_who_said_it(skepd: Skepd, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    skepd.services, skepd.tasks = [objects.service("web")], [objects.task(1), objects.task(2)]
    path = f"/services/{objects.identifier('svcweb')}/logs"
    skepd.routes["GET", path] = lambda request: (200, frame("hello") + frame("oops", stream=2, slot=2))
    assert skepd.run("service", "logs", "--tail", "5", "--since", "10m", "web") == 0
    out, err = capfdbinary.readouterr()
    assert out == b"web.1.t1x1web00000@n1    | hello\n"
    assert err == b"web.2.t2x1web00000@n1    | oops\n"
    query = skepd.sent("GET", path)[0].query
    assert (query["tail"], float(query["since"])) == ("5", objects.NOW - 600)


def test_logs_in_pieces() -> None:
    whole = frame("one") + frame("two", stream=2)
    for cut in range(len(whole)):
        found = list(service_logs.frames(iter([whole[:cut], whole[cut:]])))
        assert [stream for stream, _ in found] == [1, 2]


def test_logs_of_a_terminal_need_raw(skepd: Skepd, capsys: Capsys) -> None:
    spec = objects.spec()
    spec["TaskTemplate"]["ContainerSpec"]["TTY"] = True
    skepd.services = [objects.service(given=spec)]
    assert skepd.run("service", "logs", "web") == 1
    assert "--raw" in capsys.readouterr().err
    for wrong in (["--since", "yesterday"], ["--tail", "-3"]):
        assert skepd.run("service", "logs", *wrong, "web") == 1
    assert skepd.run("service", "logs", "nope") == 1


def test_node_ls_marks_the_one_that_answers(skepd: Skepd, capsys: Capsys) -> None:
    skepd.nodes = [objects.node("n2", state="down", availability="drain"), objects.node("n1", leader=True)]
    assert skepd.run("node", "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [objects.identifier("noden1"), "*", "n1", "Ready", "Active", "Leader", "0.1.0"]
    assert lines[2].split()[1:] == ["n2", "Down", "Drain", "0.1.0"]
    assert skepd.run("node", "ls", "--format", "{{.Hostname}} {{.Self}}") == 0
    assert capsys.readouterr().out == "n1 true\nn2 false\n"


def test_node_update_keeps_what_it_does_not_name(skepd: Skepd, capsys: Capsys) -> None:
    skepd.nodes[0]["Spec"]["Labels"] = {"old": "1"}
    assert skepd.run("node", "update", "--availability", "drain", "--label-add", "disk=ssd", "n1") == 0
    assert skepd.nodes[0]["Spec"] == {"Labels": {"old": "1", "disk": "ssd"}, "Role": "manager", "Availability": "drain"}
    assert skepd.run("node", "activate", "self") == 0
    assert skepd.nodes[0]["Spec"]["Availability"] == "active"
    assert skepd.run("node", "update", "--label-rm", "nope", "n1") == 1
    assert skepd.run("node", "update", "--availability", "sleepy", "n1") == 1
    assert skepd.run("node", "activate", "n9") == 1
    assert "no such node: n9" in capsys.readouterr().err


def test_node_ps_is_about_this_machine_by_default(skepd: Skepd, capsys: Capsys) -> None:
    skepd.tasks, skepd.services = [objects.task(1)], [objects.service("web")]
    assert skepd.run("node", "ps") == 0
    assert "web.1" in capsys.readouterr().out
    assert skepd.sent("GET", "/tasks")[0].filters == {"node": {objects.identifier("noden1"): True}}
    assert skepd.run("node", "inspect", "--pretty", "self") == 0
    assert "Hostname:           n1" in capsys.readouterr().out


SWARM: dict[str, Any] = {
    "Version": {"Index": 3},
    "Spec": {"Name": "default"},
    "JoinTokens": {"Worker": "W-1", "Manager": "M-1"},
}


def test_init_prints_how_to_join(skepd: Skepd, capsys: Capsys) -> None:
    skepd.routes["POST", "/swarm/init"] = lambda request: (200, objects.identifier("noden1"))
    skepd.routes["GET", "/swarm"] = lambda request: (200, SWARM)
    assert (
        skepd.run("init", "--advertise-addr", "10.0.0.1", "--heartbeat-period", "1s", "--task-history-limit", "2") == 0
    )
    assert "skep join --token W-1 10.0.0.1:2378" in capsys.readouterr().out
    sent = skepd.sent("POST", "/swarm/init")[0].body
    assert (sent["AdvertiseAddr"], sent["Availability"], sent["ForceNewCluster"]) == ("10.0.0.1", "active", False)
    assert sent["Spec"] == {"Dispatcher": {"HeartbeatPeriod": 10**9}, "Orchestration": {"TaskHistoryRetentionLimit": 2}}


def test_tokens_are_shown_and_rotated(skepd: Skepd, capsys: Capsys) -> None:
    skepd.routes["GET", "/swarm"] = lambda request: (200, SWARM)
    skepd.routes["POST", "/swarm/update"] = lambda request: (200, None)
    assert skepd.run("token", "-q", "manager") == 0
    assert capsys.readouterr().out == "M-1\n"
    assert skepd.run("swarm", "join-token", "--rotate", "worker") == 0
    assert skepd.sent("POST", "/swarm/update")[0].query == {"version": "3", "rotateWorkerToken": "true"}
    assert skepd.run("token", "king") == 1


def test_join_takes_the_token_from_three_places(
    skepd: Skepd, capsys: Capsys, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skepd.routes["POST", "/swarm/join"] = lambda request: (200, None)
    file = tmp_path / "token"
    file.write_text("from-file\n")
    monkeypatch.setenv("SKEP_JOIN_TOKEN", "from-variable")
    for flags, token in (
        (["--token", "given"], "given"),
        (["--token-file", str(file)], "from-file"),
        ([], "from-variable"),
    ):
        assert skepd.run("join", *flags, "10.0.0.1:2378", "10.0.0.2:2378") == 0
        sent = skepd.sent("POST", "/swarm/join")[-1].body
        assert (sent["JoinToken"], sent["RemoteAddrs"]) == (token, ["10.0.0.1:2378", "10.0.0.2:2378"])
    assert "joined the cluster as a manager" in capsys.readouterr().out
    monkeypatch.delenv("SKEP_JOIN_TOKEN")
    assert skepd.run("join", "10.0.0.1:2378") == 1
    assert skepd.run("join", "--token", "a", "--token-file", str(file), "10.0.0.1:2378") == 1
    assert skepd.run("join", "--token", "secret-token") == 1
    assert "secret-token" not in capsys.readouterr().err


def test_leave_info_and_version(skepd: Skepd, capsys: Capsys) -> None:
    skepd.routes["POST", "/swarm/leave"] = lambda request: (200, None)
    skepd.routes["GET", "/version"] = lambda request: (200, {"Version": "0.1.0", "ApiVersion": "1.41"})
    assert skepd.run("leave", "--force") == 0
    assert skepd.sent("POST", "/swarm/leave")[0].query == {"force": "1"}
    assert skepd.run("info", "--format", "{{.Swarm.LocalNodeState}}") == 0
    assert skepd.run("info") == 0
    assert skepd.run("version") == 0
    out = capsys.readouterr().out
    assert "active" in out
    assert "API version: 1.41" in out


def test_task_inspect(skepd: Skepd, capsys: Capsys) -> None:
    skepd.tasks = [objects.task(1)]
    assert skepd.run("task", "inspect", "--format", "{{.Status.State}}", objects.task(1)["ID"]) == 0
    assert capsys.readouterr().out == "running\n"
    assert skepd.run("task", "inspect", "nope") == 1
