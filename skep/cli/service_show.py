"""service ls, ps and inspect: everything that only looks."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from skep import client, errors
from skep.cli import app, completing, lazy, listing, services, show, specs, tasks, text

Json = Mapping[str, Any]

HEADERS = {
    "ID": "ID",
    "Name": "NAME",
    "Mode": "MODE",
    "Replicas": "REPLICAS",
    "Image": "IMAGE",
    "Ports": "PORTS",
}


def _replicas(service: Json) -> str:
    status = service.get("ServiceStatus") or {}
    counts = f"{status.get('RunningTasks', 0)}/{status.get('DesiredTasks', 0)}"
    job = (service["Spec"].get("Mode") or {}).get("ReplicatedJob")
    if job is not None:
        return f"{counts} ({status.get('CompletedTasks', 0)}/{job.get('TotalCompletions', 0)} completed)"
    if specs.mode_of(service["Spec"]) == "global-job":
        done = status.get("CompletedTasks", 0)
        return f"{counts} ({done}/{done + status.get('DesiredTasks', 0)} completed)"
    limit = (service["Spec"]["TaskTemplate"].get("Placement") or {}).get("MaxReplicas")
    return f"{counts} (max {limit} per node)" if limit else counts


def row(service: Json) -> dict[str, str]:
    """A service as a row of `service ls`."""
    spec = service["Spec"]
    return {
        "ID": text.short_id(service["ID"]),
        "Name": spec.get("Name", ""),
        "Mode": specs.mode_of(spec).replace("-", " "),
        "Replicas": _replicas(service),
        "Image": text.image(spec["TaskTemplate"]["ContainerSpec"].get("Image", "")),
        "Ports": text.ports((service.get("Endpoint") or {}).get("Ports") or [], mode="ingress"),
    }


@click.command(
    cls=lazy.Command,
    examples=(
        "skep service ls",
        "skep service ls --filter label=tier=web",
        "skep service ls --format '{{.Name}} {{.Replicas}}'",
    ),
)
@listing.list_options
@app.pass_app
def ls(state: app.App, *, filters: Sequence[tuple[str, str]], form: str | None, quiet: bool) -> None:
    """List services."""
    query = {**client.filters_of(show.filters(filters)), "status": "true"}
    found = state.client.get("/services", query) or []
    made = [row(service) for service in sorted(found, key=lambda each: text.natural(each["Spec"].get("Name", "")))]
    show.rows(state, made, headers=HEADERS, default=list(HEADERS), form=form, quiet=quiet)


@click.command(
    cls=lazy.Command,
    examples=(
        "skep service ps web",
        "skep service ps --no-trunc web",
        "skep service ps --filter desired-state=running web api",
    ),
)
@listing.task_options
@click.argument("references", nargs=-1, required=True, metavar="SERVICE...", shell_complete=completing.services)
@app.pass_app
def ps(
    state: app.App,
    *,
    references: Sequence[str],
    filters: Sequence[tuple[str, str]],
    form: str | None,
    quiet: bool,
    no_trunc: bool,
    no_resolve: bool,
) -> None:
    """List the tasks of services, the newest attempt of each first."""
    ids: list[str] = []
    problems: list[str] = []
    for reference in references:
        try:
            ids.append(services.find(state, reference)["ID"])
        except errors.NotFound as problem:
            problems.append(problem.message)
    if ids:
        wanted = {**show.filters(filters), "service": ids}
        found = state.client.get("/tasks", client.filters_of(_with_self(state, wanted))) or []
        tasks.listing(state, found, resolve=not no_resolve, trunc=not no_trunc, quiet=quiet, form=form)
    show.fail_with(state, problems)


def _with_self(state: app.App, wanted: dict[str, list[str]]) -> dict[str, list[str]]:
    """--filter node=self means this machine."""
    if "self" not in wanted.get("node", ()):
        return wanted
    own = state.client.get("/info")["Swarm"]["NodeID"]
    return {**wanted, "node": [own if name == "self" else name for name in wanted["node"]]}


@click.command(
    cls=lazy.Command,
    examples=(
        "skep service inspect web",
        "skep service inspect --pretty web",
        "skep service inspect --format '{{.Spec.Name}}' web",
    ),
)
@listing.inspect_options
@click.argument("references", nargs=-1, required=True, metavar="SERVICE...", shell_complete=completing.services)
@app.pass_app
def inspect(state: app.App, *, references: Sequence[str], form: str | None, pretty: bool) -> None:
    """Show one or more services in full, as JSON or for people."""
    if pretty and form is not None:
        raise click.UsageError("--format and --pretty exclude each other; drop one of them")
    from skep.cli import pretty as words

    show.objects(
        state,
        references,
        fetch=lambda reference: services.find(state, reference, defaults=True),
        form=form,
        pretty=(lambda service: words.service(service, now=state.wall.now())) if pretty else None,
    )
