"""Expands the placeholders that Docker's swarm mode allows in environment values, hostname, mounts and payloads.

Pure. Knows the fields `.Service.ID .Service.Name .Service.Labels .Node.ID .Node.Hostname .Node.Platform.OS
.Node.Platform.Architecture .Task.ID .Task.Name .Task.Slot` and `index .Service.Labels "key"`; in the data of secrets
and configs also `secret "target"`, `config "target"` and `env "NAME"`; no other expression.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from agent.runtime import base
from skep import tasknames

PLACEHOLDER = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
LABEL = re.compile(r'(?:\(?index\s+\.Service\.Labels\s+"([^"]+)"\)?|\.Service\.Labels\.([A-Za-z0-9_]+))')
FUNCTION = re.compile(r'(secret|config|env)\s+"([^"]*)"')


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
    text: str, workload: base.Workload, *, field: str, function: Callable[[str], str | None] = lambda _: None
) -> str:
    """`text` with its placeholders replaced. Raises TaskFatal naming `field` for one that does not exist.

    `function` gives the values of expressions that only this text may hold, None for one that it does not know.
    """
    if "{{" not in text:
        return text
    known = fields(workload)

    def value(match: re.Match[str]) -> str:
        expression = match.group(1)
        if expression in known:
            return known[expression]
        found = function(expression)
        if found is not None:
            return found
        label = LABEL.fullmatch(expression)
        if label:
            key = label.group(1) or label.group(2)
            if key in workload.spec.labels:
                return workload.spec.labels[key]
            raise base.TaskFatal(f"expanding {field} failed: the service has no label {key!r}")
        raise base.TaskFatal(
            f"expanding {field} failed: {{{{{expression}}}}} is not known; there are {', '.join(known)} "
            'and index .Service.Labels "key"'
        )

    return PLACEHOLDER.sub(value, text)


def expand_env(workload: base.Workload) -> list[str]:
    """The container's environment with placeholders in values (never in names) replaced."""
    expanded: list[str] = []
    for entry in workload.container.env:
        name, equals, value = entry.partition("=")
        expanded.append(name + equals + expand(value, workload, field=f"env {name}"))
    return expanded


def expand_file(file: base.File, workload: base.Workload, *, targets: Mapping[tuple[str, str], bytes]) -> base.File:
    """`file` with the placeholders in its data replaced; `targets` are all payloads of the task by kind and target.

    Raises TaskFatal. Data that is no text is left as it is.
    """
    try:
        text = file.data.decode()
    except UnicodeDecodeError:
        return file
    field = f"{file.kind} {file.target}"

    def function(expression: str) -> str | None:
        match = FUNCTION.fullmatch(expression)
        if match is None:
            return None
        name, argument = match.groups()
        if name == "env":
            return _env(workload, argument)
        found = targets.get((name, argument))
        if found is None:
            raise base.TaskFatal(f"expanding {field} failed: {name} target {argument} not found")
        return found.decode(errors="surrogateescape")

    expanded = expand(text, workload, field=field, function=function)
    return dataclasses.replace(file, data=expanded.encode(errors="surrogateescape"))


def _env(workload: base.Workload, name: str) -> str:
    values = dict(entry.partition("=")[::2] for entry in expand_env(workload))
    return values.get(name, "")
