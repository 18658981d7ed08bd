"""One sentence on why no node takes a task, with numbers: what is needed, and who comes nearest to having it."""

from collections.abc import Iterable

from manager.scheduler import filters, needs, nodes


def unplaced(loads: Iterable[nodes.NodeLoad], service_id: str, need: needs.Needs) -> str:
    """Why none of `loads` takes a task with these needs."""
    if need.unreadable:
        return f"no suitable node ({need.unreadable})"
    failing: dict[tuple[str, str], list[nodes.NodeLoad]] = {}
    seen = False
    for load in loads:
        seen = True
        refusal = filters.refusal(load, service_id, need)
        if refusal is not None:
            failing.setdefault(refusal, []).append(load)
    if not seen:
        return "no suitable node (the cluster has no nodes)"
    # The filter that turned most nodes away comes first, as in Docker's swarm mode.
    parts = sorted(failing.items(), key=lambda item: -len(item[1]))
    return f"no suitable node ({'; '.join(_part(key, turned_away, need) for key, turned_away in parts)})"


def _part(key: tuple[str, str], loads: list[nodes.NodeLoad], need: needs.Needs) -> str:
    name, detail = key
    count = len(loads)
    match name:
        case "ready":
            return f"{count} {detail}"
        case "cpus":
            best = max(loads, key=lambda load: load.cpus_free)
            free = filters.cpus(best.cpus_free)
            return f"needs {filters.cpus(need.nano_cpus)} CPUs, most free is {free} on {best.name}"
        case "memory":
            best = max(loads, key=lambda load: load.memory_free)
            free = filters.size(best.memory_free)
            return f"needs {filters.size(need.memory_bytes)} memory, most free is {free} on {best.name}"
        case "generic":
            best = max(loads, key=lambda load: load.generic_free.get(detail, 0))
            free = str(max(0, best.generic_free.get(detail, 0)))
            return f"needs {dict(need.generic)[detail]} {detail}, most free is {free} on {best.name}"
        case "plugin":
            return f"{count} without plugin {detail}"
        case "constraint":
            return f"{count} not {detail}" if "!=" not in detail else f"{count} excluded by {detail}"
        case "platform":
            wanted = " or ".join("/".join(part or "any" for part in platform) for platform in need.platforms)
            return f"{count} of another platform than {wanted}"
        case "port":
            return f"host port {detail} taken on {count}"
        case _:
            return f"{count} at the limit of {need.max_replicas} per node"
