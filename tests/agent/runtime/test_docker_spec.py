"""Translation between our specifications and the engine's JSON, and the other pure parts of the Docker runtime."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.runtime import base
from agent.runtime.docker import client, driver, events, images, logs, spec
from skep import errors, pb
from tests.agent.runtime import workloads

API = (1, 44)


def body(
    container: pb.ContainerSpec, *, ports: list[pb.PortConfig] | None = None, limits: pb.Resources | None = None
) -> dict[str, Any]:
    container.image = container.image or "nginx"
    work = workloads.workload(container=container, ports=ports, limits=limits, task_id="t1")
    return spec.create_body(work, node_id="n1", api=API)


def test_an_empty_specification_leaves_everything_to_the_image() -> None:
    made = body(pb.ContainerSpec())
    assert set(made) == {"Image", "Labels", "Env", "StopTimeout", "ExposedPorts", "HostConfig"}
    assert made["HostConfig"] == {"RestartPolicy": {"Name": "no"}}
    assert made["Labels"] | {} == {
        "io.skep.node": "n1", "io.skep.task": "t1", "io.skep.task.name": "web.1.t1", "io.skep.service": "service1",
        "io.skep.service.name": "web", "io.skep.slot": "1", "io.skep.revision": "",
        "com.docker.swarm.node.id": "n1", "com.docker.swarm.service.id": "service1",
        "com.docker.swarm.service.name": "web", "com.docker.swarm.task": "", "com.docker.swarm.task.id": "t1",
        "com.docker.swarm.task.name": "web.1.t1",
    }  # fmt: skip


TOP: list[tuple[pb.ContainerSpec, dict[str, Any]]] = [
    (pb.ContainerSpec(command=["a"], args=["b", "c"]), {"Entrypoint": ["a"], "Cmd": ["b", "c"]}),
    (pb.ContainerSpec(dir="/w", user="1:2"), {"WorkingDir": "/w", "User": "1:2"}),
    (pb.ContainerSpec(tty=True, open_stdin=True), {"Tty": True, "OpenStdin": True}),
    (pb.ContainerSpec(stop_signal="SIGINT"), {"StopSignal": "SIGINT"}),
    (pb.ContainerSpec(stop_grace_period=1_500_000_000), {"StopTimeout": 2}),
    (pb.ContainerSpec(stop_grace_period=0), {"StopTimeout": 0}),
    (pb.ContainerSpec(hostname="{{.Service.Name}}-{{.Task.Slot}}"), {"Hostname": "web-1"}),
    (pb.ContainerSpec(env=["A={{ .Task.Name }}", "{{.X}}=1", "B"]), {"Env": ["A=web.1.t1", "{{.X}}=1", "B"]}),
    (
        pb.ContainerSpec(
            healthcheck=pb.HealthConfig(
                test=["CMD", "x"], interval=1, timeout=2, retries=3, start_period=4, start_interval=5
            )
        ),
        {
            "Healthcheck": {
                "Test": ["CMD", "x"],
                "Interval": 1,
                "Timeout": 2,
                "Retries": 3,
                "StartPeriod": 4,
                "StartInterval": 5,
            }
        },
    ),
    (pb.ContainerSpec(healthcheck=pb.HealthConfig(interval=7)), {"Healthcheck": {"Interval": 7}}),
]


@pytest.mark.parametrize(("container", "expected"), TOP)
def test_container_fields(container: pb.ContainerSpec, expected: dict[str, Any]) -> None:
    made = body(container)
    assert {name: made[name] for name in expected} == expected


HOST: list[tuple[pb.ContainerSpec, dict[str, Any]]] = [
    (pb.ContainerSpec(read_only=True, groups=["g"]), {"ReadonlyRootfs": True, "GroupAdd": ["g"]}),
    (pb.ContainerSpec(init=False), {"Init": False}),
    (pb.ContainerSpec(init=True), {"Init": True}),
    (pb.ContainerSpec(hosts=["10.0.0.1 a b"]), {"ExtraHosts": ["a:10.0.0.1", "b:10.0.0.1"]}),
    (
        pb.ContainerSpec(dns_config=pb.DNSConfig(nameservers=["1.1.1.1"], search=["s"], options=["o"])),
        {"Dns": ["1.1.1.1"], "DnsSearch": ["s"], "DnsOptions": ["o"]},
    ),
    (pb.ContainerSpec(sysctls={"a": "1"}), {"Sysctls": {"a": "1"}}),
    (pb.ContainerSpec(capability_add=["X"], capability_drop=["ALL"]), {"CapAdd": ["X"], "CapDrop": ["ALL"]}),
    (
        pb.ContainerSpec(ulimits=[pb.Ulimit(name="nofile", soft=0, hard=2)]),
        {"Ulimits": [{"Name": "nofile", "Soft": 0, "Hard": 2}]},
    ),
    (pb.ContainerSpec(oom_score_adj=-5, isolation="default"), {"OomScoreAdj": -5, "Isolation": "default"}),
    (
        pb.ContainerSpec(
            mounts=[
                pb.Mount(
                    type=pb.MOUNT_TYPE_BIND,
                    source="/h",
                    target="/c",
                    read_only=True,
                    bind_options=pb.Mount.BindOptions(
                        propagation="rshared", non_recursive=True, create_mountpoint=True
                    ),
                ),
                pb.Mount(
                    type=pb.MOUNT_TYPE_VOLUME,
                    source="v{{.Task.Slot}}",
                    target="/v",
                    volume_options=pb.Mount.VolumeOptions(
                        no_copy=True,
                        labels={"l": "{{.Task.ID}}"},
                        driver_config=pb.Driver(name="local", options={"o": "x"}),
                    ),
                ),
                pb.Mount(
                    type=pb.MOUNT_TYPE_TMPFS,
                    target="/t",
                    tmpfs_options=pb.Mount.TmpfsOptions(size_bytes=9, mode=0o700),
                ),
            ]
        ),
        {
            "Mounts": [
                {
                    "Type": "bind",
                    "Target": "/c",
                    "Source": "/h",
                    "ReadOnly": True,
                    "BindOptions": {"Propagation": "rshared", "NonRecursive": True, "CreateMountpoint": True},
                },
                {
                    "Type": "volume",
                    "Target": "/v",
                    "Source": "v1",
                    "VolumeOptions": {
                        "NoCopy": True,
                        "Labels": {"l": "t1"},
                        "DriverConfig": {"Name": "local", "Options": {"o": "x"}},
                    },
                },
                {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 9, "Mode": 0o700}},
            ]
        },
    ),
]


@pytest.mark.parametrize(("container", "expected"), HOST)
def test_host_fields(container: pb.ContainerSpec, expected: dict[str, Any]) -> None:
    made = body(container)["HostConfig"]
    assert made == {"RestartPolicy": {"Name": "no"}, **expected}


def test_ports_limits_and_log_driver() -> None:
    udp = pb.PortConfig(
        target_port=53, published_port=53, protocol=pb.PORT_PROTOCOL_UDP, publish_mode=pb.PUBLISH_MODE_HOST
    )
    limits = pb.Resources(nano_cpus=5, memory_bytes=6, pids=7)
    ports = [workloads.host_port(80), workloads.host_port(80, published=8080), udp]
    work = workloads.workload(container=pb.ContainerSpec(image="x"), ports=ports, limits=limits)
    work.spec.task.log_driver.CopyFrom(pb.Driver(name="syslog", options={"tag": "t"}))
    work.spec.task.resources.reservations.memory_bytes = 99  # a scheduler's figure, never a limit
    made = spec.create_body(work, node_id="n1", api=API)
    assert made["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    host = made["HostConfig"]
    assert host["PortBindings"] == {
        "80/tcp": [{"HostPort": ""}, {"HostPort": "8080"}], "53/udp": [{"HostPort": "53"}],
    }  # fmt: skip
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (5, 6, 7)
    assert host["LogConfig"] == {"Type": "syslog", "Config": {"tag": "t"}}


def refused(work: base.Workload, words: str, api: client.Version = API) -> None:
    with pytest.raises(base.TaskFatal, match=words):
        spec.create_body(work, node_id="n1", api=api)


def test_what_cannot_be_honoured_is_refused_by_name() -> None:
    image = "nginx"
    refused(workloads.workload(container=pb.ContainerSpec()), "names no image")
    ingress = pb.PortConfig(target_port=80, published_port=80)
    refused(workloads.workload(container=pb.ContainerSpec(image=image), ports=[ingress]), "mode=host")
    attached = workloads.workload(container=pb.ContainerSpec(image=image))
    attached.spec.task.networks.add(target="n")
    refused(attached, "networks")
    refused(workloads.workload(container=pb.ContainerSpec(image=image, hosts=["10.0.0.1"])), "host entry")
    early = pb.ContainerSpec(image=image, healthcheck=pb.HealthConfig(start_interval=1))
    refused(workloads.workload(container=early), r"start interval \(needs Engine API 1.44", api=(1, 41))
    plugin = workloads.workload(container=pb.ContainerSpec(image=image))
    plugin.spec.task.runtime = "plugin"
    refused(plugin, "runtime")
    refused(workloads.workload(container=pb.ContainerSpec(image=image, hostname="{{env}}")), "expanding hostname")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "created"}, base.Observation(base.Phase.CREATED, "c1")),
        ({"Status": "running", "Pid": 7}, base.Observation(base.Phase.RUNNING, "c1", pid=7)),
        ({"Status": "paused", "Pid": 7}, base.Observation(base.Phase.RUNNING, "c1", pid=7)),
        ({"Status": "exited", "ExitCode": 3}, base.Observation(base.Phase.EXITED, "c1", exit_code=3)),
        (
            {"Status": "exited", "ExitCode": 137, "OOMKilled": True},
            base.Observation(base.Phase.EXITED, "c1", exit_code=137, error="out of memory"),
        ),
        (
            {"Status": "created", "ExitCode": 127, "Error": "no such file"},
            base.Observation(base.Phase.EXITED, "c1", exit_code=127, error="no such file"),
        ),
        (
            {"Status": "running", "Pid": 7, "Health": {"Status": "unhealthy"}},
            base.Observation(base.Phase.RUNNING, "c1", pid=7, healthy=False),
        ),
        (
            {"Status": "running", "Pid": 7, "Health": {"Status": "starting"}},
            base.Observation(base.Phase.RUNNING, "c1", pid=7, healthy=None),
        ),
    ],
)
def test_observations(state: dict[str, Any], expected: base.Observation) -> None:
    assert spec.observation({"Id": "c1", "State": state}) == expected


def test_observed_ports_once_per_number() -> None:
    seen = spec.observation(
        {
            "Id": "c1",
            "State": {"Status": "running"},
            "Config": {"Healthcheck": {"Test": ["CMD", "x"]}},
            "NetworkSettings": {
                "Ports": {
                    "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "3000"}, {"HostIp": "::", "HostPort": "3000"}],
                    "81/tcp": None,
                }
            },
        }
    )
    assert seen.health_checked
    assert [(port.target_port, port.published_port) for port in seen.ports] == [(80, 3000)]


def test_description_keeps_the_engines_words() -> None:
    made = spec.describe(
        {
            "Architecture": "x86_64", "OSType": "linux", "NCPU": 3, "MemTotal": 5, "ServerVersion": "20.10",
            "Labels": ["a=b=c", "d"], "Plugins": {"Volume": ["local"], "Network": None, "Log": ["json-file"]},
        }
    )  # fmt: skip
    assert (made.platform.architecture, made.platform.os) == ("x86_64", "linux")
    assert (made.resources.nano_cpus, made.resources.memory_bytes) == (3_000_000_000, 5)
    assert dict(made.engine.labels) == {"a": "b=c", "d": ""}
    assert [(plugin.type, plugin.name) for plugin in made.engine.plugins] == [("Log", "json-file"), ("Volume", "local")]
    assert made.engine.runtime == "docker"


@pytest.mark.parametrize(
    ("newest", "oldest", "chosen"),
    [("1.41", "1.12", (1, 41)), ("1.51", "1.44", (1, 51)), ("1.60", "1.44", client.VERSION_MAX), ("1.41", "", (1, 41))],
)
def test_version_is_negotiated(newest: str, oldest: str, chosen: client.Version) -> None:
    assert client.negotiate(newest=newest, oldest=oldest) == chosen


@pytest.mark.parametrize(("newest", "oldest"), [("1.39", "1.12"), ("2.0", "1.99"), ("new", "1.2")])
def test_version_without_overlap(newest: str, oldest: str) -> None:
    with pytest.raises(client.EngineAway, match="API"):
        client.negotiate(newest=newest, oldest=oldest)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("nginx", ("nginx", "latest")),
        ("nginx:1.25", ("nginx", "1.25")),
        ("localhost:5000/a/b", ("localhost:5000/a/b", "latest")),
        ("localhost:5000/a/b:c", ("localhost:5000/a/b", "c")),
        ("nginx:1@sha256:00", ("nginx:1@sha256:00", "")),
    ],
)
def test_reference_for_a_pull(reference: str, parts: tuple[str, str]) -> None:
    assert images.split(reference) == parts


@pytest.mark.parametrize(
    ("message", "is_hopeless"),
    [
        ("pull access denied for x, repository does not exist or may require 'docker login'", True),
        ("manifest for nginx:none not found: manifest unknown", True),
        ("Get https://x/v2/: dial tcp: lookup x on 1.1.1.1:53: no such host", False),
        ("toomanyrequests: You have reached your pull rate limit", False),
        ("net/http: request canceled while waiting for connection", False),
    ],
)
def test_hopeless_pulls(message: str, *, is_hopeless: bool) -> None:
    assert images.hopeless(message) is is_hopeless


def test_pull_progress_counts_layers() -> None:
    progress = images.Progress("nginx")
    events_in = [
        {"status": "Pulling from library/nginx", "id": "latest"},
        {"status": "Pulling fs layer", "id": "a"},
        {"status": "Downloading", "id": "a"},
        {"status": "Already exists", "id": "b"},
        {"status": "Pull complete", "id": "a"},
        {"status": "Digest: sha256:0"},
    ]
    said = [line for event in events_in if (line := progress.line(event))]
    assert said == [f"pulling nginx: {done} layers" for done in ("0 of 1", "1 of 2", "2 of 2")]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"Action": "die", "Actor": {"Attributes": {"io.skep.task": "t1"}}}, "t1"),
        ({"Action": "health_status: healthy", "Actor": {"Attributes": {"io.skep.task": "t1"}}}, "t1"),
        ({"Action": "exec_die", "Actor": {"Attributes": {"io.skep.task": "t1"}}}, None),
        ({"Action": "died", "Actor": {"Attributes": None}}, ""),
    ],
)
def test_events(event: dict[str, Any], expected: str | None) -> None:
    assert events.task_id(event) == expected


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


AT = b"2024-05-06T07:08:09.123456789Z "


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_log_frames_in_any_pieces(size: int) -> None:
    async def main() -> list[pb.LogEntry]:
        records = [(1, AT + b"out\n"), (2, AT + b"err"), (1, b"no time"), (1, AT.rstrip(b" "))]
        data = b"".join(logs.HEADER.pack(stream, len(record)) + record for stream, record in records)
        return [entry async for entry in logs.frames(pieces(data, size))]

    first, second, third, fourth = asyncio.run(main())
    assert (first.stream, first.data, first.timestamp.seconds, first.timestamp.nanos) == (
        pb.LOG_STREAM_STDOUT, b"out\n", 1714979289, 123456789,
    )  # fmt: skip
    assert (second.stream, second.data) == (pb.LOG_STREAM_STDERR, b"err")
    assert third.data == b"no time"
    assert fourth.data == AT.rstrip(b" ")


def test_log_stream_that_is_none() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="log frame"):
            [entry async for entry in logs.frames(pieces(b"\xff" * 20, 7))]

    asyncio.run(main())


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_terminal_lines(size: int) -> None:
    async def main() -> list[bytes]:
        data = AT + b"a\r\n" + AT + b"b"
        return [entry.data async for entry in logs.lines(pieces(data, size))]

    assert asyncio.run(main()) == [b"a\r\n", b"b"]


def test_failures_become_the_tasks_fate() -> None:
    missing = errors.Invalid('invalid mount config for type "bind": bind source path does not exist: /x')
    assert str(driver.failure(missing, doing="creating")) == "invalid bind mount source, source path not found: /x"
    assert isinstance(driver.failure(client.EngineFailed("boom"), doing="starting"), base.TaskFatal)
    late = client.EngineFailed("failed to create task: context deadline exceeded: unknown")
    assert isinstance(driver.failure(late, doing="starting"), base.TaskTemporary)


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, ""), (1, ""), (127, ""), (128, ""), (137, "killed by SIGKILL"), (139, "killed by SIGSEGV"), (255, "")],
)
def test_signals_in_words(code: int, words: str) -> None:
    assert spec.killed_by(code) == words


@pytest.mark.parametrize(
    ("mine", "wishes", "expected"),
    [
        ("linux/x86_64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/aarch64", ["linux/arm64"], "linux/arm64"),
        ("linux/x86_64", [], ""),
        ("linux/x86_64", ["linux/"], ""),  # whatever there is
        ("/", ["/"], ""),
    ],
)
def test_the_platform_is_named_when_the_service_names_it(mine: str, wishes: list[str], expected: str) -> None:
    def parsed(text: str) -> pb.Platform:
        os, _, architecture = text.partition("/")
        return pb.Platform(os=os, architecture=architecture)

    work = workloads.workload("x", task_id="t1")
    work.node.description.platform.CopyFrom(parsed(mine))
    work.spec.task.placement.platforms.extend(parsed(wish) for wish in wishes)
    told = {"platform": expected} if expected else {}
    assert spec.create_query(work, api=(1, 41)) == {"name": "web.1.t1", **told}
    assert spec.create_query(work, api=(1, 40)) == {"name": "web.1.t1"}


def test_containers_of_tasks_are_told_from_what_others_made_of_them() -> None:
    ours = {"io.skep.node": "n1", "io.skep.task": "t1"}
    listed: list[dict[str, Any]] = [
        {"Id": "c1", "Names": ["/web.1.t1"], "Labels": ours},
        {"Id": "c2", "Names": ["/cranky_gates"], "Labels": ours},  # of an image that was made of c1
        {"Id": "c3", "Names": ["/web.1.t3"], "Labels": {"io.skep.node": "n1"}},
        {"Id": "c4", "Names": None, "Labels": ours},
        {"Id": "c5", "Names": ["/x"], "Labels": None},
    ]
    assert spec.tasks(listed) == {"t1": "c1"}
