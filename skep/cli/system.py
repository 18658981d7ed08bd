"""info and version."""

from typing import Any

import click

import skep
from skep import errors
from skep.cli import app, lazy, template, text


def _formatted(state: app.App, value: Any, form: str) -> None:
    state.say(template.to_json(value) if form == "json" else template.Template(form.replace("\\t", "\t")).render(value))


@click.command(cls=lazy.Command, examples=("skep info", "skep info --format '{{.Swarm.LocalNodeState}}'"))
@click.option("-f", "--format", "form", metavar="FORMAT", help="'json', or a Go template.")
@app.pass_app
def info(state: app.App, *, form: str | None) -> None:
    """Show this machine and its cluster."""
    found = state.client.get("/info")
    if form is not None:
        _formatted(state, found, form)
        return
    swarm = found.get("Swarm") or {}
    cluster = swarm.get("Cluster") or {}
    lines: list[tuple[str, Any]] = [
        ("Name", found.get("Name")),
        ("Server version", found.get("ServerVersion")),
        ("Platform", f"{found.get('OSType', '')}/{found.get('Architecture', '')}".strip("/")),
        ("CPUs", found.get("NCPU")),
        ("Memory", text.size(found["MemTotal"]) if found.get("MemTotal") else None),
        ("Cluster", swarm.get("LocalNodeState") or "inactive"),
        ("  Error", swarm.get("Error")),
        ("  Node ID", swarm.get("NodeID")),
        ("  Node address", swarm.get("NodeAddr")),
        ("  Is manager", swarm.get("ControlAvailable") if swarm.get("NodeID") else None),
        ("  Cluster ID", cluster.get("ID")),
        ("  Managers", swarm.get("Managers")),
        ("  Nodes", swarm.get("Nodes")),
        ("  Manager addresses", ", ".join(sorted(each["Addr"] for each in swarm.get("RemoteManagers") or ()))),
    ]
    for key, value in lines:
        if value not in (None, ""):
            state.say(f"{key + ':':<22}{str(value).lower() if isinstance(value, bool) else value}")


@click.command(cls=lazy.Command, examples=("skep version", "skep version --format '{{.Server.Version}}'"))
@click.option("-f", "--format", "form", metavar="FORMAT", help="'json', or a Go template.")
@app.pass_app
def version(state: app.App, *, form: str | None) -> None:
    """Show the versions of skep and of the skepd that answers. Exit code 1 when none does."""
    server: dict[str, Any] | None = None
    problem = ""
    try:
        server = state.client.get("/version")
    except errors.SkepError as error:
        problem = error.message
    if form is not None:
        _formatted(state, {"Client": {"Version": skep.__version__, "Host": state.host}, "Server": server}, form)
    else:
        state.say(f"Client:\n Version:     {skep.__version__}\n Host:        {state.host}")
        if server is not None:
            state.say(
                f"Server:\n Version:     {server.get('Version', '')}\n API version: {server.get('ApiVersion', '')}"
            )
    if problem:
        raise errors.Unavailable(problem)
