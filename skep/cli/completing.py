"""Names of services, tasks and nodes for the shell's completion: quick, and silent when no skepd answers."""

import contextlib
import os
from typing import Any

import click

from skep.cli import app

TIMEOUT_S = 0.5  # somebody has pressed Tab and waits


def _get(context: click.Context, path: str, filters: Any = None) -> list[Any]:
    from skep import client, errors

    host = context.find_root().params.get("host") or os.environ.get(app.HOST_VARIABLE) or app.HOST_DEFAULT
    with contextlib.suppress(errors.SkepError):
        connection = client.Client(host, patience_s=0.0, timeout_s=TIMEOUT_S)
        with contextlib.closing(connection):
            found = connection.get(path, client.filters_of(filters) if filters else None)
        return found if isinstance(found, list) else []
    return []


def services(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of services that start like that and are not on the line yet."""
    given = context.params.get(param.name or "") or ()
    names = [service["Spec"]["Name"] for service in _get(context, "/services")]
    return [name for name in sorted(names) if name.startswith(incomplete) and name not in given]


def scale(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """As `services`, with the equals sign."""
    return [f"{name}=" for name in services(context, param, incomplete)] if "=" not in incomplete else []


def nodes(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Host names of nodes that start like that, and `self`."""
    names = [node["Description"]["Hostname"] for node in _get(context, "/nodes") if node.get("Description")]
    return [name for name in [*sorted(names), "self"] if name.startswith(incomplete)]


def tasks(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of running tasks, SERVICE.SLOT, that start like that."""
    from skep.cli import tasks as rows
    from skep.cli import text

    if context.params.get(param.name or ""):
        return []  # it is on the line already; what follows is the task's own business
    names = {service["ID"]: service["Spec"]["Name"] for service in _get(context, "/services")}
    found = {rows.name_of(task, names): None for task in _get(context, "/tasks", {"desired-state": ["running"]})}
    return [name for name in sorted(found, key=text.natural) if name.startswith(incomplete)]


def copies(context: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Running tasks with a colon, for one end of a copy, and the files of this machine."""
    from click import shell_completion

    found = [] if ":" in incomplete or "/" in incomplete else tasks(context, param, incomplete)
    files = shell_completion.CompletionItem(incomplete, type="file")
    return [*(shell_completion.CompletionItem(f"{name}:/") for name in found), files]
