"""The noun `service`: the table of its verbs. Imports none of them."""

import click

from skep.cli import lazy

ENTRIES = {
    "create": lazy.Entry("skep.cli.service_create", "create", "Create a new service"),
    "history": lazy.Entry("skep.cli.service_history", "history", "List the revisions of a service"),
    "inspect": lazy.Entry("skep.cli.service_show", "inspect", "Show one or more services in full"),
    "logs": lazy.Entry("skep.cli.service_logs", "logs", "Show what the tasks of a service have printed"),
    "ls": lazy.Entry("skep.cli.service_show", "ls", "List services"),
    "ps": lazy.Entry("skep.cli.service_show", "ps", "List the tasks of services"),
    "rm": lazy.Entry("skep.cli.service_update", "rm", "Remove services and their tasks"),
    "rollback": lazy.Entry(
        "skep.cli.service_history", "rollback", "Go back to the specification before the last update, or any other"
    ),
    "scale": lazy.Entry("skep.cli.service_update", "scale", "Change how many tasks services have"),
    "update": lazy.Entry("skep.cli.service_update", "update", "Change a service"),
}


@click.group(cls=lazy.LazyGroup, entries=ENTRIES, aliases={"list": "ls", "remove": "rm"})
def service() -> None:
    """Create, update, scale and watch services."""
