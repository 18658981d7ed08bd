"""The noun `node`: list, inspect, update, drain, and the tasks of machines."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from skep import client, errors
from skep.cli import app, completing, flags, forecast, lazy, listing, planning, show, tasks, text, values

Json = Mapping[str, Any]

CONFLICT_TRIES = 5  # a node's status changes its version too, so a raced write is likelier than with services
HEADERS = {
    "ID": "ID",
    "Self": "",
    "Hostname": "HOSTNAME",
    "Status": "STATUS",
    "Availability": "AVAILABILITY",
    "ManagerStatus": "MANAGER STATUS",
    "EngineVersion": "ENGINE VERSION",
    "TLSStatus": "TLS STATUS",
}
COLUMNS = ("ID", "Hostname", "Status", "Availability", "ManagerStatus", "EngineVersion")


@click.group(cls=lazy.LazyGroup, entries={
    name: lazy.Entry("skep.cli.node_drain" if name == "drain" else "skep.cli.node", attribute, help_line)
    for name, attribute, help_line in (
        ("activate", "activate", "Let nodes take tasks again"),
        ("demote", "demote", "Make managers workers"),
        ("drain", "drain", "Move all tasks off nodes, and give them no new ones"),
        ("inspect", "inspect", "Show one or more nodes in full"),
        ("ls", "ls", "List nodes"),
        ("promote", "promote", "Make workers managers"),
        ("ps", "ps", "List the tasks on nodes"),
        ("rm", "rm", "Remove nodes from the cluster"),
        ("update", "update", "Change a node's availability, role or labels"),
    )
}, aliases={"list": "ls", "remove": "rm"})  # fmt: skip
def node() -> None:
    """List, inspect, drain and label machines."""


def own_id(state: app.App) -> str:
    """This machine's node ID. Raises FailedPrecondition outside a cluster."""
    found = ((state.client.get("/info") or {}).get("Swarm") or {}).get("NodeID", "")
    if not found:
        raise errors.FailedPrecondition(
            "this machine is not part of a cluster: 'skep init' makes one, 'skep join' joins one"
        )
    return str(found)


def find(state: app.App, reference: str) -> dict[str, Any]:
    """The node with that name or ID; `self` is this machine. Raises NotFound."""
    identifier = own_id(state) if reference == "self" else reference
    try:
        found: dict[str, Any] = state.client.get(f"/nodes/{client.quote(identifier)}")
    except errors.NotFound:
        raise errors.NotFound(f"no such node: {reference}; 'skep node ls' shows them") from None
    return found


def row(each: Json, *, own: str) -> dict[str, Any]:
    """A node as a row of `node ls`."""
    description = each.get("Description") or {}
    manager = each.get("ManagerStatus") or {}
    return {
        "ID": each["ID"],
        "Self": each["ID"] == own,
        "Hostname": description.get("Hostname", ""),
        "Status": ", ".join([str((each.get("Status") or {}).get("State", "")).capitalize(),
                             *(wrong["Summary"] for wrong in description.get("Conditions") or ())]),
        "Availability": str(each["Spec"].get("Availability", "")).capitalize(),
        "ManagerStatus": "Leader" if manager.get("Leader") else str(manager.get("Reachability", "")).capitalize(),
        "EngineVersion": (description.get("Engine") or {}).get("EngineVersion", ""),
        "TLSStatus": "Ready" if (description.get("TLSInfo") or {}).get("TrustRoot") else "Unknown",
    }  # fmt: skip


@click.command(
    cls=lazy.Command,
    examples=(
        "skep node ls",
        "skep node ls --filter role=manager",
        "skep node ls --format '{{.Hostname}} {{.Status}}'",
    ),
)
@listing.list_options
@app.pass_app
def ls(state: app.App, *, filters: Sequence[tuple[str, str]], form: str | None, quiet: bool) -> None:
    """List nodes; * marks the one that answers."""
    found = state.client.get("/nodes", client.filters_of(show.filters(filters))) or []
    own = "" if quiet else own_id(state)
    made = [row(each, own=own) for each in sorted(found, key=lambda each: text.natural(_sort_name(each)))]
    if not quiet and (form is None or form == "table"):
        made = [{**each, "ID": each["ID"] + (" *" if each["Self"] else "")} for each in made]
    show.rows(state, made, headers=HEADERS, default=COLUMNS, form=form, quiet=quiet)


def _sort_name(each: Json) -> str:
    return str((each.get("Description") or {}).get("Hostname", "")) + " " + str(each["ID"])


@click.command(
    cls=lazy.Command,
    examples=(
        "skep node inspect self",
        "skep node inspect --pretty n1",
        "skep node inspect --format '{{.Status.Addr}}' n1",
    ),
)
@listing.inspect_options
@click.argument("references", nargs=-1, required=True, metavar="NODE...", shell_complete=completing.nodes)
@app.pass_app
def inspect(state: app.App, *, references: Sequence[str], form: str | None, pretty: bool) -> None:
    """Show one or more nodes in full; `self` is this machine."""
    if pretty and form is not None:
        raise click.UsageError("--format and --pretty exclude each other; drop one of them")
    from skep.cli import pretty as words

    printer = words.node if pretty else None
    show.objects(state, references, fetch=lambda reference: find(state, reference), form=form, pretty=printer)


