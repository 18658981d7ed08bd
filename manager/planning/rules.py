"""Every rule by which a node turns a task away, with what is needed and what is there, and the nearest remedy.

The scheduler's own filter says which rule fails first; the rule is then waived and the filter asked again. So nothing
here can disagree with it.
"""

import dataclasses

from manager.scheduler import constraints, filters, needs, nodes
from manager.store import views
from skep import pb, platforms, stamps, tasknames

RULES_MAX = 20  # of one node
_MIB, _GIB = 1024**2, 1024**3
_CURES = {
    "disk": "free disk space on {}",
    "memory": "free memory on {}",
    "engine": "start the container engine on {}",
}
_NEVER = 1000.0  # the price of what nobody can do


@dataclasses.dataclass(frozen=True, slots=True)
class Failing:
    """One rule that one node fails."""

    rule: str  # ready, cpus, memory, generic, constraint, platform, port, replicas, ..
    need: str
    have: str
    remedy: str  # what a person can do about it; "" for nothing
    price: float  # of the remedy, to compare with others; no unit

    @property
    def text(self) -> str:
        """Need and have in a few words."""
        return f"needs {self.need}: {self.have}" if self.have else f"needs {self.need}"


def failing(state: views.View, load: nodes.NodeLoad, service_id: str, need: needs.Needs) -> list[Failing]:
    """All rules that the node fails, in the order of the filter."""
    found: list[Failing] = []
    if need.unreadable:
        return [Failing("constraint", need.unreadable, "", "correct the constraint", 1.0)]
    while len(found) < RULES_MAX:
        refusal = filters.refusal(load, service_id, need)
        if refusal is None:
            break
        name, detail = refusal
        found.append(_describe(state, load, service_id, need, name, detail))
        waived = _waived(load, need, name, detail)
        if waived is None:
            break
        load, need = waived
    return found


def _waived(
    load: nodes.NodeLoad, need: needs.Needs, name: str, detail: str
) -> tuple[nodes.NodeLoad, needs.Needs] | None:
    """The same without that rule; None when nobody knows how."""
    match name:
        case "ready":
            willing = pb.Node()
            willing.CopyFrom(load.node)
            willing.status.state = pb.NODE_STATE_READY
            willing.spec.availability = pb.NODE_AVAILABILITY_ACTIVE
            del willing.description.conditions[:]
            return dataclasses.replace(load, node=willing), need
        case "cpus":
            return load, dataclasses.replace(need, nano_cpus=0)
        case "memory":
            return load, dataclasses.replace(need, memory_bytes=0)
        case "generic":
            return load, dataclasses.replace(need, generic=tuple(each for each in need.generic if each[0] != detail))
        case "constraint":
            return load, dataclasses.replace(need, wanted=tuple(each for each in need.wanted if each.text != detail))
        case "platform":
            return load, dataclasses.replace(need, platforms=())
        case "port":
            ports = tuple(port for port in need.ports if needs.port_name(port) != detail)
            return load, dataclasses.replace(need, ports=ports)
        case "replicas":
            return load, dataclasses.replace(need, max_replicas=0)
        case _:
            return None


