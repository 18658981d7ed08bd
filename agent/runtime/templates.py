"""Expands the placeholders that Docker's swarm mode allows in environment values, hostname and mounts.

Pure. Knows the fields `.Service.ID .Service.Name .Service.Labels .Node.ID .Node.Hostname .Node.Platform.OS
.Node.Platform.Architecture .Task.ID .Task.Name .Task.Slot` and `index .Service.Labels "key"`; no other expression.
"""

import re

from agent.runtime import base

PLACEHOLDER = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
LABEL = re.compile(r'(?:\(?index\s+\.Service\.Labels\s+"([^"]+)"\)?|\.Service\.Labels\.([A-Za-z0-9_]+))')


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
        ".Task.Slot": str(task.slot) if task.slot else task.node_id,
    }


def expand(text: str, workload: base.Workload, *, field: str) -> str:
    """`text` with its placeholders replaced. Raises TaskFatal naming `field` for one that does not exist."""
    if "{{" not in text:
        return text
    known = fields(workload)

    def value(match: re.Match[str]) -> str:
        expression = match.group(1)
        if expression in known:
            return known[expression]
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
