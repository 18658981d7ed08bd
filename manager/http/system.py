"""Handlers about this machine: ping, version, info, metrics."""

import platform
from typing import Any

import prometheus_client

import skep
from manager.http import messages, render, routing
from skep import errors, jsonmap, pb, stamps

_DOTTED = f"{messages.API_VERSION[0]}.{messages.API_VERSION[1]}"
_DOTTED_MIN = f"{messages.API_VERSION_MIN[0]}.{messages.API_VERSION_MIN[1]}"


async def ping(call: messages.Call) -> messages.Response:
    info = call.context.machine.info()
    standing = info.state
    if info.state == "active":
        standing = "active/manager" if call.context.machine.manager is not None else "active/worker"
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
        "Swarm": standing,
    }
    return messages.Response(headers=headers, body=b"OK")


async def version(call: messages.Call) -> messages.Response:
    uname = platform.uname()
    described = call.context.machine.info().description
    engine = described.engine
    details = {
        "ApiVersion": _DOTTED,
        "Arch": _go_arch(uname.machine),
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": uname.release,
        "MinAPIVersion": _DOTTED_MIN,
        "Os": "linux",
    }
    components = [{"Name": "Engine", "Version": skep.__version__, "Details": details}]
    if engine.runtime:
        components.append({"Name": engine.runtime, "Version": engine.engine_version, "Details": {}})
    return messages.json_response(
        {
            "Platform": {"Name": "skep"},
            "Components": components,
            "Version": skep.__version__,
            "ApiVersion": _DOTTED,
            "MinAPIVersion": _DOTTED_MIN,
            "GitCommit": "",
            "GoVersion": "",
            "Os": "linux",
            "Arch": _go_arch(uname.machine),
            "KernelVersion": uname.release,
            "BuildTime": "",
        }
    )


def _go_arch(machine: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}.get(machine, machine)


async def info(call: messages.Call) -> messages.Response:
    """What is known here and now. Answered from this machine's own state, so that it works without a leader."""
    machine = call.context.machine
    known = machine.info()
    described = known.description
    uname = platform.uname()
    runtime = described.engine.runtime
    return messages.json_response(
        {
            "ID": known.node_id,
            "Name": known.hostname,
            "ServerVersion": skep.__version__,
            "OperatingSystem": "skep" + (f" (tasks run on {runtime})" if runtime else ""),
            "OSType": described.platform.os or "linux",
            "Architecture": described.platform.architecture or uname.machine,
            "KernelVersion": uname.release,
            "NCPU": described.resources.nano_cpus // 1_000_000_000,
            "MemTotal": described.resources.memory_bytes,
            "Driver": "",
            "DriverStatus": None,
            "Containers": 0,
            "ContainersRunning": 0,
            "ContainersPaused": 0,
            "ContainersStopped": 0,
            "Images": 0,
            "Plugins": {"Volume": [], "Network": [], "Authorization": None, "Log": []},
            "Labels": [f"{key}={value}" for key, value in sorted(described.engine.labels.items())],
            "SecurityOptions": [],
            "Runtimes": {},
            "SystemTime": jsonmap.format_time(stamps.stamp(machine.clock.now())),
            "Warnings": None,
            "Swarm": _swarm(call),
        }
    )


def _swarm(call: messages.Call) -> dict[str, Any]:
    machine = call.context.machine
    known = machine.info()
    manager = machine.manager
    shown: dict[str, Any] = {
        "NodeID": known.node_id,
        "NodeAddr": known.node_addr,
        "LocalNodeState": known.state,
        "ControlAvailable": manager is not None and known.state == "active",
        "Error": known.error,
        "RemoteManagers": [{"NodeID": member.node_id, "Addr": member.addr} for member in known.managers] or None,
    }
    if manager is None:
        return shown
    managers = manager.reachability()
    view = manager.store.view()
    shown["Nodes"] = len(view.nodes)
    shown["Managers"] = len(managers)
    try:
        shown["Cluster"] = render.cluster(view.cluster, with_tokens=False)
    except errors.Unavailable:
        shown["Cluster"] = jsonmap.to_json(pb.Cluster(id=known.cluster_id))
    return shown


async def metrics(call: messages.Call) -> messages.Response:
    body = prometheus_client.generate_latest(call.context.registry)
    return messages.Response(headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}, body=body)


ROUTES = (
    routing.Route("GET", "/_ping", routing.Scope.LOCAL, ping),
    routing.Route("GET", "/version", routing.Scope.LOCAL, version),
    routing.Route("GET", "/info", routing.Scope.LOCAL, info),
    routing.Route("GET", "/metrics", routing.Scope.LOCAL, metrics),
)
