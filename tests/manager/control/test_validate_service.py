"""Every refusal of a service's specification, with its words, and what must be accepted."""

from typing import Any

import pytest

from manager.control import defaults, names, validate_service
from skep import errors, ids, jsonmap, pb

PORTS = "this version of skep has no routing mesh, so a port cannot be published in ingress mode; use mode=host"
DEFERRED = "this version of skep does not yet do what this service asks: it "


def spec(**changes: Any) -> dict[str, Any]:
    """A sound specification in JSON; `a__b__c` reaches into it."""
    base: dict[str, Any] = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "nginx"}}}
    for path, value in changes.items():
        target = base
        *parents, last = path.split("__")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return base


def check(data: dict[str, Any]) -> None:
    validate_service.check(defaults.normalised(jsonmap.from_json(pb.ServiceSpec, data)))


C = "TaskTemplate__ContainerSpec__"
REFUSED: list[tuple[dict[str, Any], str]] = [
    (spec(Name=""), "meta: name must be provided"),
    (spec(Name="a.b"), "name must be valid as a DNS name component"),
    (spec(Name="-a"), "name must be valid as a DNS name component"),
    (spec(Name="a\n"), "name must be valid as a DNS name component"),
    (spec(Name="a" * 64), "name must be 63 characters or fewer"),
    (spec(**{C + "Image": ""}), "ContainerSpec: image reference must be provided"),
    (spec(**{C + "Image": "Nginx"}), 'ContainerSpec: "Nginx" is not a valid repository/tag'),
    (spec(**{C + "Image": "a b"}), 'ContainerSpec: "a b" is not a valid repository/tag'),
    (spec(**{C + "Image": "nginx:"}), 'ContainerSpec: "nginx:" is not a valid repository/tag'),
    (spec(**{C + "Image": "f" * 64}), f'ContainerSpec: "{"f" * 64}" is not a valid repository/tag'),
    (
        spec(**{C + "Mounts": [{"Type": "volume", "Target": "/a"}, {"Type": "tmpfs", "Target": "/a"}]}),
        "ContainerSpec: duplicate mount point: /a",
    ),
    (
        spec(**{C + "Mounts": [{"Type": "bind", "Target": "/a"}]}),
        'invalid mount config for type "bind": field Source must not be empty',
    ),
    (
        spec(**{C + "Mounts": [{"Type": "volume", "Target": "a"}]}),
        "invalid mount config for type \"volume\": invalid mount path: 'a' mount path must be absolute",
    ),
    (
        spec(**{C + "Healthcheck": {"Interval": 999_999}}),
        "ContainerSpec: Interval in HealthConfig cannot be less than 1ms",
    ),
    (spec(**{C + "Healthcheck": {"Retries": -1}}), "ContainerSpec: Retries in HealthConfig cannot be negative"),
    (spec(**{C + "StopGracePeriod": -1}), "ContainerSpec: StopGracePeriod cannot be negative"),
    (spec(**{C + "Env": ["=x"]}), "ContainerSpec: invalid environment variable: '=x' has no name"),
    (
        spec(**{C + "Args": ["a\0b"]}),
        "ContainerSpec: commands, arguments and environment cannot hold NUL characters",
    ),
    (spec(TaskTemplate__Resources__Limits={"NanoCPUs": 1}), "invalid cpu value 1e-09: Must be at least 0.001"),
    (
        spec(TaskTemplate__Resources__Reservations={"MemoryBytes": 1024}),
        "invalid memory value 1024: Must be at least 4MiB",
    ),
    (spec(TaskTemplate__RestartPolicy={"Delay": -1}), "TaskSpec: restart-delay cannot be negative"),
    (spec(TaskTemplate__RestartPolicy={"Window": -1}), "TaskSpec: restart-window cannot be negative"),
    (spec(TaskTemplate__Placement={"Constraints": ["a"]}), "constraint expected one operator from ==, !="),
    (spec(UpdateConfig={"Delay": -1}), "TaskSpec: update-delay cannot be negative"),
    (spec(UpdateConfig={"Monitor": -1}), "TaskSpec: update-monitor cannot be negative"),
    (
        spec(UpdateConfig={"MaxFailureRatio": 1.5}),
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    ),
    (
        spec(RollbackConfig={"MaxFailureRatio": -0.1}),
        "TaskSpec: rollback-maxfailureratio cannot be less than 0 or bigger than 1",
    ),
    (
        spec(EndpointSpec={"Ports": [{"PublishMode": "host"}]}),
        "EndpointSpec: invalid target port 0: it must be 1 to 65535",
    ),
    (
        spec(EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 70_000, "PublishMode": "host"}]}),
        "EndpointSpec: invalid published port 70000: at most 65535",
    ),
    (
        spec(EndpointSpec={"Ports": [{"TargetPort": t, "PublishedPort": 80, "PublishMode": "host"} for t in (1, 2)]}),
        "EndpointSpec: duplicate published ports provided",
    ),
    (
        spec(EndpointSpec={"Mode": "dnsrr", "Ports": [{"TargetPort": 80}]}),
        "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    ),
    (spec(Mode={"Replicated": {"Replicas": 10**7}}), "Mode.Replicated.Replicas: 10000000 is more than the 1000000"),
    (spec(**{C + "Labels": {"a": "b" * 2_000_000}}), "the specification has "),
]
JOBS: list[dict[str, Any]] = [{"GlobalJob": {}}, {"ReplicatedJob": {}}]
REFUSED += [(spec(Mode=mode, UpdateConfig={"Parallelism": 1}), "Jobs may not have an update config") for mode in JOBS]
REFUSED += [
    (spec(Mode={"ReplicatedJob": {"TotalCompletions": 2_000_000}}), "Mode.ReplicatedJob.TotalCompletions: 2000000 is"),
    (spec(Mode={"ReplicatedJob": {"MaxConcurrent": 2_000_000}}), "Mode.ReplicatedJob."),
    (spec(TaskTemplate__ContainerSpec={"Image": "i", "Env": ["A={{.Nope}}"]}), "expanding env failed: {{.Nope}}"),
    (spec(TaskTemplate__ContainerSpec={"Image": "i", "Env": ["A={{.Task.ID"]}), "expanding env failed: unclosed"),
    (spec(TaskTemplate__ContainerSpec={"Image": "i", "Hostname": "{{.Service.Labels.x}}"}),
     'expanding hostname failed: {{.Service.Labels.x}}: map has no entry for key "x"'),
    (spec(TaskTemplate__ContainerSpec={"Image": "i", "Mounts": [
        {"Type": "volume", "Source": "{{oops}}", "Target": "/a"}]}), "expanding mounts failed: {{oops}}"),
]  # fmt: skip
REFUSED.append((
    spec(**{C + "Mounts": [{"Type": "cluster", "Source": "v", "Target": "/a"}]}),
    "TaskTemplate.ContainerSpec.Mounts[0].Type: expected one of bind, volume, tmpfs, got 'cluster'",
))  # fmt: skip
UNIMPLEMENTED: list[tuple[dict[str, Any], str]] = [
    (spec(EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]}), PORTS),
    (spec(TaskTemplate__Networks=[{"Target": "n"}]), DEFERRED + "attaches services to networks (--network)"),
    (spec(TaskTemplate__Runtime="plugin"), "TaskSpec: runtime 'plugin' is not implemented: only container is"),
]
ACCEPTED = [
    spec(),
    spec(Name="a_b-c-1"),
    spec(Mode={"Replicated": {"Replicas": 0}}),
    spec(**{C + "Image": "registry.example.com:5000/a/b_c/d-e:v1.2@sha256:" + "0" * 64}),
    spec(**{C + "Image": "localhost:5000/x"}),
    spec(**{C + "Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b"}, {"Type": "tmpfs", "Target": "/c"}]}),
    spec(EndpointSpec={"Ports": [{"TargetPort": port, "PublishMode": "host"} for port in (80, 81)]}),
    spec(EndpointSpec={"Ports": [
        {"TargetPort": 53, "PublishedPort": 53, "PublishMode": "host", "Protocol": name} for name in ("tcp", "udp")
    ]}),
    *(spec(Mode=mode) for mode in JOBS),
    spec(Mode={"Global": {}}),
    spec(TaskTemplate__Placement={"Constraints": ["node.role==worker"]}),
    spec(TaskTemplate__Placement={"Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.a"}}]}),
    spec(TaskTemplate__Resources={"Limits": {"NanoCPUs": 1_000_000, "MemoryBytes": 4 << 20}, "Reservations": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("data", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_refused(data: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        check(data)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(("data", "text"), UNIMPLEMENTED, ids=[text for _, text in UNIMPLEMENTED])
def test_unimplemented(data: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.Unimplemented) as caught:
        check(data)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("data", ACCEPTED, ids=str)
def test_accepted(data: dict[str, Any]) -> None:
    check(data)


def test_invented_names_are_valid() -> None:
    rng = ids.seeded_rng(3)
    for _ in range(200):
        names.check_object_name(names.invent(rng))


def test_defaults_are_filled_in_a_copy_only() -> None:
    stored = defaults.normalised(jsonmap.from_json(pb.ServiceSpec, spec()))
    before = stored.SerializeToString(deterministic=True)
    full = jsonmap.to_json(defaults.filled(stored))
    assert stored.SerializeToString(deterministic=True) == before
    policy = {
        "Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000, "MaxFailureRatio": 0,
        "Order": "stop-first",
    }  # fmt: skip
    assert full["UpdateConfig"] == full["RollbackConfig"] == policy
    assert full["TaskTemplate"] == {
        "ContainerSpec": {"Image": "nginx", "StopGracePeriod": 10_000_000_000, "DNSConfig": {}, "Isolation": "default"},
        "Resources": {"Limits": {}, "Reservations": {}},
        "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000, "MaxAttempts": 0},
        "Placement": {},
        "ForceUpdate": 0,
        "Runtime": "container",
    }
    assert full["EndpointSpec"] == {"Mode": "vip"}
    assert full["Mode"] == {"Replicated": {"Replicas": 1}}
    assert "UpdateConfig" not in jsonmap.to_json(stored)


def test_a_present_update_config_keeps_its_zero_parallelism() -> None:
    full = defaults.filled(jsonmap.from_json(pb.ServiceSpec, spec(UpdateConfig={"Parallelism": 0})))
    assert full.update.parallelism == 0
