"""Limits of processes: what is written into trees of version 1 and 2, and that the kernel holds tasks to it."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent.runtime import base, process
from agent.runtime.process import cgroups
from skep import pb
from tests.agent.runtime import processes, workloads

NODE = "node1"
LIMITS = pb.Resources(nano_cpus=500_000_000, memory_bytes=64 << 20, pids=9)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def opened(directory: pathlib.Path, *mounts: str) -> cgroups.Cgroups:
    """The groups of a machine with these file systems below the directory: "place type options"."""
    lines = []
    for place, kind, options in (mount.split() for mount in mounts):
        (directory / place).mkdir(exist_ok=True)
        lines.append(f"30 25 0:26 / {directory / place} rw,relatime - {kind} cgroup {options}")
    mountinfo = directory / "mountinfo"
    mountinfo.write_text("\n".join(lines) + "\n")
    made = cgroups.Cgroups(node_id=NODE, mounts=mountinfo)
    made.open()
    return made


def written(directory: pathlib.Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("as_root")
def test_a_tree_of_version_2_is_claimed_from_its_root_down_and_a_task_limited(tmp_path: pathlib.Path) -> None:
    tree = tmp_path / "unified"
    tree.mkdir()
    (tree / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    groups = opened(tmp_path, "unified cgroup2 rw")
    wish = "+cpu +memory +pids"
    assert groups.controllers == {"cpu", "memory", "pids"}
    assert written(tree) == {
        "cgroup.controllers": "cpuset cpu io memory hugetlb pids\n",
        "cgroup.subtree_control": wish,
        "skep/cgroup.subtree_control": wish,
        f"skep/{NODE}/cgroup.subtree_control": wish,
    }
    made = groups.create("task1", LIMITS)
    assert made == groups.of("task1") == [str(tree / "skep" / NODE / "task1")]
    assert written(pathlib.Path(made[0])) == {
        "cpu.max": "50000 100000", "memory.max": str(64 << 20), "pids.max": "9",
    }  # fmt: skip
    assert groups.stale() == ["task1"]
    (free,) = groups.create("task2", pb.Resources())
    assert written(pathlib.Path(free)) == {}
    assert cgroups.procs_files(made) == [f"{made[0]}/cgroup.procs"]
    assert cgroups.oom_files(made) == []
    (pathlib.Path(made[0]) / "memory.events").touch()
    assert cgroups.oom_files(made) == [f"{made[0]}/memory.events"]


@pytest.mark.usefixtures("as_root")
def test_version_1_and_2_side_by_side_each_limit_what_they_have(tmp_path: pathlib.Path) -> None:
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").write_text("pids\n")
    groups = opened(tmp_path, "cpu cgroup rw,cpu,cpuacct", "freezer cgroup rw,freezer", "unified cgroup2 rw")
    assert groups.controllers == {"cpu", "pids"}
    groups.create("task1", LIMITS)
    assert written(tmp_path / "cpu") == {
        f"skep/{NODE}/task1/cpu.cfs_period_us": "100000", f"skep/{NODE}/task1/cpu.cfs_quota_us": "50000",
    }  # fmt: skip
    assert written(tmp_path / "unified" / "skep" / NODE / "task1") == {"pids.max": "9"}


@pytest.mark.usefixtures("as_root")
def test_a_tree_that_cannot_be_had_limits_nothing(tmp_path: pathlib.Path) -> None:
    """Where other processes live in our very group the kernel says busy; here its file is a directory."""
    for place, controllers in (("busy", "cpu"), ("bare", "hugetlb")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "cgroup.controllers").write_text(controllers)
    (tmp_path / "busy" / "cgroup.subtree_control").mkdir()
    groups = opened(tmp_path, "busy cgroup2 rw", "bare cgroup2 rw", "none cgroup2 rw")
    assert groups.controllers == frozenset()
    assert groups.create("task1", LIMITS) == []
    assert not (tmp_path / "busy" / "skep").exists()


def test_without_root_there_are_no_limits(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert opened(tmp_path, "cpu cgroup rw,cpu").controllers == frozenset()


@pytest.fixture
def second(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The kernel's own tree of version 2, mounted once more; what its root hands down is as before in the end."""
    place = tmp_path / "unified"
    place.mkdir()
    mount = ["mount", "-t", "cgroup2", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        report = pytest.fail if os.environ.get("SKEP_REQUIRE_ENGINE") == "1" else pytest.skip
        report("no tree of version 2 can be mounted here")
    control = place / "cgroup.subtree_control"
    before = control.read_text().split()
    yield place
    for name in control.read_text().split():
        if name not in before:
            control.write_text(f"-{name}")
    subprocess.run(["umount", place], check=True)


def test_a_real_tree_of_version_2(
    tmp_path: pathlib.Path, second: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whatever controllers version 1 has left to it: the way down, the members, and the end."""
    offered = (second / "cgroup.controllers").read_text().split()
    ours = [name for name in cgroups.WANTED if name in offered] or [name for name in offered if name != "cpuset"][:1]
    if not ours:
        pytest.skip("version 1 has all controllers of this machine")
    monkeypatch.setattr(cgroups, "WANTED", tuple(ours))
    groups = opened(tmp_path, "unified cgroup2 rw")
    assert groups.controllers == frozenset(ours)
    (made,) = groups.create("task1", LIMITS)
    own = pathlib.Path(made)
    try:
        assert set((own / "cgroup.controllers").read_text().split()) == set(ours)
        for name, value in cgroups.settings(cgroups.Hierarchy(second, 2, tuple(ours)), LIMITS).items():
            assert (own / name).read_text().strip() == value  # what the kernel took
        with subprocess.Popen(["sleep", "600"]) as member:
            (own / "cgroup.procs").write_text(str(member.pid))
            assert cgroups._members(own) == [member.pid]
            groups.close()  # does not take away what somebody lives in
            assert own.exists()
            groups.kill_and_remove([made])
            assert member.wait(timeout=5) == -signal.SIGKILL
        assert not own.exists()
    finally:
        with contextlib.suppress(OSError):
            own.rmdir()
        for left in (own.parent, own.parent.parent):
            with contextlib.suppress(OSError):
                left.rmdir()


def test_a_task_gets_no_more_processes_than_its_limit(tmp_path: pathlib.Path) -> None:
    script = (
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 40:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(600)\n"
        "        made += 1\n"
        "except BlockingIOError:\n"
        "    pass\n"
        "print(made)\n"
    )

    async def body(runtime: process.ProcessRuntime) -> None:
        processes.need_limits(runtime, "pids")
        for limit, made in ((8, "7\n"), (0, "40\n")):
            work = workloads.workload(sys.executable, "-c", script, limits=pb.Resources(pids=limit))
            await workloads.run(runtime, work)
            await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
            assert await workloads.output(runtime, work.task.id) == made

    processes.with_runtime(tmp_path, body)


def test_a_task_gets_no_more_processor_time_than_its_limit(tmp_path: pathlib.Path) -> None:
    """It spins for a second; the kernel says how often it held it up, by version 1 and 2 in the same words."""
    script = (
        "import time\n"
        "end = time.monotonic() + 1\n"
        "while time.monotonic() < end:\n"
        "    pass\n"
        "print(time.process_time(), flush=True)\n"
        "time.sleep(600)\n"
    )

    async def body(runtime: process.ProcessRuntime) -> None:
        processes.need_limits(runtime, "cpu")
        work = workloads.workload(sys.executable, "-c", script, limits=pb.Resources(nano_cpus=200_000_000))
        await workloads.run(runtime, work)
        used = await workloads.until(lambda: workloads.output(runtime, work.task.id), bool, what="its figure")
        assert float(used) < 0.5  # 0.2 of a second, and what it took to start
        held = 0
        for directory in runtime._cgroups.of(work.task.id):
            with contextlib.suppress(FileNotFoundError):
                rows = dict(line.split() for line in (pathlib.Path(directory) / "cpu.stat").read_text().splitlines())
                held += int(rows.get("nr_throttled", 0))
        assert held > 0

    processes.with_runtime(tmp_path, body)
