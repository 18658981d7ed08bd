"""Flags become specifications, and changes to them. Driven through the command, judged by what is sent."""

import pathlib
from typing import Any

import pytest

from skep import errors
from skep.cli import changes, parts, specs
from tests.skep.cli import fake_skepd, objects

Json = dict[str, Any]


def created(skepd: fake_skepd.FakeSkepd, *flags: str) -> Json:
    assert skepd.run("service", "create", "--detach", *flags) == 0
    return dict(skepd.sent("POST", "/services/create")[-1].body)


def updated(skepd: fake_skepd.FakeSkepd, spec: Json, *flags: str) -> Json:
    skepd.services = [objects.service(given=spec)]
    assert skepd.run("service", "update", "--detach", *flags, "web") == 0
    return dict(skepd.services[0]["Spec"])


def test_a_bare_service_sends_nothing_it_was_not_told(skepd: fake_skepd.FakeSkepd) -> None:
    assert created(skepd, "nginx") == {
        "Name": "",
        "Labels": {},
        "TaskTemplate": {"ContainerSpec": {"Image": "nginx", "Args": []}},
        "Mode": {"Replicated": {"Replicas": 1}},
    }


def test_everything_after_the_image_is_the_command(skepd: fake_skepd.FakeSkepd) -> None:
    spec = created(skepd, "--name", "web", "nginx", "app", "--name", "other", "-e", "--detach=false")
    assert spec["Name"] == "web"
    assert spec["TaskTemplate"]["ContainerSpec"]["Args"] == ["app", "--name", "other", "-e", "--detach=false"]


def test_dockers_flags_become_dockers_json(skepd: fake_skepd.FakeSkepd) -> None:
    spec = created(
        skepd, "--name", "api", "--replicas", "2", "-e", "A=1", "--env", "B=x=y", "-l", "tier=web",
        "--container-label", "c=d",
        "-p", "8080:80", "--publish", "mode=host,target=53,published=5353,protocol=udp", "--constraint",
        "node.role==worker",
        "--placement-pref", "spread=node.labels.zone", "--replicas-max-per-node", "1", "--limit-cpu", "0.5",
        "--limit-memory", "512m", "--limit-pids", "50", "--reserve-cpu", "0.25", "--reserve-memory", "256m",
        "--generic-resource", "gpu=2", "--restart-condition", "on-failure", "--restart-max-attempts", "3",
        "--update-parallelism", "0", "--update-order", "start-first", "--update-failure-action", "rollback",
        "--rollback-monitor", "1s", "--stop-grace-period", "1m30s", "--stop-signal", "SIGINT", "-w", "/app",
        "-u", "1000:1000",
        "--group", "video", "--hostname", "h", "--entrypoint", "sh -c 'a b'", "--read-only", "--init", "-t",
        "--host", "db:10.0.0.7", "--dns", "1.1.1.1", "--dns-search", "local", "--sysctl", "net.x=1",
        "--cap-add", "net_admin",
        "--cap-drop", "ALL", "--ulimit", "nofile=10:20", "--health-cmd", "true", "--health-retries", "3",
        "--log-driver", "json-file", "--log-opt", "max-size=1m", "--network", "name=back,alias=db",
        "--mount", "type=bind,source=/a,target=/b,readonly", "--endpoint-mode", "dnsrr", "img:1", "run",
    )  # fmt: skip
    task = spec["TaskTemplate"]
    container = task["ContainerSpec"]
    assert spec["Mode"] == {"Replicated": {"Replicas": 2}}
    assert (spec["Labels"], container["Labels"]) == ({"tier": "web"}, {"c": "d"})
    assert container["Env"] == ["A=1", "B=x=y"]
    assert spec["EndpointSpec"] == {
        "Mode": "dnsrr",
        "Ports": [
            {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
            {"Protocol": "udp", "TargetPort": 53, "PublishedPort": 5353, "PublishMode": "host"},
        ],
    }
    assert task["Placement"] == {
        "Constraints": ["node.role==worker"],
        "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
        "MaxReplicas": 1,
    }
    assert task["Resources"] == {
        "Limits": {"NanoCPUs": 5 * 10**8, "MemoryBytes": 512 << 20, "Pids": 50},
        "Reservations": {
            "NanoCPUs": 25 * 10**7,
            "MemoryBytes": 256 << 20,
            "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}],
        },
    }
    assert task["RestartPolicy"] == {"Condition": "on-failure", "Delay": 5 * 10**9, "MaxAttempts": 3, "Window": 0}
    assert spec["UpdateConfig"] == {
        "Parallelism": 0, "Delay": 0, "FailureAction": "rollback", "Monitor": 5 * 10**9, "MaxFailureRatio": 0,
        "Order": "start-first",
    }  # fmt: skip
    assert spec["RollbackConfig"]["Monitor"] == 10**9
    assert container["StopGracePeriod"] == 90 * 10**9
    assert (container["Command"], container["Args"]) == (["sh", "-c", "a b"], ["run"])
    assert (container["CapabilityAdd"], container["CapabilityDrop"]) == (["CAP_NET_ADMIN"], ["ALL"])
    assert container["Hosts"] == ["10.0.0.7 db"]
    assert container["DNSConfig"] == {"Nameservers": ["1.1.1.1"], "Search": ["local"]}
    assert container["Ulimits"] == [{"Name": "nofile", "Soft": 10, "Hard": 20}]
    assert container["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Retries": 3}
    assert container["Mounts"] == [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}]
    assert (container["ReadOnly"], container["Init"], container["TTY"]) == (True, True, True)
    assert task["LogDriver"] == {"Name": "json-file", "Options": {"max-size": "1m"}}
    assert task["Networks"] == [{"Target": "back", "Aliases": ["db"]}]


