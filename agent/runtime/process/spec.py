"""Translates a task's specification into what the supervisor starts. Pure but for the lookup of user names.

Whatever would need a container (mounts, another root, its own hostname ..) is refused by name, never dropped.
"""

import dataclasses
import grp
import os
import pathlib
import pwd
import resource
import signal
from collections.abc import Collection, Sequence
from typing import Any

from agent.runtime import base, refuse, templates
from agent.runtime.process import cgroups, logs
from skep import pb, stamps, tasknames

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_GRACE_S = 10.0
LOG_BYTES, LOG_FILES = 1024 * 1024, 4  # per task; Docker's options max-size and max-file change them
LOG_BYTES_MIN = 64 * 1024  # a record must fit
LOG_BYTES_MAX = 64 << 30  # more is a slip of the pen, and would fill any disk
LOG_DRIVERS = {"", "json-file", "local", "none"}
LABEL_LIMITS = "io.skep.process.limits"  # of the node's engine: the limits that it enforces
SIZE_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the supervisor reads from task.json."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    uid: int | None  # None: stay who we are
    gid: int
    groups: list[int]
    stop_signal: int
    stop_grace_s: float
    ulimits: list[tuple[str, int, int]]  # name, soft, hard
    oom_score_adj: int
    log_discard: bool
    log_bytes: int  # of one file
    log_files: int
    cgroup_procs: list[str] = dataclasses.field(default_factory=list)  # the command writes itself into these
    oom_files: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For task.json."""
        return dataclasses.asdict(self)


def unsupported(container: pb.ContainerSpec) -> list[str]:
    """Names of the fields that are set and need a container."""
    found = {
        "mounts": container.mounts,
        "read-only root": container.read_only,
        "tty": container.tty,
        "open stdin": container.open_stdin,
        "hostname": container.hostname,
        "hosts": container.hosts,
        "dns": container.HasField("dns_config") and container.dns_config.ByteSize(),
        "sysctls": container.sysctls,
        "capability-add": container.capability_add,
        "capability-drop": container.capability_drop,
        "privileges": container.HasField("privileges") and container.privileges.ByteSize(),
        "shm size": container.shm_size_bytes,
        "devices": container.devices,
        "privileged": container.privileged,
    }
    return [name for name, value in found.items() if value]


def unlimited(resources: pb.Resources, *, controllers: Collection[str]) -> list[str]:
    """What of the limits nothing on this machine would enforce, as one line with the remedy; empty when all hold."""
    wished = {"cpu": resources.nano_cpus, "memory": resources.memory_bytes, "pids": resources.pids}
    lacking = [name for name, value in wished.items() if value and name not in controllers]
    if not lacking:
        return []
    enforced = cgroups.described(controllers)
    return [
        f"limits of {', '.join(lacking)} (this node enforces: {enforced}; run skepd as root on a machine with these "
        f"control groups, or keep the service away with the constraint engine.labels.{LABEL_LIMITS}!={enforced})"
    ]


def plan(
    workload: base.Workload,
    *,
    ports: list[pb.PortConfig],
    work_dir: pathlib.Path,
    euid: int,
    controllers: Collection[str],
) -> Plan:
    """How to run `workload`; `ports` are its host-mode ports with published numbers. Raises TaskFatal.

    `controllers` are the control groups that limit something on this machine.
    """
    container = workload.container
    resources = workload.spec.task.resources
    swap = ["swap"] if resources.HasField("swap_bytes") or resources.HasField("memory_swappiness") else []
    limits = unlimited(resources.limits, controllers=controllers)
    refuse.check(workload, runtime="process", also=unsupported(container) + swap + limits)
    argv = [*container.command, *container.args]
    if not argv or not argv[0]:
        raise base.TaskFatal(
            "the process runtime starts programs of this machine, it has no images: give the service a command"
        )
    account = _account(container, euid=euid)
    home = account.home or str(work_dir)
    discard, log_bytes, log_files = _log(workload.spec.task.log_driver)
    cwd = container.dir or str(work_dir)
    if not cwd.startswith("/"):
        raise base.TaskFatal(f"working directory {cwd!r} must be an absolute path")
    return Plan(
        argv=argv,
        env=environment(workload, ports=ports, home=home),
        cwd=cwd,
        uid=account.uid,
        gid=account.gid,
        groups=account.groups,
        stop_signal=stop_signal(container.stop_signal),
        stop_grace_s=grace_s(container),
        ulimits=[_ulimit(limit) for limit in container.ulimits],
        oom_score_adj=container.oom_score_adj,
        log_discard=discard,
        log_bytes=log_bytes,
        log_files=log_files,
    )


def grace_s(container: pb.ContainerSpec) -> float:
    """Seconds between the stop signal and SIGKILL."""
    if container.HasField("stop_grace_period"):
        return stamps.from_nanos(container.stop_grace_period)
    return DEFAULT_GRACE_S


def environment(workload: base.Workload, *, ports: list[pb.PortConfig], home: str) -> dict[str, str]:
    """A clean environment: nothing of the agent's own gets in."""
    task = workload.task
    env = {
        "PATH": DEFAULT_PATH,
        "HOME": home,
        "SKEP_TASK_ID": task.id,
        "SKEP_TASK_NAME": workload.name,
        "SKEP_TASK_SLOT": tasknames.place(task) if task.slot else "0",
        "SKEP_SERVICE_ID": task.service_id,
        "SKEP_SERVICE_NAME": task.service_name,
        "SKEP_NODE_ID": workload.node.id or task.node_id,
    }
    for port in ports:
        env.setdefault("PORT", str(port.published_port))
        env[f"SKEP_PORT_{port.target_port}"] = str(port.published_port)
    for entry in templates.expand_env(workload):
        name, equals, value = entry.partition("=")
        if equals:
            env[name] = value
        else:
            env.pop(name, None)  # "NAME" alone takes a variable away, as in a container
    return env


