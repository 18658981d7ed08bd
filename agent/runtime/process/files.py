"""The directory of one task: what stands in it and how it is written and read.

    task.json   what to run; its presence means CREATED. Written by the agent
    run.json    who runs it (PIDs with start times, boot ID). Written by the supervisor, before the command begins
    exit.json   how it ended. Written by the supervisor, last
    lock        held by the supervisor while it lives
    log.0 ..    output, newest first by number
    work/       the command's working directory and home
    shim.err    what the supervisor itself had to say; normally empty

Must not start or signal anything.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

from agent.runtime.process import spec
from skep import pb

PRIVATE, TRAVERSABLE = 0o700, 0o711


@dataclasses.dataclass(frozen=True)
class Run:
    """run.json."""

    boot_id: str
    shim_pid: int
    shim_start: int  # clock ticks since boot
    pid: int
    pid_start: int
    started_at: float


@dataclasses.dataclass(frozen=True)
class Exit:
    """exit.json."""

    exit_code: int
    oom: bool
    error: str
    at: float


@dataclasses.dataclass(frozen=True)
class Health:
    """The health check of a task, in seconds. `test` is the argument list of an "exec" check, else empty."""

    test: list[str]
    interval_s: float
    timeout_s: float
    retries: int
    start_period_s: float
    start_interval_s: float
    kind: str = "exec"  # or "http", "tcp": those ask `port` on the machine itself
    port: int = 0
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """task.json."""

    node_id: str
    task_id: str
    plan: spec.Plan
    ports: list[pb.PortConfig]
    health: Health | None
    cgroups: list[str]  # directories that belong to this task alone


class TaskDirectory:
    """Reads and writes one task's directory. Blocking, but only ever small files."""

    def __init__(self, root: pathlib.Path, task_id: str) -> None:
        self.task_id = task_id
        self.path = root / task_id

    @property
    def work(self) -> pathlib.Path:
        """The command's working directory."""
        return self.path / "work"

    def create(self, *, uid: int | None, gid: int) -> None:
        """Makes the directories; `uid` owns the working directory."""
        self.path.mkdir(mode=TRAVERSABLE, parents=True, exist_ok=True)
        self.path.chmod(TRAVERSABLE)
        self.work.mkdir(mode=PRIVATE, exist_ok=True)
        if uid is not None:
            os.chown(self.work, uid, gid)

    def write_task(self, task: Task) -> None:
        """Makes the task CREATED."""
        value = {
            "node_id": task.node_id,
            "task_id": task.task_id,
            "plan": task.plan.to_json(),
            "ports": [_port_to_json(port) for port in task.ports],
            "health": dataclasses.asdict(task.health) if task.health else None,
            "cgroups": task.cgroups,
        }
        temporary = self.path / "task.json.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # the environment may hold secrets
        with os.fdopen(fd, "w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / "task.json")

    def read_task(self) -> Task | None:
        """None while the task is not CREATED, or when the file is damaged."""
        value = self._read("task.json")
        if value is None:
            return None
        try:
            return Task(
                node_id=value["node_id"],
                task_id=value["task_id"],
                plan=spec.Plan(**value["plan"]),
                ports=[_port_from_json(port) for port in value["ports"]],
                health=Health(**value["health"]) if value["health"] else None,
                cgroups=value["cgroups"],
            )
        except (KeyError, TypeError):
            return None

    def read_run(self) -> Run | None:
        """None while nothing was started."""
        value = self._read("run.json")
        try:
            return Run(**value) if value is not None else None
        except TypeError:
            return None

    def read_exit(self) -> Exit | None:
        """None while it runs, or when the supervisor did not live to write it."""
        value = self._read("exit.json")
        try:
            return Exit(**value) if value is not None else None
        except TypeError:
            return None

    def delete(self) -> None:
        """Removes everything. Raises OSError."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            value = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):  # a file that a power cut left empty says as much as none
            return None
        return value if isinstance(value, dict) else None


def _port_to_json(port: pb.PortConfig) -> dict[str, Any]:
    return {
        "name": port.name,
        "protocol": int(port.protocol),
        "target_port": port.target_port,
        "published_port": port.published_port,
        "publish_mode": int(port.publish_mode),
    }


def _port_from_json(value: dict[str, Any]) -> pb.PortConfig:
    return pb.PortConfig(**value)
