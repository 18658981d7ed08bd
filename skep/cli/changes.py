"""What service update makes of an existing specification. Pure; works on a copy.

Everything that the flags do not mention stays as it was: the API replaces whole specifications.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from skep import errors
from skep.cli import parts, specs

Json = dict[str, Any]


def update(spec: Mapping[str, Any], given: specs.Given, *, network_ids: Mapping[str, str] | None = None) -> Json:
    """The specification after the flags. `network_ids`: IDs of networks by the names that flags use.

    Raises Invalid for flags that do not fit each other or the service.
    """
    changed: Json = copy.deepcopy(dict(spec))
    task = specs.within(changed, "TaskTemplate")
    container = specs.within(task, "ContainerSpec")
    specs.common(changed, given)
    _scale(changed, given)
    _environment(container, given)
    for flag, owner in (("label", changed), ("container_label", container)):
        _mapping(owner, "Labels", given, flag)
    _mapping(container, "Sysctls", given, "sysctl")
    _ports(changed, given)
    _keyed(container, "Mounts", given, "mount", lambda each: str(each.get("Target", "")))
    _keyed(container, "Ulimits", given, "ulimit", lambda each: str(each.get("Name", "")))
    _keyed(container, "Hosts", given, "host", str, remove=_same_host)
    _keyed(container, "Groups", given, "group", str)
    _dns(container, given)
    _capabilities(container, given)
    _placement(task, given)
    _generic(task, given)
    _networks(changed, given, network_ids or {})
    if given.get("force"):
        task["ForceUpdate"] = int(task.get("ForceUpdate") or 0) + 1
    return changed


def scale(spec: Mapping[str, Any], replicas: int) -> Json:
    """The specification with another number of tasks. Raises Invalid for services without replicas."""
    changed = copy.deepcopy(dict(spec))
    _scale(changed, {"replicas": replicas})
    return changed


def _scale(spec: Json, given: specs.Given) -> None:
    replicas, concurrent = given.get("replicas"), given.get("max_concurrent")
    mode = specs.mode_of(spec)
    if replicas is not None:
        if mode == "replicated":
            specs.within(specs.within(spec, "Mode"), "Replicated")["Replicas"] = replicas
        elif mode == "replicated-job":
            spec["Mode"]["ReplicatedJob"]["TotalCompletions"] = replicas
        else:
            name = spec.get("Name", "")
            raise errors.Invalid(
                f"service {name} is {mode}: it has as many tasks as there are nodes, so drop --replicas"
            )
    if concurrent is not None:
        if mode != "replicated-job":
            raise errors.Invalid("--max-concurrent is for replicated jobs only; drop it")
        spec["Mode"]["ReplicatedJob"]["MaxConcurrent"] = concurrent


def _put(owner: Json, key: str, value: Any) -> None:
    """Sets a value, or removes the key when nothing is left in it."""
    if value:
        owner[key] = value
    else:
        owner.pop(key, None)


def _mapping(owner: Json, key: str, given: specs.Given, flag: str) -> None:
    add, remove = given.get(f"{flag}_add") or (), given.get(f"{flag}_rm") or ()
    if not add and not remove:
        return
    merged = dict(owner.get(key) or {})
    for name in remove:
        merged.pop(name.partition("=")[0], None)
    merged.update(dict(add))
    owner[key] = merged


def _environment(container: Json, given: specs.Given) -> None:
    add, remove = given.get("env_add") or (), given.get("env_rm") or ()
    if not add and not remove:
        return
    merged = {line.partition("=")[0]: line for line in container.get("Env") or ()}
    for name in remove:
        merged.pop(name.partition("=")[0], None)
    merged.update({line.partition("=")[0]: line for line in specs.environment((), add)})
    _put(container, "Env", list(merged.values()))


def _keyed(
    owner: Json,
    key: str,
    given: specs.Given,
    flag: str,
    name_of: Callable[[Any], str],
    *,
    remove: Callable[[Any, str], bool] | None = None,
) -> None:
    """A list whose members have a name: an added one replaces the one of the same name."""
    add, names = given.get(f"{flag}_add") or (), given.get(f"{flag}_rm") or ()
    if not add and not names:
        return
    gone = remove or (lambda each, name: name_of(each) == name)
    kept = [each for each in owner.get(key) or () if not any(gone(each, name) for name in names)]
    merged = {name_of(each): each for each in kept}
    merged.update({name_of(each): each for each in add})
    _put(owner, key, list(merged.values()))


def _same_host(line: str, wanted: str) -> bool:
    """Whether `ip name` is what `name` or `name:ip` asks to remove."""
    address, _, names = line.partition(" ")
    name, _, ip = wanted.partition(":")
    return name in names.split() and ip in ("", address)


def _ports(spec: Json, given: specs.Given) -> None:
    add, remove = given.get("publish_add") or (), given.get("publish_rm") or ()
    if not add and not remove:
        return
    endpoint = specs.within(spec, "EndpointSpec")
    kept = list(endpoint.get("Ports") or ())
    for text in remove:
        try:
            wanted = parts.publish(text)
        except ValueError as problem:
            raise errors.Invalid(f"Invalid value for '--publish-rm': {problem}") from None
        targets = {(port["TargetPort"], port["Protocol"]) for port in wanted}
        kept = [port for port in kept if (port["TargetPort"], port.get("Protocol", "tcp")) not in targets]
    new = [port for group in add for port in group]
    kept += [port for port in new if port not in kept]
    endpoint["Ports"] = kept


def _dns(container: Json, given: specs.Given) -> None:
    flags = (("dns", "Nameservers"), ("dns_search", "Search"), ("dns_option", "Options"))
    if any(given.get(f"{flag}_{verb}") for flag, _ in flags for verb in ("add", "rm")):
        config = specs.within(container, "DNSConfig")
        for flag, key in flags:
            _keyed(config, key, given, flag, str)


def _capabilities(container: Json, given: specs.Given) -> None:
    add = [specs.capability(name) for name in given.get("cap_add") or ()]
    drop = [specs.capability(name) for name in given.get("cap_drop") or ()]
    if not add and not drop:
        return
    for key, new, other in (("CapabilityAdd", add, drop), ("CapabilityDrop", drop, add)):
        # What is dropped now was perhaps added before, and the other way round: the later wish counts.
        kept = [name for name in container.get(key) or () if name not in other]
        _put(container, key, sorted(dict.fromkeys([*kept, *new])))


def _placement(task: Json, given: specs.Given) -> None:
    flags = ("constraint", "placement_pref")
    if not any(given.get(f"{flag}_{verb}") for flag in flags for verb in ("add", "rm")):
        return
    placement = specs.within(task, "Placement")
    _keyed(
        placement,
        "Constraints",
        given,
        "constraint",
        _spaceless,
        remove=lambda each, name: _spaceless(each) == _spaceless(name),
    )
    add, remove = given.get("placement_pref_add") or (), given.get("placement_pref_rm") or ()
    kept = [each for each in placement.get("Preferences") or () if each not in remove]
    _put(placement, "Preferences", [*kept, *add])


def _spaceless(text: str) -> str:
    return "".join(text.split())


def _generic(task: Json, given: specs.Given) -> None:
    add, remove = given.get("generic_resource_add") or (), given.get("generic_resource_rm") or ()
    if not add and not remove:
        return
    reservations = specs.within(specs.within(task, "Resources"), "Reservations")

    def kind(each: Json) -> str:
        return str((each.get("DiscreteResourceSpec") or each.get("NamedResourceSpec") or {}).get("Kind", ""))

    merged = {kind(each): each for each in reservations.get("GenericResources") or () if kind(each) not in remove}
    merged.update({kind(each): each for group in add for each in group})
    _put(reservations, "GenericResources", list(merged.values()))


def _networks(spec: Json, given: specs.Given, ids: Mapping[str, str]) -> None:
    add: Sequence[Json] = given.get("network_add") or ()
    remove: Iterable[str] = given.get("network_rm") or ()
    if not add and not remove:
        return
    task = specs.within(spec, "TaskTemplate")
    gone = {name for each in remove for name in (each, ids.get(each, each))}
    current = task.get("Networks") or spec.get("Networks") or ()
    merged = {each["Target"]: each for each in current if each["Target"] not in gone}
    for each in add:
        target = ids.get(each["Target"], each["Target"])
        merged[target] = {**each, "Target": target}
    _put(task, "Networks", list(merged.values()))
