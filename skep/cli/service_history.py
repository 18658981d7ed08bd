"""service history and rollback: the versions of a service, and the way back to any of them."""

from collections.abc import Mapping
from typing import Any

import click

from skep import client, errors
from skep.cli import app, completing, flags, forecast, lazy, planning, progress, services, show, text, values

Json = Mapping[str, Any]

HEADERS = {
    "Number": "REVISION",
    "Standing": "",
    "Created": "CREATED",
    "Image": "IMAGE",
    "Tasks": "TASKS",
    "Changes": "CHANGED",
}
COLUMNS = tuple(HEADERS)
CHANGES_SHOWN = 3


def row(revision: Json, *, now: float) -> dict[str, str]:
    """A revision as a row."""
    container = revision["Spec"]["TaskTemplate"]["ContainerSpec"]
    return {
        "ID": revision["ID"],
        "Number": str(revision["Number"]),
        "Standing": "current" if revision["Current"] else "previous" if revision["Previous"] else "",
        "Created": text.ago(revision.get("CreatedAt"), now=now),
        "Image": text.image(container.get("Image", "")),
        "Tasks": str(revision["Tasks"]),
        "Changes": _changes(revision),
    }


def _changes(revision: Json) -> str:
    found = revision.get("Changes")
    if found is None:
        return "(the first)" if revision["Number"] == 1 else "(what was before is not kept)"
    told = []
    for each in found[:CHANGES_SHOWN]:
        before, after = forecast.change(each)
        told.append(f"{each['Path'].rpartition('.')[2]}: {before} -> {after}")
    more = len(found) - CHANGES_SHOWN
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


@click.command(
    cls=lazy.Command,
    examples=("skep service history web", "skep service history --format '{{.Number}} {{.Image}}' web"),
)
@click.option("--format", "form", metavar="FORMAT",
              help="'table', 'table TEMPLATE', 'json', or a Go template such as '{{.Number}} {{.Image}}'.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print only the IDs of the revisions.")
@click.argument("service", shell_complete=completing.services)
@app.pass_app
def history(state: app.App, /, *, service: str, form: str | None, quiet: bool) -> None:
    """List the revisions of a service that are kept, the newest first, with what each changed.

    'skep service rollback --to N' goes back to any of them.
    """
    try:
        found = state.client.get(f"/skep/v1/services/{client.quote(service)}/revisions")
    except errors.NotFound:
        raise errors.NotFound(f"no such service: {service}; 'skep service ls' shows them") from None
    made = [row(each, now=state.wall.now()) for each in reversed(found)]
    show.rows(state, made, headers=HEADERS, default=COLUMNS, form=form, quiet=quiet)


@click.command(
    cls=lazy.Command,
    examples=(
        "skep service rollback web",
        "skep service rollback --to 4 web",
        "skep service rollback --to 4 --plan web",
    ),
)
@click.option("--to", type=values.COUNT, metavar="N", help="Go back to this revision, not to the previous one.")
@flags.together((*flags.PLANNING, *flags.WAITING))
@click.argument("service", shell_complete=completing.services)
@app.pass_app
def rollback(state: app.App, /, *, service: str, to: int | None, **given: Any) -> None:
    """Go back to the specification before the last update, or to any other that is kept.

    Waits until it has come about. 'skep service history' lists the revisions.
    """
    if planning.wanted(given):
        query = {"rollback": "previous"} if to is None else {"rollback": "previous", "to": str(to)}
        plan = services.plan(state, service, query=query)
        forecast.tell(state, [plan], as_json=bool(given["json"]))
    before = services.roll_back(state, service, to=to)
    state.say(before["Spec"]["Name"])
    if given["detach"]:
        return
    progress.wait(
        state,
        before["ID"],
        before=before.get("UpdateStatus"),
        rollback=True,
        quiet=bool(given["quiet"]),
        timeout_ns=given["timeout"],
    )
