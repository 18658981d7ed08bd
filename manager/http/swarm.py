"""Handlers for the cluster itself: init, join, leave, settings, join tokens."""

import ipaddress
from typing import Any

from manager.ca import authority
from manager.control import cluster
from manager.http import backend, messages, render, routing
from skep import errors, jsonmap, pb

ALREADY_IN = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
NOT_IN = "This node is not part of a swarm"
LEAVING = "You are attempting to leave the swarm on a node that is participating as a manager. "
FORCE = "Use `--force` to ignore this message."
PORT_MAX = 65_535


async def inspect_swarm(call: messages.Call) -> messages.Response:
    view = call.context.manager.store.view()
    return messages.json_response(render.cluster(view.cluster, with_tokens=True))


async def init_swarm(call: messages.Call) -> messages.Response:
    body = _Body(call)
    if not body.flag("ForceNewCluster"):
        _check_outside(call)
    if body.flag("AutoLockManagers"):
        raise errors.Unimplemented("this version of skep cannot lock its managers (--autolock)")
    wished = jsonmap.from_json(pb.ClusterSpec, body.section("Spec"), path="Spec")
    if wished.encryption.auto_lock_managers:
        raise errors.Unimplemented("this version of skep cannot lock its managers (--autolock)")
    node_id = await call.context.machine.init(
        backend.InitRequest(
            listen_addr=body.address("ListenAddr"),
            advertise_addr=body.address("AdvertiseAddr"),
            availability=body.availability(),
            force_new_cluster=body.flag("ForceNewCluster"),
            spec=authority.complete_spec(wished),
        )
    )
    return messages.json_response(node_id)


async def join_swarm(call: messages.Call) -> messages.Response:
    body = _Body(call)
    _check_outside(call)
    remotes = body.data.get("RemoteAddrs") or []
    if not isinstance(remotes, list) or not all(isinstance(addr, str) and addr for addr in remotes):
        raise errors.Invalid("RemoteAddrs: expected a list of addresses of managers")
    if not remotes:
        raise errors.Invalid("at least 1 RemoteAddr is required to join")
    token = body.text("JoinToken")
    if not token:
        raise errors.Invalid("JoinToken: a join token is required; a manager shows it with: skep token worker")
    await call.context.machine.join(
        backend.JoinRequest(
            remote_addrs=remotes,
            token=token,
            listen_addr=body.address("ListenAddr"),
            advertise_addr=body.address("AdvertiseAddr"),
            availability=body.availability(),
        )
    )
    return messages.empty_response()


async def leave_swarm(call: messages.Call) -> messages.Response:
    machine = call.context.machine
    force = call.flag("force")
    if machine.info().state == "inactive":
        raise errors.Unavailable(NOT_IN)
    manager = machine.manager
    if manager is not None and not force:
        raise errors.Unavailable(_why_not_leave(manager))
    await machine.leave(force=force)
    return messages.empty_response()


def _why_not_leave(manager: backend.Manager) -> str:
    standing = manager.reachability()
    total = len(standing)
    if total <= 1:
        return LEAVING + "Removing the last manager erases all current state of the swarm. " + FORCE
    left = sum(one.reachability == pb.REACHABILITY_REACHABLE for key, one in standing.items() if key != manager.node_id)
    if left <= total // 2:
        return (
            LEAVING
            + f"Removing this node leaves {left} managers out of {total}. Without a Raft quorum your swarm will "
            "be inaccessible. " + FORCE
        )
    return LEAVING + FORCE


async def update_swarm(call: messages.Call) -> messages.Response:
    version = call.version("swarm")
    data = call.json()
    if call.flag("rotateManagerUnlockKey"):
        raise errors.Unimplemented("this version of skep cannot lock its managers: there is no unlock key to rotate")
    await call.context.control.update_cluster(
        cluster.Update(
            spec=jsonmap.from_json(pb.ClusterSpec, {} if data is None else data),
            version=version,
            rotate_worker_token=call.flag("rotateWorkerToken"),
            rotate_manager_token=call.flag("rotateManagerToken"),
        )
    )
    return messages.empty_response()


async def unlock_key(call: messages.Call) -> messages.Response:
    _ = call.context.manager
    return messages.json_response({"UnlockKey": ""})


async def unlock(call: messages.Call) -> messages.Response:
    if call.context.machine.info().state == "inactive":
        raise errors.Unavailable(NOT_IN)
    return messages.error_response(409, "swarm is not locked")


async def show_leader(call: messages.Call) -> messages.Response:
    """Who leads, as far as this manager knows; empty strings while nobody does."""
    manager = call.context.manager
    leader_id = manager.leader_id
    standing = manager.reachability().get(leader_id)
    return messages.json_response({"NodeID": leader_id, "Addr": standing.addr if standing is not None else ""})


def _check_outside(call: messages.Call) -> None:
    if call.context.machine.info().state not in ("inactive", "error"):
        raise errors.Unavailable(ALREADY_IN)


class _Body:
    """The JSON of init and join, which no message describes."""

    def __init__(self, call: messages.Call) -> None:
        data = call.json()
        if data is not None and not isinstance(data, dict):
            raise errors.Invalid("expected an object")
        self.data: dict[str, Any] = data or {}

    def text(self, name: str) -> str:
        value = self.data.get(name)
        if value is not None and not isinstance(value, str):
            raise errors.Invalid(f"{name}: expected a string")
        return value or ""

    def flag(self, name: str) -> bool:
        value = self.data.get(name)
        if value is not None and not isinstance(value, bool):
            raise errors.Invalid(f"{name}: expected true or false")
        return bool(value)

    def section(self, name: str) -> Any:
        value = self.data.get(name)
        return {} if value is None else value

    def availability(self) -> pb.NodeAvailability.ValueType:
        word = self.text("Availability")
        words = jsonmap.words_of(pb.NodeAvailability)
        if word and word not in words:
            raise errors.Invalid(f'invalid Availability: "{word}"')
        number: pb.NodeAvailability.ValueType = words.get(word, 0)  # type: ignore[assignment]
        return number

    def address(self, name: str) -> str:
        """A host, a port behind it or not; the daemon decides what is missing."""
        value = self.text(name)
        if not value:
            return ""
        host, port = _split(value)
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= PORT_MAX):
            raise errors.Invalid(f"{name}: invalid port in {value!r}")
        if not host and not port:
            raise errors.Invalid(f"{name}: {value!r} is not an address: write host or host:port")
        return value


def _split(address: str) -> tuple[str, str]:
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, rest.removeprefix(":")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        host, _, port = address.partition(":")
        return host, port
    return address, ""


ROUTES = (
    routing.Route("GET", "/swarm", routing.Scope.READ, inspect_swarm),
    routing.Route("POST", "/swarm/init", routing.Scope.LOCAL, init_swarm),
    routing.Route("POST", "/swarm/join", routing.Scope.LOCAL, join_swarm),
    routing.Route("POST", "/swarm/leave", routing.Scope.LOCAL, leave_swarm),
    routing.Route("POST", "/swarm/update", routing.Scope.WRITE, update_swarm),
    routing.Route("GET", "/swarm/unlockkey", routing.Scope.LOCAL, unlock_key),
    routing.Route("POST", "/swarm/unlock", routing.Scope.LOCAL, unlock),
    routing.Route("GET", "/skep/v1/leader", routing.Scope.LOCAL, show_leader),
)
