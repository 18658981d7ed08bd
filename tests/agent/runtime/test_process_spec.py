"""Pure parts of the process runtime: translation, health verdicts, log records, control-group settings."""

import pathlib
from collections.abc import Collection

import pytest

from agent.runtime import base
from agent.runtime.process import cgroups, files, health, logs, spec
from manager.scheduler import constraints
from skep import pb, stamps
from tests.agent.runtime import workloads

WORK = pathlib.Path("/tasks/t/work")


def planned(work: base.Workload, *, euid: int = 1000, controllers: Collection[str] = ()) -> spec.Plan:
    return spec.plan(work, ports=[], work_dir=WORK, euid=euid, controllers=controllers)


def plan(container: pb.ContainerSpec, *, euid: int = 1000) -> spec.Plan:
    return planned(workloads.workload(container=container), euid=euid)


def test_command_and_args_are_joined() -> None:
    made = plan(pb.ContainerSpec(command=["a", "b"], args=["c"]))
    assert made.argv == ["a", "b", "c"]
    assert made.cwd == str(WORK)
    assert (made.stop_signal, made.stop_grace_s) == (15, 5.0)
    assert made.uid is None


def test_variable_without_value_is_taken_away() -> None:
    made = plan(pb.ContainerSpec(args=["x"], env=["HOME", "PATH=/bin"]))
    assert "HOME" not in made.env
    assert made.env["PATH"] == "/bin"


@pytest.mark.parametrize(("text", "number"), [("", 15), ("SIGINT", 2), ("hup", 1), ("9", 9), ("SIGRTMIN", 34)])
def test_stop_signal(text: str, number: int) -> None:
    assert spec.stop_signal(text) == number


def test_another_user_needs_root() -> None:
    with pytest.raises(base.TaskFatal, match="must be root"):
        plan(pb.ContainerSpec(args=["x"], user="root"), euid=1000)
    made = plan(pb.ContainerSpec(args=["x"], user="0:5", groups=["7"]), euid=0)
    assert (made.uid, made.gid, made.groups) == (0, 5, [5, 7])


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (pb.Driver(), (False, spec.LOG_BYTES, spec.LOG_FILES)),
        (pb.Driver(name="none"), (True, spec.LOG_BYTES, spec.LOG_FILES)),
        (pb.Driver(name="json-file", options={"max-size": "10m", "max-file": "2"}), (False, 10 << 20, 2)),
        (pb.Driver(name="local", options={"max-size": "1"}), (False, spec.LOG_BYTES_MIN, spec.LOG_FILES)),
    ],
)
def test_log_driver(driver: pb.Driver, expected: tuple[bool, int, int]) -> None:
    work = workloads.workload("x")
    work.spec.task.log_driver.CopyFrom(driver)
    made = planned(work)
    assert (made.log_discard, made.log_bytes, made.log_files) == expected


@pytest.mark.parametrize(
    "driver",
    [pb.Driver(name="syslog"), pb.Driver(options={"tag": "x"}), pb.Driver(options={"max-size": "much"}),
     pb.Driver(options={"max-file": "0"}), pb.Driver(options={"max-file": "1001"}),
     pb.Driver(options={"max-size": "1000g"})],
)  # fmt: skip
def test_log_driver_refusals(driver: pb.Driver) -> None:
    work = workloads.workload("x")
    work.spec.task.log_driver.CopyFrom(driver)
    with pytest.raises(base.TaskFatal, match="log"):
        planned(work)


@pytest.mark.parametrize(
    ("controllers", "lacking", "has"),
    [((), "cpu, memory, pids", "none"), (("memory",), "cpu, pids", "memory"), (("pids", "cpu"), "memory", "cpu+pids")],
)
def test_limits_that_this_node_cannot_enforce_are_refused(controllers: Collection[str], lacking: str, has: str) -> None:
    limits = pb.Resources(nano_cpus=500_000_000, memory_bytes=64 << 20, pids=9)
    with pytest.raises(base.TaskFatal) as refused:
        planned(workloads.workload("x", limits=limits), controllers=controllers)
    assert f"the process runtime cannot honour: limits of {lacking} (this node enforces: {has}; " in str(refused.value)
    assert "run skepd as root" in str(refused.value)
    remedy = str(refused.value).rpartition(" ")[2].rstrip(")")
    assert remedy == f"engine.labels.io.skep.process.limits!={has}"
    assert [each.text for each in constraints.parse([remedy])] == [remedy]  # it can be typed as it stands there
    planned(workloads.workload("x", limits=limits), controllers=("cpu", "memory", "pids"))
    planned(workloads.workload("x"), controllers=())


