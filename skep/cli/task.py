"""The noun `task`: single attempts to run a slot of a service."""

from collections.abc import Sequence

import click

from skep import client, errors
from skep.cli import app, lazy, show


@click.group(cls=lazy.LazyGroup, entries={
    "logs": lazy.Entry("skep.cli.service_logs", "task_logs", "Show what a task has printed"),
    "inspect": lazy.Entry("skep.cli.task", "inspect", "Show one or more tasks in full"),
})  # fmt: skip
def task() -> None:
    """Look into single tasks; 'skep service ps' lists them."""


@click.command(cls=lazy.Command, examples=("skep task inspect ID", "skep task inspect --format '{{.Status.Err}}' ID"))
@click.option("-f", "--format", "form", metavar="FORMAT", help="'json', or a Go template such as '{{.Status.State}}'.")
@click.argument("references", nargs=-1, required=True, metavar="TASK...")
@app.pass_app
def inspect(state: app.App, *, references: Sequence[str], form: str | None) -> None:
    """Show one or more tasks in full; of one that failed also the end of what it printed."""

    def fetch(reference: str) -> object:
        try:
            return state.client.get(f"/tasks/{client.quote(reference)}", {"lastOutput": "true"})
        except errors.NotFound:
            raise errors.NotFound(f"no such task: {reference}; 'skep service ps SERVICE' shows them") from None

    show.objects(state, references, fetch=fetch, form=form)
