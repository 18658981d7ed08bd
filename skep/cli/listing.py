"""Options that all listing commands share, declared once."""

from collections.abc import Callable
from typing import Any

import click

from skep.cli import values

Decorated = Callable[..., Any]


def list_options(command: Decorated) -> Decorated:
    """--filter, --format and --quiet."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="Print only IDs."),
        click.option("--format", "form", metavar="FORMAT",
                     help="'table', 'table TEMPLATE', 'json', or a Go template such as '{{.ID}} {{.Name}}'."),
        click.option("-f", "--filter", "filters", type=values.PAIR, multiple=True, metavar="KEY=VALUE",
                     help="Show only what matches; may be repeated."),
    ):  # fmt: skip
        command = option(command)
    return command


def task_options(command: Decorated) -> Decorated:
    """The options of the ps commands."""
    for option in (
        click.option("--no-trunc", is_flag=True, help="Show IDs, errors and images in full."),
        click.option("--no-resolve", is_flag=True, help="Show IDs in place of names."),
    ):
        command = option(command)
    return list_options(command)


def inspect_options(command: Decorated) -> Decorated:
    """The options of the inspect commands."""
    for option in (
        click.option("--pretty", is_flag=True, help="Print for people, not for programs."),
        click.option("-f", "--format", "form", metavar="FORMAT",
                     help="'json', or a Go template such as '{{.Spec.Name}}'."),
    ):  # fmt: skip
        command = option(command)
    return command
