"""Translates a task's specification into the engine's create call, and the engine's container back. Pure.

Every field of ContainerSpec is honoured or refused by name; none is dropped.
"""

import json
import math
import signal
from collections.abc import Sequence
from typing import Any

from agent.runtime import base, refuse, templates
from agent.runtime.docker import client, security
from skep import jsonmap, pb, platforms, stamps, tasknames

NODE, TASK = "io.skep.node", "io.skep.task"
DEFAULT_GRACE_S = 10.0
PROTOCOLS = {pb.PORT_PROTOCOL_TCP: "tcp", pb.PORT_PROTOCOL_UDP: "udp", pb.PORT_PROTOCOL_SCTP: "sctp"}
MOUNT_TYPES = {pb.MOUNT_TYPE_BIND: "bind", pb.MOUNT_TYPE_VOLUME: "volume", pb.MOUNT_TYPE_TMPFS: "tmpfs"}
HEALTH_KINDS = {"NONE", "CMD", "CMD-SHELL"}
SIGNALLED = 128  # exit codes above it mean a signal, as in a shell
RUNNING = {"running", "paused", "restarting"}
# Fields that older engines ignore without a word: API version from which they count.
START_INTERVAL, CREATE_MOUNTPOINT, SUBPATH = (1, 44), (1, 42), (1, 45)
PLATFORM = (1, 41)  # older engines take images of their own platform only


def labels(workload: base.Workload, *, node_id: str) -> dict[str, str]:
    """The user's labels, ours, by which containers are found again, and Docker's, which its tools know."""
    task = workload.task
    return {
        **workload.container.labels,
        NODE: node_id,
        TASK: task.id,
        "io.skep.task.name": workload.name,
        "io.skep.service": task.service_id,
        "io.skep.service.name": task.service_name,
        "io.skep.slot": tasknames.place(task) if task.slot else "0",
        "io.skep.revision": task.revision_id,
        "com.docker.swarm.node.id": node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": task.service_name,
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": task.id,
        "com.docker.swarm.task.name": workload.name,
    }


def grace_s(container: pb.ContainerSpec) -> int:
    """Whole seconds between stop signal and SIGKILL, as the engine counts them."""
    if not container.HasField("stop_grace_period"):
        return int(DEFAULT_GRACE_S)
    return math.ceil(stamps.from_nanos(container.stop_grace_period))


def create_body(
    workload: base.Workload, *, node_id: str, api: client.Version, files: Sequence[str] = ()
) -> dict[str, Any]:
    """The body of POST /containers/create. Raises TaskFatal for what cannot be honoured.

    `files` are the machine's paths of the task's secrets and configs, in the order of `workload.files`.
    """
    container = workload.container
    refuse.check(workload, runtime="docker", also=[*_too_new(container, api), *security.unsupported(workload)])
    if not container.image:
        raise base.TaskFatal("the service names no image")
    ports = refuse.host_ports(workload)
    body: dict[str, Any] = {
        "Image": container.image,
        "Labels": labels(workload, node_id=node_id),
        "Env": templates.expand_env(workload),
        "StopTimeout": grace_s(container),
        "ExposedPorts": {_port_key(port): {} for port in ports},
        "HostConfig": _host_config(workload, ports, files),
    }
    optional: dict[str, Any] = {
        "Entrypoint": list(container.command),
        "Cmd": list(container.args),
        "WorkingDir": container.dir,
        "User": container.user,
        "Tty": container.tty,
        "OpenStdin": container.open_stdin,
        "StopSignal": container.stop_signal,
        "Hostname": templates.expand(container.hostname, workload, field="hostname"),
        "Healthcheck": _health(container.healthcheck),
    }
    body.update({name: value for name, value in optional.items() if value})
    return body


def create_query(workload: base.Workload, *, api: client.Version) -> dict[str, str]:
    """The parameters of POST /containers/create."""
    wanted = platform(workload) if api >= PLATFORM else ""
    return {"name": workload.name, **({"platform": wanted} if wanted else {})}


def platform(workload: base.Workload) -> str:
    """Which of the platforms that the service may run on this node is, as "os/architecture"; empty when it names none.

    An engine that is told refuses an image of another one, which would only fail to start.
    """
    mine = platforms.spelled(workload.node.description.platform)
    wishes = [platforms.spelled(wish) for wish in workload.spec.task.placement.platforms]
    return "/".join(mine) if all(mine) and mine in wishes else ""


