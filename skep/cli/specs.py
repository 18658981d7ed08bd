"""Service specifications (Docker's JSON) from the flags of service create and update. Pure but for --env-file.

`given` is what click made of the flags: None or an empty tuple where a flag was not used.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from skep import errors

Json = dict[str, Any]
Given = Mapping[str, Any]

ENV_FILE_BYTES_MAX = 1 << 20
MONITOR_NS = 5_000_000_000
RESTART_DELAY_NS = 5_000_000_000
# Flag, key in ContainerSpec. A flag that was given replaces the value.
CONTAINER_KEYS = (
    ("entrypoint", "Command"),
    ("args", "Args"),
    ("image", "Image"),
    ("workdir", "Dir"),
    ("user", "User"),
    ("hostname", "Hostname"),
    ("stop_signal", "StopSignal"),
    ("stop_grace_period", "StopGracePeriod"),
    ("read_only", "ReadOnly"),
    ("init", "Init"),
    ("tty", "TTY"),
    ("isolation", "Isolation"),
    ("oom_score_adj", "OomScoreAdj"),
)
RESOURCE_KEYS = (
    ("limit_cpu", "Limits", "NanoCPUs"),
    ("limit_memory", "Limits", "MemoryBytes"),
    ("limit_pids", "Limits", "Pids"),
    ("reserve_cpu", "Reservations", "NanoCPUs"),
    ("reserve_memory", "Reservations", "MemoryBytes"),
)
HEALTH_KEYS = (
    ("health_interval", "Interval"),
    ("health_timeout", "Timeout"),
    ("health_retries", "Retries"),
    ("health_start_period", "StartPeriod"),
    ("health_start_interval", "StartInterval"),
)
RESTART_KEYS = (
    ("restart_condition", "Condition"),
    ("restart_delay", "Delay"),
    ("restart_max_attempts", "MaxAttempts"),
    ("restart_window", "Window"),
)
ROLLING_KEYS = (
    ("parallelism", "Parallelism"),
    ("delay", "Delay"),
    ("order", "Order"),
    ("failure_action", "FailureAction"),
    ("monitor", "Monitor"),
    ("max_failure_ratio", "MaxFailureRatio"),
)
ROLLING_DEFAULTS: Json = {
    "Parallelism": 1,
    "Delay": 0,
    "FailureAction": "pause",
    "Monitor": MONITOR_NS,
    "MaxFailureRatio": 0,
    "Order": "stop-first",
}


def within(parent: Json, key: str) -> Json:
    """The object at `key`, made when it is missing or null."""
    if not isinstance(parent.get(key), dict):
        parent[key] = {}
    child: Json = parent[key]
    return child


def mode_of(spec: Mapping[str, Any]) -> str:
    """replicated, global, replicated-job or global-job."""
    mode = spec.get("Mode") or {}
    for key, word in (("Global", "global"), ("ReplicatedJob", "replicated-job"), ("GlobalJob", "global-job")):
        if mode.get(key) is not None:
            return word
    return "replicated"


def common(spec: Json, given: Given) -> None:
    """Writes into `spec` what create and update say alike. Raises Invalid for flags that exclude each other."""
    task = within(spec, "TaskTemplate")
    container = within(task, "ContainerSpec")
    for flag, key in CONTAINER_KEYS:
        if given.get(flag) is not None:
            container[key] = given[flag]
    for flag, group, key in RESOURCE_KEYS:
        if given.get(flag) is not None:
            within(within(task, "Resources"), group)[key] = given[flag]
    if given.get("replicas_max_per_node") is not None:
        within(task, "Placement")["MaxReplicas"] = given["replicas_max_per_node"]
    if given.get("endpoint_mode") is not None:
        within(spec, "EndpointSpec")["Mode"] = given["endpoint_mode"]
    _health(container, given)
    _restart(task, given)
    _log_driver(task, given)
    for prefix, key in (("update", "UpdateConfig"), ("rollback", "RollbackConfig")):
        _rolling(spec, given, prefix=prefix, key=key)


def _health(container: Json, given: Given) -> None:
    changed = {key: given[flag] for flag, key in HEALTH_KEYS if given.get(flag) is not None}
    command = given.get("health_cmd")
    if given.get("no_healthcheck"):
        if changed or command is not None:
            raise errors.Invalid("--no-healthcheck excludes all --health-* flags; drop one side")
        container["Healthcheck"] = {"Test": ["NONE"]}
        return
    if not changed and command is None:
        return
    health = within(container, "Healthcheck")
    if command is not None:
        health["Test"] = ["CMD-SHELL", command] if command else []
    elif health.get("Test") == ["NONE"]:
        health.pop("Test")
    health.update(changed)


def _restart(task: Json, given: Given) -> None:
    changed = {key: given[flag] for flag, key in RESTART_KEYS if given.get(flag) is not None}
    if changed:
        defaults = {"Condition": "any", "Delay": RESTART_DELAY_NS, "MaxAttempts": 0, "Window": 0}
        task["RestartPolicy"] = {**defaults, **(task.get("RestartPolicy") or {}), **changed}


def _rolling(spec: Json, given: Given, *, prefix: str, key: str) -> None:
    changed = {
        name: given[f"{prefix}_{flag}"] for flag, name in ROLLING_KEYS if given.get(f"{prefix}_{flag}") is not None
    }
    if not changed:
        return
    if mode_of(spec).endswith("-job"):
        raise errors.Invalid(f"--{prefix}-* flags are not for jobs; drop them")
    spec[key] = {**ROLLING_DEFAULTS, **(spec.get(key) or {}), **changed}


def _log_driver(task: Json, given: Given) -> None:
    if given.get("log_driver"):
        task["LogDriver"] = {"Name": given["log_driver"], "Options": dict(given.get("log_opt") or ())}
    elif given.get("log_opt"):
        if not task.get("LogDriver"):
            raise errors.Invalid("--log-opt needs --log-driver; name the driver too")
        within(task["LogDriver"], "Options").update(dict(given["log_opt"]))


def create(given: Given, *, image: str, arguments: Sequence[str]) -> Json:
    """The specification of a new service. Raises Invalid."""
    container: Json = {"Image": image, "Args": list(arguments)}
    spec: Json = {
        "Name": given.get("name") or "",
        "Labels": dict(given["label"]),
        "TaskTemplate": {"ContainerSpec": container},
        "Mode": _mode(given),
    }
    task = spec["TaskTemplate"]
    env = environment(given["env_file"], given["env"])
    lists: tuple[tuple[str, Any], ...] = (
        ("Env", env),
        ("Labels", dict(given["container_label"])),
        ("Mounts", list(given["mount"])),
        ("Groups", list(given["group"])),
        ("Hosts", list(given["host"])),
        ("Sysctls", dict(given["sysctl"])),
        ("Ulimits", list(given["ulimit"])),
        ("CapabilityAdd", [capability(name) for name in given["cap_add"]]),
        ("CapabilityDrop", [capability(name) for name in given["cap_drop"]]),
    )
    container.update({key: value for key, value in lists if value})
    dns = {"Nameservers": given["dns"], "Search": given["dns_search"], "Options": given["dns_option"]}
    if any(dns.values()):
        container["DNSConfig"] = {key: list(value) for key, value in dns.items() if value}
    if given["constraint"]:
        within(task, "Placement")["Constraints"] = list(given["constraint"])
    if given["placement_pref"]:
        within(task, "Placement")["Preferences"] = list(given["placement_pref"])
    if given["generic_resource"]:
        resources = [each for group in given["generic_resource"] for each in group]
        within(within(task, "Resources"), "Reservations")["GenericResources"] = resources
    if given["network"]:
        task["Networks"] = list(given["network"])
    if given["publish"]:
        spec["EndpointSpec"] = {"Mode": "vip", "Ports": [port for group in given["publish"] for port in group]}
    common(spec, {key: value for key, value in given.items() if key != "image"})
    return spec


def _mode(given: Given) -> Json:
    mode, replicas, concurrent = given["mode"], given.get("replicas"), given.get("max_concurrent")
    if replicas is not None and mode not in ("replicated", "replicated-job"):
        raise errors.Invalid(f"--replicas is for replicated services and jobs, not for --mode {mode}; drop one of them")
    if concurrent is not None and mode != "replicated-job":
        raise errors.Invalid("--max-concurrent is for --mode replicated-job only; drop it")
    if mode == "global":
        return {"Global": {}}
    if mode == "global-job":
        return {"GlobalJob": {}}
    if mode == "replicated-job":
        total = 1 if replicas is None else replicas
        return {
            "ReplicatedJob": {"MaxConcurrent": total if concurrent is None else concurrent, "TotalCompletions": total}
        }
    return {"Replicated": {"Replicas": 1 if replicas is None else replicas}}


def capability(name: str) -> str:
    """Docker's spelling of a capability: NET_ADMIN is CAP_NET_ADMIN, ALL stays."""
    upper = name.strip().upper()
    return upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"


def environment(files: Sequence[str], pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """KEY=VALUE lines: those of the files, then the flags; a later one replaces an earlier one.

    A flag that names only a key takes the value from our own environment, and is dropped when there is none.
    """
    merged: dict[str, str] = {}
    for path in files:
        merged.update(_env_file(path))
    for key, value in pairs:
        inherited = os.environ.get(key) if value is None else value
        if inherited is not None:
            merged[key] = inherited
    return [f"{key}={value}" for key, value in merged.items()]


def _env_file(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(ENV_FILE_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as problem:
        raise errors.Invalid(f"--env-file {path} cannot be read: {problem}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        stripped = line.lstrip()
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, value = stripped.partition("=")
        if not key or any(character.isspace() for character in key):
            raise errors.Invalid(f"--env-file {path}, line {number}: {key!r} is not a name; write KEY=VALUE")
        if equals:
            found[key] = value
        elif key in os.environ:
            found[key] = os.environ[key]
    return found
