"""How much of the machine a task's processes use: the tree below its supervisor, read from /proc."""

import dataclasses
import os
import pathlib

from agent.runtime.process import proof
from skep import pb, stamps

PROC = pathlib.Path("/proc")
NOT_KNOWN = -1
UNLIMITED_BYTES = 1 << 60  # control groups of version 1 say a huge number instead of none
LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")


@dataclasses.dataclass(frozen=True)
class Sample:
    """At one moment. CPU time goes on counting for processes that have ended and were waited for within the tree."""

    at: float
    cpu_ns: int
    memory_bytes: int
    pids: int
    read_bytes: int
    written_bytes: int


def tree(root: int) -> list[int]:
    """`root` and all its descendants, as far as they can be seen."""
    below: dict[int, list[int]] = {}
    for pid in proof.pids():
        parent = _stat(pid)
        if parent is not None:
            below.setdefault(int(parent[1]), []).append(pid)
    found = [root]
    for pid in found:  # grows while it is walked
        found.extend(below.get(pid, []))
    return found


def sample(root: int, *, at: float) -> Sample:
    """What the tree below the supervisor `root` uses now, the supervisor itself left out but for its dead children."""
    tick_ns = stamps.NANOS // os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    cpu = memory = read = written = count = 0
    for pid in tree(root):
        fields = _stat(pid)
        if fields is None:
            continue
        cpu += int(fields[13]) + int(fields[14])
        if pid == root:
            continue
        count += 1
        cpu += int(fields[11]) + int(fields[12])
        memory += int(fields[21]) * page
        moved = _io(pid)
        if moved is None or read == NOT_KNOWN:
            read = written = NOT_KNOWN
        else:
            read, written = read + moved[0], written + moved[1]
    return Sample(at, cpu * tick_ns, memory, count, read, written)


def between(before: Sample, after: Sample, *, limit_bytes: int) -> pb.TaskStats:
    """Two samples as a TaskStats."""
    passed_s = max(after.at - before.at, 1e-3)
    return pb.TaskStats(
        at=stamps.stamp(after.at),
        nano_cpus=max(0, round((after.cpu_ns - before.cpu_ns) / passed_s)),
        memory_bytes=after.memory_bytes,
        memory_limit_bytes=limit_bytes,
        pids=after.pids,
        received_bytes=NOT_KNOWN,
        sent_bytes=NOT_KNOWN,
        read_bytes=after.read_bytes,
        written_bytes=after.written_bytes,
    )


def limit_bytes(groups: list[str]) -> int:
    """The memory limit in the task's control groups; 0 = none."""
    for group in groups:
        for name in LIMIT_FILES:
            try:
                text = (pathlib.Path(group) / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < UNLIMITED_BYTES:
                return int(text)
    return 0


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third (state) on."""
    try:
        return (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None


def _io(pid: int) -> tuple[int, int] | None:
    try:
        lines = (PROC / str(pid) / "io").read_text().splitlines()
    except OSError:
        return None
    values = {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}
    return values.get("read_bytes", 0), values.get("write_bytes", 0)
