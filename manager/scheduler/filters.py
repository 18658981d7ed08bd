"""Which nodes can take a task, and in which words one that cannot is counted.

The order is that of Docker's swarm mode: ready (and well), resources, plugins, constraints, platform, host ports,
replicas per node. A node is counted under the first that it fails.
"""

from typing import TYPE_CHECKING

from manager.scheduler import constraints, needs
from manager.store import tables
from skep import pb, platforms, stamps

if TYPE_CHECKING:
    from manager.scheduler import nodes

_STATE = {
    pb.NODE_STATE_UNKNOWN: "not heard from",
    pb.NODE_STATE_DOWN: "down",
    pb.NODE_STATE_DISCONNECTED: "disconnected",
}
_AVAILABILITY = {pb.NODE_AVAILABILITY_PAUSE: "paused", pb.NODE_AVAILABILITY_DRAIN: "drained"}
_UNITS = (("TB", 1000**4), ("GB", 1000**3), ("MB", 1000**2), ("kB", 1000))


def unready(node: pb.Node) -> str:
    """Why the node takes no new tasks at all, in a word; "" when it does."""
    if tables.takes(node):
        return ""
    if node.status.state != pb.NODE_STATE_READY:
        return _STATE.get(node.status.state, "not ready")
    if node.spec.availability != pb.NODE_AVAILABILITY_ACTIVE:
        return _AVAILABILITY.get(node.spec.availability, "not active")
    return node.description.conditions[0].summary


def allowed(node: pb.Node, need: needs.Needs) -> bool:
    """Plugins, constraints and platform: what no placement changes."""
    return not missing_plugin(node, need) and constraints.matches(need.wanted, node) and _platform_fits(node, need)


def room(load: "nodes.NodeLoad", service_id: str, need: needs.Needs) -> bool:
    """Resources, host ports, replicas per node: what every placement changes."""
    if need.nano_cpus > load.cpus_free or need.memory_bytes > load.memory_free:
        # A reservation of nothing always fits, also where more is promised than there is.
        if need.nano_cpus and need.nano_cpus > load.cpus_free:
            return False
        if need.memory_bytes and need.memory_bytes > load.memory_free:
            return False
    for kind, count in need.generic:
        if count > load.generic_free.get(kind, 0):
            return False
    for port in need.ports:
        if port in load.ports:
            return False
    return not need.max_replicas or load.services.get(service_id, 0) < need.max_replicas


def missing_plugin(node: pb.Node, need: needs.Needs) -> str:
    """The first plugin that the node lacks, as "rexray (Volume)"; "" when it has all.

    A node whose engine reports no plugins of a kind at all is given the benefit of the doubt: its agent will tell.
    """
    if not need.plugins:
        return ""
    there: dict[str, dict[str, None]] = {}
    for plugin in node.description.engine.plugins:
        there.setdefault(plugin.type, {})[plugin.name.removesuffix(":latest")] = None
    for kind, name in need.plugins:
        if kind in there and name.removesuffix(":latest") not in there[kind]:
            return f"{name} ({kind})"
    return ""


def _platform_fits(node: pb.Node, need: needs.Needs) -> bool:
    if not need.platforms:
        return True
    os, architecture = platforms.spelled(node.description.platform)
    return any(
        wanted_os in {"", os} and wanted_architecture in {"", architecture}
        for wanted_os, wanted_architecture in need.platforms
    )


def refusal(load: "nodes.NodeLoad", service_id: str, need: needs.Needs) -> tuple[str, str] | None:
    """The first filter that the node fails, as (filter, detail); None when it would do."""
    word = unready(load.node)
    if word:
        return "ready", word
    if need.nano_cpus and need.nano_cpus > load.cpus_free:
        return "cpus", ""
    if need.memory_bytes and need.memory_bytes > load.memory_free:
        return "memory", ""
    for kind, count in need.generic:
        if count > load.generic_free.get(kind, 0):
            return "generic", kind
    lacking = missing_plugin(load.node, need)
    if lacking:
        return "plugin", lacking
    for constraint in need.wanted:
        if not constraints.satisfied(constraint, load.node):
            return "constraint", constraint.text
    if not _platform_fits(load.node, need):
        return "platform", ""
    for port in need.ports:
        if port in load.ports:
            return "port", needs.port_name(port)
    if need.max_replicas and load.services.get(service_id, 0) >= need.max_replicas:
        return "replicas", ""
    return None


def cpus(nano_cpus: int) -> str:
    """CPUs as people write them: 0.5."""
    return f"{max(0, nano_cpus) / stamps.NANOS:.3g}"


def size(size_bytes: int) -> str:
    """Bytes with a decimal unit, at most one digit after the point: 1.5 GB."""
    size_bytes = max(0, size_bytes)
    for unit, factor in _UNITS:
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size_bytes} bytes"
