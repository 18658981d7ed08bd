"""stats (and top): what tasks use of their machines, live on a terminal, in lines in a pipe."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from skep.cli import app, completing, lazy, services, show, tasks, text

DRAW_S = 0.5
SILENT_S = 10.0  # a task that says nothing for so long has ended
NANOS = 1_000_000_000
HEADERS = {
    "Name": "NAME",
    "Node": "NODE",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
    "ID": "ID",
}
SHOWN = [name for name in HEADERS if name != "ID"]

Json = Mapping[str, Any]


def row(figures: Json, nodes: Mapping[str, str]) -> dict[str, str]:
    """One task's figures as Docker's command shows them."""
    node_id = str(figures.get("NodeID", ""))
    made = {"ID": text.short_id(str(figures.get("TaskID", ""))), "Name": str(figures.get("Name", "")),
            "Node": nodes.get(node_id, node_id)}  # fmt: skip
    if "Error" in figures:
        return {**dict.fromkeys(SHOWN, "--"), **made, "MemUsage": text.shorten(str(figures["Error"]), 40)}
    used, limit = int(figures["MemoryBytes"]), int(figures["MemoryLimitBytes"])
    return made | {
        "CPUPerc": f"{100 * int(figures['NanoCPUs']) / NANOS:.2f}%",
        "MemUsage": f"{text.size(used)} / {text.size(limit) if limit else 'none'}",
        "MemPerc": f"{100 * used / limit:.2f}%" if limit else "--",
        "NetIO": _both(figures, "ReceivedBytes", "SentBytes"),
        "BlockIO": _both(figures, "ReadBytes", "WrittenBytes"),
        "PIDs": str(figures["Pids"]),
    }


def _both(figures: Json, *names: str) -> str:
    values = [int(figures[name]) for name in names]
    return " / ".join(text.size(value) for value in values) if min(values) >= 0 else "--"


@click.command(
    cls=lazy.Command,
    examples=("skep stats", "skep stats web api", "skep stats --no-stream --format '{{.Name}} {{.CPUPerc}}'"),
)
@click.option("--no-stream", is_flag=True, help="Print the figures once.")
@click.option("--format", "form", metavar="FORMAT", help="'table', 'json', or a Go template such as '{{.Name}}'.")
@click.argument("references", nargs=-1, metavar="[SERVICE...]", shell_complete=completing.services)
@app.pass_app
def stats(state: app.App, *, no_stream: bool, form: str | None, references: Sequence[str]) -> None:
    """Show what the tasks of services, or all tasks, use of processors, memory, network and disks."""
    for reference in references:
        services.find(state, reference)
    nodes = tasks.hostnames(state)
    if no_stream:
        found = [row(each, nodes) for each in _figures(state, references, follow=False)]
        show.rows(state, _ordered(found), headers=HEADERS, default=SHOWN, form=form, quiet=False)
    elif state.on_terminal and form is None:
        _live(state, references, nodes)
    else:
        _lines(state, references, nodes, form=form)


def _ordered(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(rows, key=lambda each: text.natural(each["Name"]))


def _figures(state: app.App, references: Sequence[str], *, follow: bool) -> Iterator[Json]:
    """Figures as they come. When the answer breaks off (the leader has changed) it is asked for again."""
    query = [("service", reference) for reference in references] + ([("stream", "1")] if follow else [])

    def attempt() -> Iterator[Json]:
        rest = b""
        for chunk in state.client.stream("/skep/v1/stats", query):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield json.loads(line)

    return state.client.resumed(attempt) if follow else attempt()


def _lines(state: app.App, references: Sequence[str], nodes: Mapping[str, str], *, form: str | None) -> None:
    """A line for each new figure of a task; with a head unless a form was asked for."""
    if form in (None, "table"):
        state.say("  ".join(f"{HEADERS[name]:<{_width(name)}}" for name in SHOWN).rstrip())
        for figures in _figures(state, references, follow=True):
            cells = row(figures, nodes)
            state.say("  ".join(f"{cells[name]:<{_width(name)}}" for name in SHOWN).rstrip())
        return
    for figures in _figures(state, references, follow=True):
        show.rows(state, [row(figures, nodes)], headers=HEADERS, default=SHOWN, form=form, quiet=False)


def _width(name: str) -> int:
    return {"Name": 20, "Node": 12, "MemUsage": 21, "NetIO": 19, "BlockIO": 19}.get(name, 7)


def _live(state: app.App, references: Sequence[str], nodes: Mapping[str, str]) -> None:
    """A table in place, drawn by a thread of rich's: whether or not anything comes, tasks that have ended must go.

    rich is imported here: nothing but a terminal needs it.
    """
    from rich import console, live

    known: dict[str, tuple[float, Json]] = {}  # when they came, and the figures

    def drawn() -> Any:
        now = state.wall.now()
        return _table(_ordered([row(each, nodes) for at, each in list(known.values()) if now - at < SILENT_S]))

    terminal = console.Console(force_terminal=True)
    with live.Live(console=terminal, get_renderable=drawn, refresh_per_second=1 / DRAW_S):
        for figures in _figures(state, references, follow=True):
            known.pop(str(figures["TaskID"]), None)  # so that the longest silent ones come first
            known[str(figures["TaskID"])] = (state.wall.now(), figures)
            while state.wall.now() - next(iter(known.values()))[0] >= SILENT_S:
                del known[next(iter(known))]


def _table(rows: Sequence[Mapping[str, str]]) -> Any:
    from rich import box, table

    drawn = table.Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for name in SHOWN:
        drawn.add_column(HEADERS[name], no_wrap=True, justify="left" if name in ("Name", "Node") else "right")
    for each in rows:
        drawn.add_row(*(each[name] for name in SHOWN))
    return drawn