def _too_new(container: pb.ContainerSpec, api: client.Version) -> list[str]:
    found = {
        "health check start interval": (START_INTERVAL, container.healthcheck.start_interval),
        "bind create mountpoint": (
            CREATE_MOUNTPOINT,
            any(mount.bind_options.create_mountpoint for mount in container.mounts),
        ),
        "volume subpath": (SUBPATH, any(mount.volume_options.subpath for mount in container.mounts)),
    }
    return [
        f"{name} (needs Engine API {since[0]}.{since[1]}, this engine has {api[0]}.{api[1]})"
        for name, (since, is_set) in found.items()
        if is_set and api < since
    ]


def _host_config(workload: base.Workload, ports: list[pb.PortConfig], files: Sequence[str]) -> dict[str, Any]:
    container = workload.container
    resources = workload.spec.task.resources
    limits = resources.limits
    log_driver = workload.spec.task.log_driver
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        published = str(port.published_port) if port.published_port else ""  # empty: the engine picks one
        bindings.setdefault(_port_key(port), []).append({"HostPort": published})
    config: dict[str, Any] = {"RestartPolicy": {"Name": "no"}}  # restarting is the managers' business
    optional: dict[str, Any] = {
        "PortBindings": bindings,
        "Mounts": [
            *(_mount(mount, workload) for mount in container.mounts),
            *(
                {"Type": "bind", "Source": source, "Target": file.path, "ReadOnly": True}
                for file, source in zip(workload.files, files, strict=True)
            ),
        ],
        "ReadonlyRootfs": container.read_only,
        "GroupAdd": list(container.groups),
        "ExtraHosts": [line for entry in container.hosts for line in _extra_hosts(entry)],
        "Dns": list(container.dns_config.nameservers),
        "DnsSearch": list(container.dns_config.search),
        "DnsOptions": list(container.dns_config.options),
        "Sysctls": dict(container.sysctls),
        "CapAdd": list(container.capability_add),
        "CapDrop": list(container.capability_drop),
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in container.ulimits],
        "OomScoreAdj": container.oom_score_adj,
        "Isolation": container.isolation,
        "NanoCpus": limits.nano_cpus,
        "Memory": limits.memory_bytes,
        "PidsLimit": limits.pids,
        "SecurityOpt": security.options(container.privileges),
        "ShmSize": container.shm_size_bytes,
        "Devices": security.devices(container.devices),
        "Privileged": container.privileged,
        "LogConfig": {"Type": log_driver.name, "Config": dict(log_driver.options)} if log_driver.name else None,
    }
    if log_driver.options and not log_driver.name:
        optional["LogConfig"] = {"Type": "", "Config": dict(log_driver.options)}  # the engine's default driver
    config.update({name: value for name, value in optional.items() if value})
    if limits.memory_bytes and resources.HasField("swap_bytes"):
        config["MemorySwap"] = (
            resources.swap_bytes if resources.swap_bytes < 0 else limits.memory_bytes + resources.swap_bytes
        )
    if resources.HasField("memory_swappiness") and resources.memory_swappiness >= 0:
        config["MemorySwappiness"] = resources.memory_swappiness
    if container.HasField("init"):
        config["Init"] = container.init
    return config


def _health(config: pb.HealthConfig) -> dict[str, Any] | None:
    if config.test and config.test[0] not in HEALTH_KINDS:  # engines take such a check and never run it
        raise base.TaskFatal(f"health check {list(config.test)}: the docker runtime has CMD, CMD-SHELL and NONE")
    values: dict[str, Any] = {
        "Test": list(config.test),
        "Interval": config.interval,
        "Timeout": config.timeout,
        "StartPeriod": config.start_period,
        "StartInterval": config.start_interval,
        "Retries": config.retries,
    }
    return {name: value for name, value in values.items() if value} or None


def _mount(mount: pb.Mount, workload: base.Workload) -> dict[str, Any]:
    def expand(text: str, what: str) -> str:
        return templates.expand(text, workload, field=f"mount {what} {text}")

    body: dict[str, Any] = {"Type": MOUNT_TYPES[mount.type], "Target": expand(mount.target, "target")}
    if mount.source:
        body["Source"] = expand(mount.source, "source")
    if mount.read_only:
        body["ReadOnly"] = True
    bind, volume, tmpfs = mount.bind_options, mount.volume_options, mount.tmpfs_options
    driver = volume.driver_config
    options: dict[str, dict[str, Any]] = {
        "BindOptions": {
            "Propagation": bind.propagation,
            "NonRecursive": bind.non_recursive,
            "CreateMountpoint": bind.create_mountpoint,
        },
        "VolumeOptions": {
            "NoCopy": volume.no_copy,
            "Labels": {name: expand(value, "label") for name, value in volume.labels.items()},
            "DriverConfig": {
                "Name": driver.name,
                "Options": {name: expand(value, "option") for name, value in driver.options.items()},
            }
            if driver.name or driver.options
            else None,
            "Subpath": volume.subpath,
        },
        "TmpfsOptions": {"SizeBytes": tmpfs.size_bytes, "Mode": tmpfs.mode},
    }
    for name, fields in options.items():
        wanted = {field: value for field, value in fields.items() if value}
        if wanted:
            body[name] = wanted
    return body