def file_names(files: Sequence[base.File]) -> list[str]:
    """Where each secret and config stands in the task's directory of files. Raises TaskFatal."""
    for file in files:
        if file.target.startswith("/"):
            raise base.TaskFatal(
                f"{file.kind} target {file.target}: the process runtime keeps files in $SKEP_SECRETS_DIR and "
                "$SKEP_CONFIGS_DIR, give it a relative name"
            )
    return [f"{file.kind}s/{file.target}" for file in files]


def file_environment(directory: pathlib.Path) -> dict[str, str]:
    """The variables that tell the command where its secrets and configs are."""
    return {"SKEP_SECRETS_DIR": str(directory / "secrets"), "SKEP_CONFIGS_DIR": str(directory / "configs")}


def stop_signal(text: str) -> int:
    """The number of "SIGTERM", "TERM" or "15"; SIGTERM when empty. Raises TaskFatal."""
    if not text:
        return signal.SIGTERM
    if text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    name = text.upper().removeprefix("SIG")
    if "SIG" + name in signal.Signals.__members__:
        return signal.Signals["SIG" + name]
    raise base.TaskFatal(f"unknown stop signal {text!r}")


@dataclasses.dataclass(frozen=True)
class Account:
    """Who the command runs as."""

    uid: int | None
    gid: int
    groups: list[int]
    home: str


def _account(container: pb.ContainerSpec, *, euid: int) -> Account:
    if not container.user and not container.groups:
        return Account(uid=None, gid=0, groups=[], home="")
    name, _, group = container.user.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name or "root")
        uid, gid, home = entry.pw_uid, entry.pw_gid, entry.pw_dir
    except KeyError:
        if not name.isdigit():
            raise base.TaskFatal(f"unable to find user {name}: no such user on this machine") from None
        uid, gid, home = int(name), 0, "/"
    if not name and container.groups:
        uid, gid = os.getuid(), os.getgid()
    if group:
        gid = _group(group)
    groups = [_group(extra) for extra in container.groups]
    if euid != 0:
        if uid == euid and not group and not groups:
            return Account(uid=None, gid=0, groups=[], home=home)
        raise base.TaskFatal(f"user {container.user!r}: the agent must be root to start programs as another user")
    return Account(uid=uid, gid=gid, groups=sorted({gid, *groups}), home=home)


def _group(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise base.TaskFatal(f"unable to find group {name}: no such group on this machine") from None


def _ulimit(limit: pb.Ulimit) -> tuple[str, int, int]:
    if not hasattr(resource, "RLIMIT_" + limit.name.upper()):
        raise base.TaskFatal(f"unknown ulimit {limit.name!r}")
    return limit.name, limit.soft, limit.hard


def _log(driver: pb.Driver) -> tuple[bool, int, int]:
    """(discard, bytes of a file, files). Options that the driver does not have are refused, as Docker does."""
    if driver.name not in LOG_DRIVERS:
        raise base.TaskFatal(f"log driver {driver.name!r}: the process runtime has json-file, local and none")
    unknown = sorted(name for name in driver.options if name not in {"max-size", "max-file"})
    if unknown:
        raise base.TaskFatal(f"log option {unknown[0]!r}: the process runtime has max-size and max-file")
    size, files = LOG_BYTES, LOG_FILES
    if "max-size" in driver.options:
        size = _size(driver.options["max-size"])
    if "max-file" in driver.options:
        text = driver.options["max-file"]
        if not text.isdecimal() or not 1 <= int(text) <= logs.FILES_MAX:
            raise base.TaskFatal(f"log option max-file={text!r} must be a number from 1 to {logs.FILES_MAX}")
        files = int(text)
    return driver.name == "none", max(size, LOG_BYTES_MIN), files


def _size(text: str) -> int:
    number = text.lower().rstrip("bkmg")
    unit = text.lower()[len(number) :].removesuffix("b")
    if not number.isdecimal() or unit not in SIZE_UNITS or int(number) * SIZE_UNITS[unit] > LOG_BYTES_MAX:
        raise base.TaskFatal(f"log option max-size={text!r} must be a size such as 10m, up to {LOG_BYTES_MAX >> 30}g")
    return int(number) * SIZE_UNITS[unit]