@click.command(
    cls=lazy.Command, examples=("skep node ps", "skep node ps n1 n2", "skep node ps --filter desired-state=running n1")
)
@listing.task_options
@click.argument("references", nargs=-1, metavar="[NODE...]", shell_complete=completing.nodes)
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
    """List the tasks on nodes; without a NODE, on this machine."""
    problems: list[str] = []
    ids: list[str] = []
    for reference in references or ("self",):
        try:
            ids.append(find(state, reference)["ID"])
        except errors.NotFound as problem:
            problems.append(problem.message)
    if ids:
        wanted = {**show.filters(filters), "node": ids}
        found = state.client.get("/tasks", client.filters_of(wanted)) or []
        tasks.listing(state, found, resolve=not no_resolve, trunc=not no_trunc, quiet=quiet, form=form)
    show.fail_with(state, problems)


def change(state: app.App, reference: str, make: Callable[[dict[str, Any]], None]) -> None:
    """Reads a node, lets `make` alter its specification in place, writes it; again when somebody was faster."""
    _versioned(state, reference, "/nodes/{}/update", make)


def plan(state: app.App, reference: str, make: Callable[[dict[str, Any]], None]) -> Json:
    """What `change` would mean for the tasks; nothing is changed."""
    found: Json = _versioned(state, reference, "/skep/v1/nodes/{}/plan", make)
    return found


def _versioned(state: app.App, reference: str, path: str, make: Callable[[dict[str, Any]], None]) -> Any:
    for left in reversed(range(CONFLICT_TRIES)):
        found = find(state, reference)
        spec: dict[str, Any] = found["Spec"]
        make(spec)
        query = {"version": str(found["Version"]["Index"])}
        try:
            return state.client.request("POST", path.format(client.quote(found["ID"])), query=query, body=spec).body
        except errors.Conflict:
            if not left:
                raise
    raise errors.Bug("unreachable")


@click.command(
    cls=lazy.Command,
    examples=(
        "skep node update --availability drain n1",
        "skep node update --label-add disk=ssd --label-add zone=a n1",
        "skep node update --role manager n2",
        "skep node update --availability drain --plan n1",
    ),
)
@click.option(
    "--availability",
    type=click.Choice(["active", "pause", "drain"]),
    help="active, pause (no new tasks) or drain (no tasks).",
)
@click.option("--role", type=click.Choice(["worker", "manager"]), help="Role of the node.")
@click.option("--label-add", type=values.PAIR, multiple=True, help="Add or replace a label, key=value.")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label.")
@flags.together(flags.PLANNING)
@click.argument("reference", metavar="NODE", shell_complete=completing.nodes)
@app.pass_app
def update(
    state: app.App,
    /,
    *,
    reference: str,
    availability: str | None,
    role: str | None,
    label_add: Sequence[tuple[str, str]],
    label_rm: Sequence[str],
    **given: Any,
) -> None:
    """Change a node's availability, role or labels.

    With --plan nothing is changed: it is shown what would become of the tasks, and the exit code is 0 for nothing, 2
    for changes, 3 when some tasks could not be placed.
    """

    def make(spec: dict[str, Any]) -> None:
        if availability is not None:
            spec["Availability"] = availability
        if role is not None:
            spec["Role"] = role
        labels = dict(spec.get("Labels") or {})
        for key in label_rm:
            if key not in labels:
                raise errors.Invalid(f"key {key} doesn't exist in the labels of node {reference}")
            del labels[key]
        spec["Labels"] = {**labels, **dict(label_add)}

    if planning.wanted(given):
        forecast.tell(state, [plan(state, reference, make)], as_json=bool(given["json"]))
    change(state, reference, make)
    state.say(reference)


def _shortcut(name: str, key: str, word: str, done: str, help_line: str) -> click.Command:
    """A command that sets one field of many nodes."""

    def callback(*, references: Sequence[str]) -> None:
        state = click.get_current_context().ensure_object(app.App)
        problems: list[str] = []
        for reference in references:
            try:
                change(state, reference, lambda spec: spec.update({key: word}))
            except errors.SkepError as problem:
                problems.append(problem.message)
            else:
                state.say(f"Node {reference} {done}")
        show.fail_with(state, problems)

    argument = click.Argument(
        ["references"], nargs=-1, required=True, metavar="NODE...", shell_complete=completing.nodes
    )
    return lazy.Command(name, params=[argument], callback=callback, help=help_line, examples=(f"skep node {name} n1",))


activate = _shortcut("activate", "Availability", "active", "takes tasks again.", "Let nodes take tasks again.")
promote = _shortcut("promote", "Role", "manager", "promoted to a manager in the cluster.", "Make workers managers.")
demote = _shortcut("demote", "Role", "worker", "demoted in the cluster.", "Make managers workers.")


@click.command(cls=lazy.Command, examples=("skep node rm n3", "skep node rm --force n3"))
@click.option("-f", "--force", is_flag=True, help="Remove it although it is not down.")
@click.argument("references", nargs=-1, required=True, metavar="NODE...", shell_complete=completing.nodes)
@app.pass_app
def rm(state: app.App, *, references: Sequence[str], force: bool) -> None:
    """Remove nodes that are down, or with --force any worker, from the cluster."""
    problems: list[str] = []
    for reference in references:
        try:
            query = {"force": "1"} if force else None
            state.client.request("DELETE", f"/nodes/{client.quote(reference)}", query=query)
        except errors.NotFound:
            problems.append(f"no such node: {reference}; 'skep node ls' shows them")
        except errors.SkepError as problem:
            problems.append(problem.message)
        else:
            state.say(reference)
    show.fail_with(state, problems)
