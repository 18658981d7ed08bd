"""The nouns `secret` and `config`, which differ in one word and in whether their data is shown."""

import base64
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from skep import client, errors
from skep.cli import app, lazy, listing, show, text, values

Json = Mapping[str, Any]

STDIN = "-"
BYTES_MAX = 1_024_000  # the larger of the two limits: more is not even read
HEADERS = {"ID": "ID", "Name": "NAME", "CreatedAt": "CREATED", "UpdatedAt": "UPDATED", "Labels": "LABELS"}
COLUMNS = ("ID", "Name", "CreatedAt", "UpdatedAt")


def _read(file: str) -> bytes:
    """The file's bytes, standard input for `-`. Raises Invalid."""
    try:
        if file == STDIN:
            return sys.stdin.buffer.read(BYTES_MAX + 1)
        with Path(file).open("rb") as opened:
            return opened.read(BYTES_MAX + 1)
    except OSError as problem:
        raise errors.Invalid(f"cannot read {file}: {problem.strerror}") from None


def _find(state: app.App, kind: str, reference: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = state.client.get(f"/{kind}s/{client.quote(reference)}")
    except errors.NotFound:
        raise errors.NotFound(f"no such {kind}: {reference}; 'skep {kind} ls' shows them") from None
    return found


def _row(each: Json, *, now: float) -> dict[str, str]:
    labels = each["Spec"].get("Labels") or {}
    return {
        "ID": each["ID"],
        "Name": each["Spec"].get("Name", ""),
        "CreatedAt": text.ago(each.get("CreatedAt"), now=now),
        "UpdatedAt": text.ago(each.get("UpdatedAt"), now=now),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
    }


def _create(kind: str) -> click.Command:
    examples = (
        f"skep {kind} create db_{kind} ./db.txt",
        f"printf %s 'data' | skep {kind} create db_{kind} -",
        f"skep service create --name db --{kind} db_{kind} postgres:17",
    )

    @click.command(
        "create", cls=lazy.Command, examples=examples, help=f"Create a {kind} from a file, or from standard input (-)."
    )
    @click.option("-l", "--label", "labels", type=values.PAIR, multiple=True, metavar="KEY=VALUE", help="Label it.")
    @click.option(
        "--template-driver", metavar="DRIVER", help="'golang': placeholders in the data are filled in on the node."
    )
    @click.argument("name")
    @click.argument("file", metavar="FILE|-", type=click.Path(allow_dash=True))
    @app.pass_app
    def create(
        state: app.App, *, name: str, file: str, labels: Sequence[tuple[str, str]], template_driver: str | None
    ) -> None:
        spec: dict[str, Any] = {"Name": name, "Labels": dict(labels), "Data": base64.b64encode(_read(file)).decode()}
        if template_driver:
            spec["Templating"] = {"Name": template_driver}
        state.say(state.client.request("POST", f"/{kind}s/create", body=spec).body["ID"])

    return create


def _ls(kind: str) -> click.Command:
    @click.command(
        "ls",
        cls=lazy.Command,
        examples=(f"skep {kind} ls", f"skep {kind} ls --filter label=team=bees"),
        help=f"List {kind}s.",
    )
    @listing.list_options
    @app.pass_app
    def ls(state: app.App, *, filters: Sequence[tuple[str, str]], form: str | None, quiet: bool) -> None:
        found = state.client.get(f"/{kind}s", client.filters_of(show.filters(filters))) or []
        ordered = sorted(found, key=lambda each: text.natural(each["Spec"].get("Name", "")))
        made = [_row(each, now=state.wall.now()) for each in ordered]
        show.rows(state, made, headers=HEADERS, default=COLUMNS, form=form, quiet=quiet)

    return ls


def _pretty(each: Json, *, now: float) -> str:
    spec = each["Spec"]
    lines = [f"ID:         {each['ID']}", f"Name:       {spec.get('Name', '')}"]
    lines += ["Labels:", *(f" {key}={value}" for key, value in sorted((spec.get("Labels") or {}).items()))]
    lines += [f"Created:    {text.ago(each.get('CreatedAt'), now=now)}"]
    lines += [f"Updated:    {text.ago(each.get('UpdatedAt'), now=now)}"]
    if "Data" in spec:
        lines += ["Data:", base64.b64decode(spec["Data"]).decode(errors="replace")]
    return "\n".join(lines)


def _inspect(kind: str) -> click.Command:
    examples = (f"skep {kind} inspect db_{kind}", f"skep {kind} inspect --pretty db_{kind}")

    @click.command("inspect", cls=lazy.Command, examples=examples, help=f"Show one or more {kind}s in full.")
    @listing.inspect_options
    @click.argument("references", nargs=-1, required=True, metavar=f"{kind.upper()}...")
    @app.pass_app
    def inspect(state: app.App, *, references: Sequence[str], form: str | None, pretty: bool) -> None:
        if pretty and form is not None:
            raise click.UsageError("--format and --pretty exclude each other; drop one of them")
        printer: Callable[[Any], str] | None = (lambda each: _pretty(each, now=state.wall.now())) if pretty else None
        show.objects(
            state, references, fetch=lambda reference: _find(state, kind, reference), form=form, pretty=printer
        )

    return inspect


def _rm(kind: str) -> click.Command:
    @click.command(
        "rm",
        cls=lazy.Command,
        examples=(f"skep {kind} rm db_{kind}",),
        help=f"Remove {kind}s that no service asks for.",
    )
    @click.argument("references", nargs=-1, required=True, metavar=f"{kind.upper()}...")
    @app.pass_app
    def rm(state: app.App, *, references: Sequence[str]) -> None:
        problems: list[str] = []
        for reference in references:
            try:
                state.client.request("DELETE", f"/{kind}s/{client.quote(reference)}")
            except (errors.NotFound, errors.Invalid, errors.FailedPrecondition) as problem:
                problems.append(problem.message)
            else:
                state.say(reference)
        show.fail_with(state, problems)

    return rm


def _group(kind: str, words: str) -> click.Group:
    made = click.Group(kind, help=words)
    for command in (_create(kind), _inspect(kind), _ls(kind), _rm(kind)):
        made.add_command(command)
    for alias, name in (("list", "ls"), ("remove", "rm")):
        made.add_command(_hidden(made.commands[name], alias))
    return made


def _hidden(command: click.Command, alias: str) -> click.Command:
    import copy

    twin = copy.copy(command)
    twin.name, twin.hidden = alias, True
    return twin


secret = _group("secret", "Keep passwords and keys in the cluster, and give them to services as files in memory.")
config = _group("config", "Keep configuration files in the cluster, and give them to services.")