def _describe(
    state: views.View, load: nodes.NodeLoad, service_id: str, need: needs.Needs, name: str, detail: str
) -> Failing:
    where = load.name
    match name:
        case "ready":
            return _unready(load, detail)
        case "cpus":
            lower = f", or lower --reserve-cpu to {filters.cpus(load.cpus_free)}" if load.cpus_free > 0 else ""
            short = need.nano_cpus - max(0, load.cpus_free)
            return Failing(
                name, f"{filters.cpus(need.nano_cpus)} CPUs", f"{filters.cpus(load.cpus_free)} free",
                f"free {filters.cpus(short)} CPUs on {where}{lower}", 1.0 + short / stamps.NANOS,
            )  # fmt: skip
        case "memory":
            short = need.memory_bytes - max(0, load.memory_free)
            return Failing(
                name, f"{filters.size(need.memory_bytes)} memory", f"{filters.size(load.memory_free)} free",
                f"free {filters.size(short)} on {where}{_lower_memory(load.memory_free)}", 1.0 + short / _GIB,
            )  # fmt: skip
        case "generic":
            wanted, there = dict(need.generic)[detail], max(0, load.generic_free.get(detail, 0))
            return Failing(
                name, f"{wanted} {detail}", f"{there} free", f"free {wanted - there} {detail} on {where}",
                3.0 + wanted - there,
            )  # fmt: skip
        case "constraint":
            constraint = next(each for each in need.wanted if each.text == detail)
            return _unsatisfied(load, constraint)
        case "platform":
            wanted_words = " or ".join("/".join(part or "any" for part in platform) for platform in need.platforms)
            have = "/".join(platforms.spelled(load.node.description.platform))
            return Failing(name, f"platform {wanted_words}", have, f"an image for {have}", 20.0)
        case "port":
            holder = _holder(state, load, detail)
            return Failing(
                name, f"host port {detail}", f"taken by {holder}",
                f"move {holder} off {where}, or publish another port", 4.0,
            )  # fmt: skip
        case "replicas":
            count = load.services.get(service_id, 0)
            return Failing(
                name, f"fewer than {need.max_replicas} tasks of the service", f"{count} there",
                "raise --replicas-max-per-node, or add a node", 2.0,
            )  # fmt: skip
        case _:
            return Failing(name, detail or name, "", "", _NEVER)


def _unready(load: nodes.NodeLoad, word: str) -> Failing:
    node = load.node
    if node.status.state == pb.NODE_STATE_READY and node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE:
        wrong = node.description.conditions
        remedy = _CURES.get(wrong[0].kind, "see to {}").format(load.name)
        return Failing("ready", "a node that is well", "; ".join(each.message for each in wrong), remedy, 5.0)
    if node.status.state == pb.NODE_STATE_READY:
        return Failing("ready", "an active node", word, f"skep node activate {load.name}", 2.0)
    remedy = f"wait until {load.name} is heard from" if word == "not heard from" else f"bring {load.name} back"
    return Failing("ready", "a ready node", word, remedy, 8.0)


def _lower_memory(free_bytes: int) -> str:
    """The highest reservation that fits, as it is typed."""
    if free_bytes < _MIB:
        return ""
    typed = f"{free_bytes // _GIB}g" if free_bytes % _GIB == 0 else f"{free_bytes // _MIB}m"
    return f", or lower --reserve-memory to {typed}"


def _unsatisfied(load: nodes.NodeLoad, constraint: constraints.Constraint) -> Failing:
    key = constraint.key
    if key.lower() == "node.ip":
        value: str | None = load.node.status.addr
    else:
        value = constraints.attribute(key, load.node)
    have = "no such property on any node" if value is None else f"{key}={value}" if value else f"no {key}"
    remedy = f"drop it with --constraint-rm {constraint.text}"
    if key.lower().startswith(constraints.NODE_LABEL):
        label = key[len(constraints.NODE_LABEL) :]
        change = f"--label-add {label}={constraint.value}" if constraint.wants_equal else f"--label-rm {label}"
        return Failing("constraint", constraint.text, have, f"skep node update {change} {load.name}", 1.5)
    return Failing("constraint", constraint.text, have, remedy, 6.0)


def _holder(state: views.View, load: nodes.NodeLoad, port_name: str) -> str:
    """The service whose task has the port there."""
    for task in state.tasks.where("node", load.node.id):
        if not pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING:
            continue
        ports = needs.host_ports(state.revision(task.revision_id).spec.endpoint)
        if any(needs.port_name(port) == port_name for port in ports):
            return f"{task.service_name}.{tasknames.place(task)}" if task.slot else task.service_name
    return "another task"


def nearest(verdicts: "list[tuple[str, list[Failing]]]") -> str:
    """What is the least to do so that one of the nodes (name, rules that it fails) takes the task; "" for nothing."""
    best = min(
        (failed for _, failed in verdicts if failed and all(each.remedy for each in failed)),
        key=lambda failed: (sum(each.price for each in failed), len(failed)),
        default=None,
    )
    return "" if best is None else "; and ".join(each.remedy for each in best)