def test_environment_from_files_and_from_here(
    skepd: fake_skepd.FakeSkepd, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.delenv("ABSENT", raising=False)
    file = tmp_path / "env"
    file.write_text("# a remark\n\nA=1\nB=two words\nINHERITED\nABSENT\n")
    spec = created(
        skepd, "--env-file", str(file), "-e", "A=9", "-e", "INHERITED", "-e", "ABSENT", "-e", "EMPTY=", "img"
    )
    assert spec["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=9", "B=two words", "INHERITED=yes", "EMPTY="]


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (["--mode", "global"], {"Global": {}}),
        (["--mode", "global-job"], {"GlobalJob": {}}),
        (["--mode", "replicated-job", "--replicas", "4"], {"ReplicatedJob": {"MaxConcurrent": 4,
        "TotalCompletions": 4}}),
        (["--mode", "replicated-job", "--replicas", "4", "--max-concurrent", "2"],
         {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 4}}),
    ],
)  # fmt: skip
def test_modes(skepd: fake_skepd.FakeSkepd, flags: list[str], mode: Json) -> None:
    assert created(skepd, *flags, "img")["Mode"] == mode


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--replicas", "-1"], "--replicas"),
        (["--replicas", "many"], "--replicas"),
        (["--constraint", "node.role=worker"], "--constraint"),
        (["--publish", "80:80:80"], "--publish"),
        (["--publish", "99999:80"], "--publish"),
        (["--publish", "8000-8002:80-81"], "--publish"),
        (["--publish", "mode=sideways,target=80"], "--publish"),
        (["--publish", "mode=host"], "target"),
        (["--mount", "type=bind,target=/x"], "source"),
        (["--mount", "type=tmpfs,source=/x,target=/x"], "tmpfs"),
        (["--mount", "target=relative"], "absolute"),
        (["--mount", "type=bind,source=/a,target=/b,volume-nocopy"], "volume"),
        (["--update-delay", "10"], "--update-delay"),
        (["--limit-memory", "lots"], "--limit-memory"),
        (["--mode", "global", "--replicas", "3"], "--replicas"),
        (["--mode", "replicated-job", "--update-delay", "1s"], "jobs"),
        (["--no-healthcheck", "--health-cmd", "x"], "--no-healthcheck"),
        (["--ulimit", "nofile"], "--ulimit"),
        (["--placement-pref", "binpack=x"], "--placement-pref"),
        (["--env", "=x"], "--env"),
        (["--env-file", "/nonexistent/file"], "--env-file"),
        (["--bogus"], "--bogus"),
        (["--detach=perhaps"], "--detach"),
        (["--mode", "weird"], "--mode"),
        (["--update-max-failure-ratio", "2"], "--update-max-failure-ratio"),
        (["--log-opt", "a=b"], "--log-driver"),
    ],
)
def test_bad_flags_are_named_and_reach_nobody(
    skepd: fake_skepd.FakeSkepd, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert skepd.run("service", "create", *flags, "img") == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert said in error
    assert not skepd.requests


BASE = objects.spec(Labels={"keep": "1", "drop": "2"}) | {
    "TaskTemplate": {
        "ContainerSpec": {
            "Image": "nginx:1", "Env": ["A=1", "B=2"], "Init": True, "Hosts": ["10.0.0.1 db"],
            "Mounts": [{"Type": "bind", "Source": "/a", "Target": "/data"}], "CapabilityAdd": ["CAP_NET_ADMIN"],
            "DNSConfig": {"Nameservers": ["1.1.1.1"]},
        },
        "Placement": {"Constraints": ["node.role == worker"]},
        "ForceUpdate": 4,
        "Unknown": {"kept": True},
    },
    "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080,
    "PublishMode": "ingress"}]},
}  # fmt: skip


