"""Lists and objects on standard output, in the form that --format asks for.

One place for `table`, `table TEMPLATE`, `json`, `TEMPLATE` and --quiet, so that all commands agree.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from skep import errors
from skep.cli import app, template, text

Row = Mapping[str, Any]


def rows(
    state: app.App,
    found: Sequence[Row],
    *,
    headers: Mapping[str, str],
    default: Sequence[str],
    form: str | None,
    quiet: bool,
) -> None:
    """Prints rows whose cells are named as in Docker's templates. `headers`: the head of each field's column."""
    form = (form or "table").replace("\\t", "\t").replace("\\n", "\n")
    if quiet and form == "table":
        for row in found:
            state.say(row["ID"])
    elif form == "table":
        state.say(
            text.table([headers[name] for name in default], [[str(row[name]) for name in default] for row in found])
        )
    elif form == "json":
        for row in found:
            state.say(template.to_json(dict(row)))
    elif form.startswith("table "):
        shape = template.Template(form.removeprefix("table ").strip(), strict=True)
        lines = [shape.render(headers), *(shape.render(row) for row in found)]
        cells = [line.split("\t") for line in lines]
        width = max(len(line) for line in cells)
        padded = [line + [""] * (width - len(line)) for line in cells]
        state.say(text.table(padded[0], padded[1:]))
    else:
        shape = template.Template(form, strict=True)
        for row in found:
            state.say(shape.render(row))


def objects(
    state: app.App,
    references: Sequence[str],
    *,
    fetch: Callable[[str], Any],
    form: str | None,
    pretty: Callable[[Any], str] | None = None,
) -> None:
    """Docker's inspect: all that were found, then an error for each that was not, and exit code 1."""
    found: list[Any] = []
    problems: list[str] = []
    for reference in references:
        try:
            found.append(fetch(reference))
        except errors.NotFound as problem:
            problems.append(problem.message)
    if pretty is not None:
        state.say("\n\n".join(pretty(each) for each in found))
    elif form is None:
        state.say(json.dumps(found, indent=4, ensure_ascii=False))
    else:
        shape = None if form == "json" else template.Template(form.replace("\\t", "\t").replace("\\n", "\n"))
        for each in found:
            state.say(template.to_json(each) if shape is None else shape.render(each))
    fail_with(state, problems)


def fail_with(state: app.App, problems: Sequence[str]) -> None:
    """Prints each problem as an error and ends with exit code 1; nothing when there are none."""
    for problem in problems:
        state.warn(f"Error: {problem}")
    if problems:
        raise click.exceptions.Exit(1)


def filters(values: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """--filter key=value flags as the server's filters: values of one key together."""
    wanted: dict[str, list[str]] = {}
    for key, value in values:
        if not value:
            raise errors.Invalid(f"--filter {key!r} lacks a value; write it as name=web")
        wanted.setdefault(key.strip().lower(), []).append(value)
    return wanted
