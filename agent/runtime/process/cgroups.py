"""Limits of tasks through the kernel's control groups, version 1 and 2, where the machine lets us.

Owns `skep/NODE/TASK` below the mounted hierarchies. Without root there are no limits: the node says so in its labels,
and tasks that ask for one are refused (`spec`). Must never touch a group outside of its own directory.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import signal
import time
from collections.abc import Iterable

import structlog

from agent.runtime.process import proof
from skep import pb, stamps

log = structlog.get_logger(__name__)

WANTED = ("cpu", "memory", "pids")
MOUNTS = pathlib.Path("/proc/self/mountinfo")
CPU_PERIOD_US = 100_000
KILL_ROUNDS = 50  # 10 ms each; a process that forks faster than this is caught by the pids limit or not at all
ROUND_S = 0.01


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """One mounted tree with the controllers that it offers us."""

    root: pathlib.Path
    version: int
    controllers: tuple[str, ...]


def parse_mounts(mountinfo: str) -> list[Hierarchy]:
    """The usable hierarchies in /proc/self/mountinfo. Version 2 still has to say which controllers it has."""
    found: list[Hierarchy] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = after.split()
        if len(fields) < 3:  # noqa: PLR2004 - type, source, options
            continue
        root = pathlib.Path(before.split()[4])
        if fields[0] == "cgroup2":
            found.append(Hierarchy(root, 2, ()))
        elif fields[0] == "cgroup":
            controllers = tuple(name for name in WANTED if name in fields[2].split(","))
            if controllers:
                found.append(Hierarchy(root, 1, controllers))
    return found


def described(controllers: Iterable[str]) -> str:
    """For the node's labels: a value that placement constraints can name."""
    return "+".join(sorted(controllers)) or "none"


class Cgroups:
    """The control groups of one node's tasks."""

    def __init__(self, *, node_id: str, mounts: pathlib.Path = MOUNTS) -> None:
        self._node_id = node_id
        self._mounts = mounts
        self._trees: list[Hierarchy] = []

    def open(self) -> None:
        """Finds out what this machine allows. Never fails."""
        if os.geteuid() != 0:
            return
        try:
            mounts = parse_mounts(self._mounts.read_text())
        except OSError:
            return
        for tree in mounts:
            try:
                usable = self._claim(tree)
            except OSError as error:
                log.info("process.cgroup_unusable", root=str(tree.root), error=str(error))
                continue
            if usable.controllers:
                self._trees.append(usable)

    def _claim(self, tree: Hierarchy) -> Hierarchy:
        base = tree.root / "skep" / self._node_id
        if tree.version == 1:
            base.mkdir(parents=True, exist_ok=True)
            return tree
        offered = (tree.root / "cgroup.controllers").read_text().split()
        controllers = tuple(name for name in WANTED if name in offered)
        if not controllers:
            return Hierarchy(tree.root, 2, ())
        wish = " ".join("+" + name for name in controllers)
        (tree.root / "cgroup.subtree_control").write_text(wish)  # busy when processes live in this very group
        base.mkdir(parents=True, exist_ok=True)
        for directory in (base.parent, base):
            (directory / "cgroup.subtree_control").write_text(wish)
        return Hierarchy(tree.root, 2, controllers)

    def close(self) -> None:
        """Removes the node's own directories if no task is in them."""
        for tree in self._trees:
            with contextlib.suppress(OSError):
                (tree.root / "skep" / self._node_id).rmdir()
                (tree.root / "skep").rmdir()
        self._trees = []

    @property
    def controllers(self) -> frozenset[str]:
        """What can be limited."""
        return frozenset(name for tree in self._trees for name in tree.controllers)

    def create(self, task_id: str, limits: pb.Resources) -> list[str]:
        """Makes the task's groups with its limits; returns their directories. Raises OSError."""
        made: list[str] = []
        for tree in self._trees:
            path = tree.root / "skep" / self._node_id / task_id
            path.mkdir(parents=True, exist_ok=True)  # parents: another node's close may have taken them away
            made.append(str(path))
            for name, value in settings(tree, limits).items():
                try:
                    (path / name).write_text(value)
                except OSError as error:
                    raise OSError(error.errno, f"limit {name}={value}: {error.strerror}") from error
        return made

    def stale(self) -> list[str]:
        """IDs of tasks for which there still is a group."""
        found = {
            entry.name
            for tree in self._trees
            for entry in (tree.root / "skep" / self._node_id).iterdir()
            if entry.is_dir()
        }
        return sorted(found)

    def of(self, task_id: str) -> list[str]:
        """Directories of a task's groups, there or not."""
        return [str(tree.root / "skep" / self._node_id / task_id) for tree in self._trees]

    def kill_and_remove(self, directories: list[str]) -> None:
        """Kills whatever lives in these groups and removes them. Blocks for up to half a second each."""
        for name in directories:
            path = pathlib.Path(name)
            if not self._owned(path):
                log.warning("process.cgroup_foreign", directory=name)
                continue
            _empty(path)

    def _owned(self, path: pathlib.Path) -> bool:
        return path.parent.name == self._node_id and path.parent.parent.name == "skep"


def procs_files(directories: list[str]) -> list[str]:
    """Files into which the command writes itself."""
    return [f"{directory}/cgroup.procs" for directory in directories]


def oom_files(directories: list[str]) -> list[str]:
    """Files that count the kernel's kills for lack of memory."""
    names = ("memory.events", "memory.oom_control")
    paths = [pathlib.Path(directory) / name for directory in directories for name in names]
    return [str(path) for path in paths if path.exists()]


def settings(tree: Hierarchy, limits: pb.Resources) -> dict[str, str]:
    """File name -> value for the limits that are set and that this tree controls."""
    quota = round(stamps.from_nanos(limits.nano_cpus) * CPU_PERIOD_US)
    values: dict[str, str] = {}
    if "cpu" in tree.controllers and quota:
        if tree.version == 1:
            values["cpu.cfs_period_us"] = str(CPU_PERIOD_US)
            values["cpu.cfs_quota_us"] = str(quota)
        else:
            values["cpu.max"] = f"{quota} {CPU_PERIOD_US}"
    if "memory" in tree.controllers and limits.memory_bytes:
        values["memory.limit_in_bytes" if tree.version == 1 else "memory.max"] = str(limits.memory_bytes)
    if "pids" in tree.controllers and limits.pids:
        values["pids.max"] = str(limits.pids)
    return values


def _members(path: pathlib.Path) -> list[int]:
    try:
        return [int(line) for line in (path / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _empty(path: pathlib.Path) -> None:
    for _ in range(KILL_ROUNDS):
        if not path.exists():
            return
        for pid in _members(path):
            # Membership, looked up again once the process is pinned, is the proof that it is ours.
            proof.signal_if(pid, signal.SIGKILL, proven=lambda pid=pid: pid in _members(path))  # type: ignore[misc]
        try:
            path.rmdir()
            return
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                log.warning("process.cgroup_left", directory=str(path), error=str(error))
                return
        time.sleep(ROUND_S)  # noqa: TID251 - runs in a worker thread; the kernel gives no other notice
    log.warning("process.cgroup_left", directory=str(path), error="still busy")
