"""Objects as the API shows them, for tests of the command."""

import datetime
from typing import Any

Json = dict[str, Any]

NOW = 1_800_000_000.0


def stamp(seconds: float) -> str:
    """Docker's RFC 3339 with nine decimals."""
    text = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.000000000Z"


def identifier(name: str) -> str:
    """25 characters, recognisable."""
    return (name.replace("-", "").replace(".", "") + "0" * 25)[:25]


def spec(name: str = "web", *, replicas: int | None = 3, mode: Json | None = None, **more: Any) -> Json:
    """A service's specification."""
    return {
        "Name": name,
        "Labels": {},
        "TaskTemplate": {"ContainerSpec": {"Image": "nginx:1.27"}, "ForceUpdate": 0},
        "Mode": mode if mode is not None else {"Replicated": {"Replicas": replicas}},
        **more,
    }


def service(name: str = "web", given: Json | None = None, **more: Any) -> Json:
    """A service."""
    return {
        "ID": identifier(f"svc{name}"),
        "Version": {"Index": 10},
        "CreatedAt": stamp(NOW - 100),
        "UpdatedAt": stamp(NOW - 100),
        "Spec": given if given is not None else spec(name),
        "Endpoint": {"Spec": {}},
        **more,
    }


def task(
    slot: int,
    state: str = "running",
    *,
    service_name: str = "web",
    desired: str = "running",
    node: str = "n1",
    error: str = "",
    age_s: float = 10.0,
    attempt: int = 1,
) -> Json:
    """A task of a service."""
    return {
        "ID": identifier(f"t{slot}x{attempt}{service_name}"),
        "Version": {"Index": 20},
        "CreatedAt": stamp(NOW - age_s),
        "UpdatedAt": stamp(NOW - age_s),
        "Spec": {"ContainerSpec": {"Image": "nginx:1.27@sha256:abc"}},
        "ServiceID": identifier(f"svc{service_name}"),
        **({"Slot": slot} if slot else {}),
        "NodeID": identifier(f"node{node}") if node else "",
        "Status": {"Timestamp": stamp(NOW - age_s), "State": state, **({"Err": error} if error else {})},
        "DesiredState": desired,
    }


def node(name: str = "n1", *, leader: bool = False, state: str = "ready", availability: str = "active") -> Json:
    """A node."""
    made: Json = {
        "ID": identifier(f"node{name}"),
        "Version": {"Index": 5},
        "CreatedAt": stamp(NOW - 1000),
        "UpdatedAt": stamp(NOW - 1000),
        "Spec": {"Labels": {}, "Role": "manager" if leader else "worker", "Availability": availability},
        "Description": {
            "Hostname": name,
            "Platform": {"Architecture": "x86_64", "OS": "linux"},
            "Resources": {"NanoCPUs": 2_000_000_000, "MemoryBytes": 4 << 30},
            "Engine": {"EngineVersion": "0.1.0"},
        },
        "Status": {"State": state, "Addr": "10.0.0.1"},
    }
    if leader:
        made["ManagerStatus"] = {"Leader": True, "Reachability": "reachable", "Addr": "10.0.0.1:2377"}
    return made


def info() -> Json:
    """GET /info on the manager n1."""
    own = identifier("noden1")
    return {
        "Name": "n1",
        "Swarm": {
            "NodeID": own,
            "NodeAddr": "10.0.0.1",
            "LocalNodeState": "active",
            "ControlAvailable": True,
            "RemoteManagers": [{"NodeID": own, "Addr": "10.0.0.1:2377"}],
        },
    }