def test_task_file_round_trip(tmp_path: pathlib.Path) -> None:
    directory = files.TaskDirectory(tmp_path, "t1")
    directory.create(uid=None, gid=0)
    check = health.parse(pb.HealthConfig(test=["CMD", "true"]))
    task = files.Task(
        node_id="n1", task_id="t1", plan=plan(pb.ContainerSpec(args=["x"])), ports=[workloads.host_port(80)],
        health=check, cgroups=["/c"],
    )  # fmt: skip
    directory.write_task(task)
    assert directory.read_task() == task
    assert (directory.path / "task.json").stat().st_mode & 0o077 == 0  # environments hold secrets
    (directory.path / "task.json").write_text("{")
    assert directory.read_task() is None


CHECK = files.Health(test=["x"], interval_s=30, timeout_s=1, retries=2, start_period_s=10, start_interval_s=1)


def test_failures_do_not_count_while_starting() -> None:
    verdict = health.Verdict(CHECK, started_at=100.0)
    assert verdict.next_delay_s(now=105.0) == 1
    assert [verdict.record(passed=False, now=now) for now in (101.0, 109.0)] == [False, False]
    assert verdict.next_delay_s(now=111.0) == 30
    assert [verdict.record(passed=False, now=now) for now in (111.0, 112.0, 113.0)] == [False, True, False]
    assert verdict.healthy is False
    assert verdict.record(passed=True, now=114.0)
    assert verdict.healthy is True


def test_failures_count_once_it_was_healthy() -> None:
    verdict = health.Verdict(CHECK, started_at=100.0)
    assert verdict.record(passed=True, now=101.0)
    verdict.record(passed=False, now=102.0)
    verdict.record(passed=True, now=103.0)  # starts the count again
    verdict.record(passed=False, now=104.0)
    assert verdict.healthy is True
    assert verdict.record(passed=False, now=105.0)


def test_health_defaults_are_dockers() -> None:
    assert health.parse(pb.HealthConfig()) is None
    assert health.parse(pb.HealthConfig(test=["NONE"])) is None
    check = health.parse(pb.HealthConfig(test=["CMD-SHELL", "a | b"]))
    assert check is not None
    assert check.test == ["/bin/sh", "-c", "a | b"]
    assert (check.interval_s, check.timeout_s, check.retries, check.start_period_s) == (30, 30, 3, 0)


def test_log_records() -> None:
    entry = logs.parse(b"1700000000.250000 e it said: x")
    assert entry is not None
    assert (entry.stream, entry.data, stamps.seconds(entry.timestamp)) == (
        pb.LOG_STREAM_STDERR, b"it said: x\n", 1700000000.25,
    )  # fmt: skip
    part = logs.parse(b"1700000000.250000 O half")
    assert part is not None
    assert part.data == b"half"
    assert logs.parse(b"torn") is None
    assert logs.parse(b"x o y") is None


MOUNTINFO = """\
30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 25 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 25 0:30 / /proc rw - proc proc rw
"""


def test_control_group_mounts_and_settings() -> None:
    trees = cgroups.parse_mounts(MOUNTINFO)
    assert [(str(tree.root), tree.version, tree.controllers) for tree in trees] == [
        ("/sys/fs/cgroup/memory", 1, ("memory",)),
        ("/sys/fs/cgroup/cpu,cpuacct", 1, ("cpu",)),
        ("/sys/fs/cgroup/unified", 2, ()),
    ]
    limits = pb.Resources(nano_cpus=1_500_000_000, memory_bytes=1 << 20, pids=9)
    second = cgroups.Hierarchy(pathlib.Path("/c"), 2, ("cpu", "memory", "pids"))
    assert cgroups.settings(second, limits) == {
        "cpu.max": "150000 100000", "memory.max": "1048576", "pids.max": "9",
    }  # fmt: skip
    assert cgroups.settings(trees[1], limits) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}
    assert cgroups.settings(trees[0], pb.Resources()) == {}
