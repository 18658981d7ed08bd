"""Expands the placeholders that Docker's swarm mode allows in environment values, hostname, mounts and payloads.

Pure. Knows the fields `.Service.ID .Service.Name .Service.Labels .Node.ID .Node.Hostname .Node.Platform.OS
.Node.Platform.Architecture .Task.ID .Task.Name .Task.Slot`, `index .Service.Labels "key"` and `join SEP a b ..`; in
the data of secrets and configs also `secret "target"`, `config "target"` and `env "NAME"`; no other expression.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from agent.runtime import base
from skep import errors, pb, tasknames
from skep import expand as expansion


def fields(workload: base.Workload) -> dict[str, str]:
    """Every plain placeholder with its value."""
    task, node = workload.task, workload.node
    return {
        ".Service.ID": task.service_id,
        ".Service.Name": task.service_name,
        ".Node.ID": node.id,
        ".Node.Hostname": node.description.hostname,
        ".Node.Platform.OS": node.description.platform.os,
        ".Node.Platform.Architecture": node.description.platform.architecture,
        ".Task.ID": task.id,
        ".Task.Name": workload.name,
        ".Task.Slot": tasknames.place(task),
    }


def expand(
    text: str, workload: base.Workload, *, field: str, functions: Mapping[str, expansion.Function] | None = None
) -> str:
    """`text` with its placeholders replaced. Raises TaskFatal naming `field` for one that does not exist.

    `functions` are what only this text may call.
    """
    try:
        return expansion.expand(text, fields(workload), workload.spec.labels, functions)
    except errors.Invalid as error:
        raise base.TaskFatal(f"expanding {field} failed: {error.message}") from None


def expand_env(workload: base.Workload) -> list[str]:
    """The container's environment with placeholders in values (never in names) replaced."""
    expanded: list[str] = []
    for entry in workload.container.env:
        name, equals, value = entry.partition("=")
        expanded.append(name + equals + expand(value, workload, field=f"env {name}"))
    return [*expanded, *_resources(workload.task)]


def _resources(task: pb.Task) -> list[str]:
    """What the node gave the task: DOCKER_RESOURCE_GPU=uuid1,uuid2 of names, DOCKER_RESOURCE_SSD=2 of a number."""
    given: dict[str, list[str]] = {}
    for resource in task.assigned_generic:
        if resource.WhichOneof("resource") == "named":
            given.setdefault(resource.named.kind, []).append(resource.named.value)
        else:
            given.setdefault(resource.discrete.kind, []).append(str(resource.discrete.value))
    return [f"DOCKER_RESOURCE_{kind.upper()}={','.join(values)}" for kind, values in given.items()]


def expand_file(file: base.File, workload: base.Workload, *, targets: Mapping[tuple[str, str], bytes]) -> base.File:
    """`file` with the placeholders in its data replaced; `targets` are all payloads of the task by kind and target.

    Raises TaskFatal. Data that is no text is left as it is.
    """
    try:
        text = file.data.decode()
    except UnicodeDecodeError:
        return file
    field = f"{file.kind} {file.target}"

    def payload(kind: str) -> expansion.Function:
        def find(arguments: Sequence[str]) -> str:
            target = "".join(arguments[:1])
            found = targets.get((kind, target))
            if found is None:
                raise base.TaskFatal(f"expanding {field} failed: {kind} target {target} not found")
            return found.decode(errors="surrogateescape")

        return find

    functions: dict[str, expansion.Function] = {
        "secret": payload("secret"),
        "config": payload("config"),
        "env": lambda arguments: _env(workload, "".join(arguments[:1])),
    }
    expanded = expand(text, workload, field=field, functions=functions)
    return dataclasses.replace(file, data=expanded.encode(errors="surrogateescape"))


def _env(workload: base.Workload, name: str) -> str:
    values = dict(entry.partition("=")[::2] for entry in expand_env(workload))
    return values.get(name, "")
