"""Services and nodes in words, for inspect --pretty. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from skep.cli import specs, text

Json = Mapping[str, Any]
Line = tuple[str, Any]

LABEL_WIDTH = 20


def _lines(pairs: Iterable[Line], *, indent: str = "") -> list[str]:
    """`Key:   value`, without those that have none."""
    return [f"{indent}{key + ':':<{LABEL_WIDTH}}{value}" for key, value in pairs if value not in (None, "", [], {})]


def _section(title: str, pairs: Iterable[Line]) -> list[str]:
    lines = _lines(pairs, indent=" ")
    return [f"{title}:", *lines] if lines else []


def _labels(labels: Mapping[str, str] | None) -> list[str]:
    return ["Labels:", *(f" {key}={value}" for key, value in sorted((labels or {}).items()))] if labels else []


def _duration(nanoseconds: int | None) -> str | None:
    return None if nanoseconds is None else text.duration(nanoseconds)


def service(found: Json, *, now: float) -> str:
    """A service in a page of words."""
    spec = found["Spec"]
    task = spec["TaskTemplate"]
    mode = specs.mode_of(spec)
    replicas = ((spec.get("Mode") or {}).get("Replicated") or {}).get("Replicas")
    job = (spec.get("Mode") or {}).get("ReplicatedJob") or {}
    lines = _lines([("ID", found["ID"]), ("Name", spec.get("Name"))])
    lines += _labels(spec.get("Labels"))
    lines += _lines([
        ("Service mode", mode.replace("-", " ").title()),
        (" Replicas", replicas),
        (" Max concurrent", job.get("MaxConcurrent")),
        (" Total completions", job.get("TotalCompletions")),
    ])  # fmt: skip
    status = found.get("UpdateStatus") or {}
    lines += _section("UpdateStatus", [
        ("State", status.get("State")),
        ("Started", text.ago(status.get("StartedAt"), now=now)),
        ("Completed", text.ago(status.get("CompletedAt"), now=now)),
        ("Message", status.get("Message")),
    ])  # fmt: skip
    placement = task.get("Placement") or {}
    spreads = [
        f"spread={each['Spread']['SpreadDescriptor']}"
        for each in placement.get("Preferences") or ()
        if each.get("Spread")
    ]
    lines += _section("Placement", [
        ("Constraints", ", ".join(placement.get("Constraints") or ())),
        ("Preferences", ", ".join(spreads)),
        ("Max per node", placement.get("MaxReplicas") or None),
    ])  # fmt: skip
    for title, key in (("UpdateConfig", "UpdateConfig"), ("RollbackConfig", "RollbackConfig")):
        lines += _rolling(title, spec.get(key))
    lines += _container(task.get("ContainerSpec") or {})
    lines += _resources(task.get("Resources") or {})
    restart = task.get("RestartPolicy") or {}
    lines += _section("Restart", [
        ("Condition", restart.get("Condition")),
        ("Delay", _duration(restart.get("Delay"))),
        ("Max attempts", restart.get("MaxAttempts") or None),
        ("Window", _duration(restart.get("Window") or None)),
    ])  # fmt: skip
    lines += _endpoint(found, spec)
    return "\n".join(lines)


def _rolling(title: str, config: Json | None) -> list[str]:
    if not config:
        return []
    return _section(title, [
        ("Parallelism", config.get("Parallelism")),
        ("Delay", _duration(config.get("Delay") or None)),
        ("On failure", config.get("FailureAction")),
        ("Monitoring", _duration(config.get("Monitor"))),
        ("Max failure ratio", config.get("MaxFailureRatio")),
        ("Order", config.get("Order")),
    ])  # fmt: skip


def _container(container: Json) -> list[str]:
    mounts: list[str] = []
    for each in container.get("Mounts") or ():
        mode = " (ro)" if each.get("ReadOnly") else ""
        mounts.append(f"{each.get('Type', 'volume')} {each.get('Source', '')}->{each['Target']}{mode}")
    return _section("ContainerSpec", [
        ("Image", container.get("Image")),
        ("Entrypoint", " ".join(container.get("Command") or ())),
        ("Args", " ".join(container.get("Args") or ())),
        ("Env", " ".join(container.get("Env") or ())),
        ("Dir", container.get("Dir")),
        ("User", container.get("User")),
        ("Hostname", container.get("Hostname")),
        ("Init", container.get("Init")),
        ("Read-only", container.get("ReadOnly") or None),
        ("Stop signal", container.get("StopSignal")),
        ("Stop grace", _duration(container.get("StopGracePeriod"))),
        ("Healthcheck", " ".join((container.get("Healthcheck") or {}).get("Test") or ())),
        ("Mounts", ", ".join(mounts)),
        ("Secrets", ", ".join(each["SecretName"] for each in container.get("Secrets") or ())),
        ("Configs", ", ".join(each["ConfigName"] for each in container.get("Configs") or ())),
        ("Capabilities", ", ".join([*(f"+{name}" for name in container.get("CapabilityAdd") or ()),
                                    *(f"-{name}" for name in container.get("CapabilityDrop") or ())])),
    ])  # fmt: skip


def _resources(resources: Json) -> list[str]:
    lines: list[str] = []
    for title, key in (("Reservations", "Reservations"), ("Limits", "Limits")):
        part = resources.get(key) or {}
        generic = [
            f"{each['DiscreteResourceSpec']['Kind']}={each['DiscreteResourceSpec']['Value']}"
            for each in part.get("GenericResources") or ()
            if each.get("DiscreteResourceSpec")
        ]
        lines += _section(title, [
            ("CPU", text.cpus(part["NanoCPUs"]) if part.get("NanoCPUs") else None),
            ("Memory", text.size(part["MemoryBytes"]) if part.get("MemoryBytes") else None),
            ("Pids", part.get("Pids") or None),
            ("Generic", ", ".join(generic)),
        ])  # fmt: skip
    return lines


def _endpoint(found: Json, spec: Json) -> list[str]:
    lines: list[str] = []
    networks = [each["Target"] for each in spec["TaskTemplate"].get("Networks") or ()]
    mode = (spec.get("EndpointSpec") or {}).get("Mode")
    lines += _lines([("Networks", ", ".join(networks)), ("Endpoint mode", mode)])
    for port in (found.get("Endpoint") or {}).get("Ports") or (spec.get("EndpointSpec") or {}).get("Ports") or ():
        published = port.get("PublishedPort") or "chosen by the engine"
        where = port.get("PublishMode", "ingress")
        lines.append(f" port {published} -> {port['TargetPort']}/{port.get('Protocol', 'tcp')} ({where})")
    return lines


def node(found: Json) -> str:
    """A node in a page of words."""
    description = found.get("Description") or {}
    resources = description.get("Resources") or {}
    platform = description.get("Platform") or {}
    engine = description.get("Engine") or {}
    status = found.get("Status") or {}
    manager = found.get("ManagerStatus") or {}
    lines = _lines([("ID", found["ID"]), ("Name", (found["Spec"] or {}).get("Name"))])
    lines += _labels(found["Spec"].get("Labels"))
    lines += _lines([
        ("Hostname", description.get("Hostname")),
        ("Joined at", found.get("CreatedAt")),
        ("Role", found["Spec"].get("Role")),
    ])  # fmt: skip
    lines += _section("Status", [
        ("State", str(status.get("State", "")).capitalize()),
        ("Availability", str(found["Spec"].get("Availability", "")).capitalize()),
        ("Message", status.get("Message")),
        *((wrong["Summary"].capitalize(), wrong["Message"]) for wrong in description.get("Conditions") or ()),
        ("Address", status.get("Addr")),
    ])  # fmt: skip
    if manager:
        lines += _section("Manager Status", [
            ("Address", manager.get("Addr")),
            ("Raft Status", str(manager.get("Reachability", "")).capitalize()),
            ("Leader", "Yes" if manager.get("Leader") else "No"),
        ])  # fmt: skip
    lines += _section("Platform", [
        ("Operating System", platform.get("OS")),
        ("Architecture", platform.get("Architecture")),
    ])  # fmt: skip
    lines += _section("Resources", [
        ("CPUs", text.cpus(resources.get("NanoCPUs") or 0)),
        ("Memory", text.size(resources.get("MemoryBytes") or 0)),
        *_generic(resources),
    ])  # fmt: skip
    disk = description.get("Disk") or {}
    if disk.get("TotalBytes"):
        lines += _section("Disk", [
            ("Path", disk["Path"]),
            ("Free", f"{text.size(disk.get('FreeBytes') or 0)} of {text.size(disk['TotalBytes'])}"),
            ("Images", f"about {text.size(disk['ImageBytes'])}" if disk.get("ImageBytes") else None),
        ])  # fmt: skip
    lines += _lines([("Listening on", ", ".join(str(port) for port in description.get("HostPorts") or ()))])
    lines += _lines([("Engine Version", engine.get("EngineVersion")), ("Runtime", engine.get("Runtime"))])
    plugins: dict[str, list[str]] = {}
    for each in engine.get("Plugins") or ():
        plugins.setdefault(each.get("Type", ""), []).append(each.get("Name", ""))
    lines += _section("Plugins", [(kind, ", ".join(names)) for kind, names in sorted(plugins.items())])
    lines += [f"Engine {line}" if line == "Labels:" else line for line in _labels(engine.get("Labels"))]
    return "\n".join(lines)


def _generic(resources: Json) -> list[Line]:
    """Generic resources by kind, with a count or their names."""
    found: dict[str, list[str]] = {}
    for each in resources.get("GenericResources") or ():
        one = each.get("DiscreteResourceSpec") or each.get("NamedResourceSpec") or {}
        found.setdefault(one.get("Kind", ""), []).append(str(one.get("Value", "")))
    return [(kind, ", ".join(values)) for kind, values in sorted(found.items())]