def _extra_hosts(entry: str) -> list[str]:
    """ "IP name [alias..]" as the engine's "name:IP" entries. Raises TaskFatal."""
    address, *names = entry.split()
    if not names:
        raise base.TaskFatal(f"host entry {entry!r}: write 'IP name'")
    return [f"{name}:{address}" for name in names]


def _port_key(port: pb.PortConfig) -> str:
    return f"{port.target_port}/{PROTOCOLS[port.protocol]}"


def observation(container: dict[str, Any]) -> base.Observation:
    """What GET /containers/ID/json says."""
    state = container["State"]
    test = ((container.get("Config") or {}).get("Healthcheck") or {}).get("Test") or []
    health = (state.get("Health") or {}).get("Status", "")
    status, error, exit_code = state["Status"], state.get("Error") or "", int(state.get("ExitCode") or 0)
    if status in RUNNING:
        phase = base.Phase.RUNNING
    elif status in {"created", "initialized", "configured"} and not error:  # the last two are Podman's
        phase = base.Phase.CREATED
    else:
        phase = base.Phase.EXITED
    if phase is base.Phase.EXITED and state.get("OOMKilled") and exit_code:
        error = "out of memory"
    elif phase is base.Phase.EXITED and not error:
        error = killed_by(exit_code)
    return base.Observation(
        phase,
        container_id=container["Id"],
        pid=int(state.get("Pid") or 0),
        exit_code=exit_code if phase is base.Phase.EXITED else 0,
        healthy={"healthy": True, "unhealthy": False}.get(health),
        health_checked=bool(test) and test[0] != "NONE",
        error=error if phase is base.Phase.EXITED else "",
        ports=_published(container),
    )


def killed_by(exit_code: int) -> str:
    """The signal that ended a process, in words; empty when none did as far as the exit code tells."""
    number = exit_code - SIGNALLED
    if number not in signal.valid_signals():
        return ""
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def _published(container: dict[str, Any]) -> tuple[pb.PortConfig, ...]:
    protocols = {word: pb.PortProtocol.ValueType(number) for number, word in PROTOCOLS.items()}
    found: dict[tuple[int, int, pb.PortProtocol.ValueType], None] = {}
    for key, bindings in sorted(((container.get("NetworkSettings") or {}).get("Ports") or {}).items()):
        target, _, protocol = key.partition("/")
        for binding in bindings or []:  # one for each address family
            if binding.get("HostPort"):
                found[int(target), int(binding["HostPort"]), protocols[protocol or "tcp"]] = None
    return tuple(
        pb.PortConfig(
            target_port=target, published_port=published, protocol=protocol, publish_mode=pb.PUBLISH_MODE_HOST
        )
        for target, published, protocol in found
    )


def tasks(listed: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Task ID: container ID of those containers in GET /containers/json that were made for tasks."""
    found: dict[str, str] = {}
    for each in listed:
        task_id = (each.get("Labels") or {}).get(TASK, "")
        if task_id and any(name.endswith(f".{task_id}") for name in each.get("Names") or []):
            found[task_id] = each["Id"]
    return found


def label_filter(**wanted: str) -> str:
    """The `filters` parameter for our labels: node=.., task=.. ."""
    return json.dumps({"label": [f"io.skep.{name}={value}" for name, value in wanted.items()]})


def describe(info: dict[str, Any]) -> pb.NodeDescription:
    """What GET /info says about the machine, in the engine's words."""
    engine = pb.EngineDescription(engine_version=info.get("ServerVersion", ""), runtime="docker")
    for label in info.get("Labels") or []:
        name, _, value = label.partition("=")
        engine.labels[name] = value
    for kind, names in sorted((info.get("Plugins") or {}).items()):
        for name in names or []:
            engine.plugins.add(type=kind, name=name)
    return pb.NodeDescription(
        platform=pb.Platform(architecture=info.get("Architecture", ""), os=info.get("OSType", "")),
        resources=pb.Resources(
            nano_cpus=int(info.get("NCPU") or 0) * stamps.NANOS,
            memory_bytes=int(info.get("MemTotal") or 0),
            generic=[jsonmap.from_json(pb.GenericResource, each) for each in info.get("GenericResources") or []],
        ),
        engine=engine,
        disk=pb.DiskUsage(path=info.get("DockerRootDir") or ""),
    )