def test_an_update_changes_only_what_it_names(skepd: fake_skepd.FakeSkepd) -> None:
    spec = updated(skepd, BASE, "--image", "nginx:2")
    expected = {**BASE["TaskTemplate"], "ContainerSpec": {**BASE["TaskTemplate"]["ContainerSpec"], "Image": "nginx:2"}}
    assert spec == {**BASE, "TaskTemplate": expected}
    assert updated(skepd, BASE) == BASE


def test_adding_and_removing(skepd: fake_skepd.FakeSkepd) -> None:
    spec = updated(
        skepd, BASE, "--env-add", "B=3", "--env-add", "C=4", "--env-rm", "A", "--label-rm", "drop",
        "--label-add", "new=1",
        "--publish-rm", "80", "--publish-add", "8081:81", "--mount-add", "type=tmpfs,target=/tmp",
        "--mount-rm", "/data",
        "--constraint-rm", "node.role==worker", "--constraint-add", "node.id!=x", "--host-rm", "db",
        "--dns-add", "8.8.8.8",
        "--cap-drop", "NET_ADMIN", "--init=false", "--args", "a 'b c'", "--replicas", "9",
    )  # fmt: skip
    task = spec["TaskTemplate"]
    container = task["ContainerSpec"]
    assert container["Env"] == ["B=3", "C=4"]
    assert spec["Labels"] == {"keep": "1", "new": "1"}
    assert [port["PublishedPort"] for port in spec["EndpointSpec"]["Ports"]] == [8081]
    assert container["Mounts"] == [{"Type": "tmpfs", "Target": "/tmp"}]
    assert task["Placement"]["Constraints"] == ["node.id!=x"]
    assert "Hosts" not in container
    assert container["DNSConfig"] == {"Nameservers": ["1.1.1.1", "8.8.8.8"]}
    assert ("CapabilityAdd" in container, container["CapabilityDrop"]) == (False, ["CAP_NET_ADMIN"])
    assert container["Init"] is False
    assert container["Args"] == ["a", "b c"]
    assert spec["Mode"] == {"Replicated": {"Replicas": 9}}
    assert task["Unknown"] == {"kept": True}


def test_force_counts_up(skepd: fake_skepd.FakeSkepd) -> None:
    assert updated(skepd, BASE, "--force")["TaskTemplate"]["ForceUpdate"] == 5


def test_networks_are_found_by_name_and_by_id(skepd: fake_skepd.FakeSkepd) -> None:
    skepd.routes["GET", "/networks/back"] = lambda request: (200, {"Id": "net1"})
    skepd.routes["GET", "/networks/front"] = lambda request: (200, {"Id": "net2"})
    base = objects.spec()
    base["TaskTemplate"]["Networks"] = [{"Target": "net1"}]
    spec = updated(skepd, base, "--network-rm", "back", "--network-add", "front")
    assert spec["TaskTemplate"]["Networks"] == [{"Target": "net2"}]


def test_secrets_are_resolved_to_ids(skepd: fake_skepd.FakeSkepd, capsys: pytest.CaptureFixture[str]) -> None:
    skepd.routes["GET", "/secrets"] = lambda request: (200, [{"ID": "sec1", "Spec": {"Name": "key"}}])
    spec = created(skepd, "--secret", "source=key,target=k.pem,mode=0400", "img")
    expected = {
        "SecretID": "sec1",
        "SecretName": "key",
        "File": {"Name": "k.pem", "UID": "0", "GID": "0", "Mode": 0o400},
    }
    assert spec["TaskTemplate"]["ContainerSpec"]["Secrets"] == [expected]
    assert skepd.run("service", "create", "--secret", "nope", "img") == 1
    assert "secret not found: nope" in capsys.readouterr().err


def test_update_does_not_touch_what_it_was_given() -> None:
    before = objects.spec()
    copy = objects.spec()
    changes.update(before, {"image": "x", "env_add": (("A", "1"),), "replicas": 9})
    assert before == copy


def test_scale_refuses_global_services() -> None:
    with pytest.raises(errors.Invalid, match="global"):
        changes.scale(objects.spec(mode={"Global": {}}), 3)
    assert changes.scale(objects.spec(mode={"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}), 3)[
        "Mode"
    ] == {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 3}}


def test_ports_may_be_ranges() -> None:
    assert [(port["PublishedPort"], port["TargetPort"]) for port in parts.publish("8000-8001:80-81/udp")] == [
        (8000, 80),
        (8001, 81),
    ]
    assert parts.publish("80")[0]["PublishedPort"] == 0


def test_modes_of_specifications() -> None:
    assert specs.mode_of({}) == "replicated"
    assert specs.mode_of({"Mode": {"GlobalJob": {}}}) == "global-job"
