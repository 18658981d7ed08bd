"""Waits until services have converged, and shows how it goes: a live table on a terminal, plain lines in a pipe."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from skep import client, errors
from skep.cli import app, converge, tasks

POLL_S = 0.2  # as Docker's client
POLL_SHARE = 4.0  # with slow answers (thousands of tasks) we pause four times as long as a look takes
NODES_EVERY = 10  # polls between two looks at the nodes; names and states change seldom
ROWS_MAX = 20  # single tasks shown; beyond it only counts
EXIT_INTERRUPTED = 130
NANOS = 1_000_000_000
TASK_ID = re.compile(r"\b[0-9a-z]{25}\b")

Json = Mapping[str, Any]
Show = Callable[[str, converge.Step], None]


def wait(
    state: app.App,
    service_id: str,
    *,
    before: Json | None = None,
    rollback: bool = False,
    quiet: bool = False,
    timeout_ns: int | None = None,
) -> None:
    """Returns when the service has become what was asked for; otherwise raises, so that the exit code says so.

    `before` and `rollback`: see `converge.Judge`. Ctrl-C ends the wait, not the change.
    """
    judge = converge.Judge(before=before, rollback=rollback)
    deadline = None if timeout_ns is None else state.wall.now() + timeout_ns / NANOS
    name = service_id
    try:
        with _display(state, quiet=quiet) as show:
            look = _Look(state, service_id)
            while True:
                started = state.wall.now()
                service, found, nodes = look()
                name = str(service["Spec"].get("Name", service_id))
                step = judge.step(service, found, nodes, now=state.wall.now())
                show(name, step)
                if step.outcome is not None:
                    break
                if deadline is not None and state.wall.now() >= deadline:
                    raise errors.Unavailable(_late(name, step))
                state.pause(max(POLL_S, POLL_SHARE * (state.wall.now() - started)))
    except KeyboardInterrupt:
        state.warn(f"\n{name}: the change goes on in the background; look with 'skep service ps {name}'.")
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except errors.NotFound:
        raise errors.NotFound(f"service {name} was removed while its tasks were awaited") from None
    if not step.outcome.ok:
        raise errors.FailedPrecondition(step.outcome.message + _task_error(state, step.outcome.message))
    if not quiet:
        state.say(step.outcome.message)


def _task_error(state: app.App, message: str) -> str:
    """What the task that a message names died of; empty when the message says it already, or nobody knows."""
    named = TASK_ID.search(message)
    if named is None:
        return ""
    try:
        error = tasks.reason_of(state.client.get(f"/tasks/{named[0]}"))
    except errors.SkepError:
        return ""
    return f" ({error})" if error and error not in message else ""


def _late(name: str, step: converge.Step) -> str:
    why = f": {step.picture.reasons[0]}" if step.picture.reasons else ""
    counts = f"{step.picture.running}/{step.picture.total}"
    return f"{name}: still at {counts} when --timeout ran out{why}. The change goes on in the background"


class _Look:
    """One poll: the service, its tasks of the present specification, and the nodes."""

    def __init__(self, state: app.App, service_id: str) -> None:
        self._state = state
        self._path = f"/services/{client.quote(service_id)}"
        self._filters = client.filters_of({"service": [service_id], "_up-to-date": ["true"]})
        self._nodes: dict[str, Json] = {}
        self._polls = 0

    def __call__(self) -> tuple[Json, list[Json], dict[str, Json]]:
        service = self._state.client.get(self._path)
        found = self._state.client.get("/tasks", self._filters) or []
        unknown = any(task.get("NodeID") and task["NodeID"] not in self._nodes for task in found)
        if unknown or self._polls % NODES_EVERY == 0:
            self._nodes = {node["ID"]: node for node in self._state.client.get("/nodes") or []}
        self._polls += 1
        return service, found, self._nodes


@contextlib.contextmanager
def _display(state: app.App, *, quiet: bool) -> Iterator[Show]:
    if quiet:
        yield lambda name, step: None
    elif state.on_terminal:
        with _live() as show:
            yield show
    else:
        yield _Lines(state)


def headline(name: str, step: converge.Step) -> str:
    """`web: 3/6 running, updating`."""
    picture = step.picture
    what = "complete" if picture.job else "running"
    return f"{name}: {picture.running}/{picture.total} {what}" + (f", {step.phase}" if step.phase else "")


class _Lines:
    """A line whenever the headline or the reason has changed."""

    def __init__(self, state: app.App) -> None:
        self._state = state
        self._last = ""

    def __call__(self, name: str, step: converge.Step) -> None:
        if step.outcome is not None and step.outcome.ok:
            return  # the closing line says it
        line = headline(name, step)
        if step.picture.reasons and not step.picture.done:
            line += f" ({step.picture.reasons[0]})"
        if line != self._last:
            self._last = line
            self._state.say(line)


@contextlib.contextmanager
def _live() -> Iterator[Show]:
    """A table in place. rich is imported here: nothing but a terminal needs it."""
    from rich import console, live

    screen = console.Console(force_terminal=True)
    with live.Live(console=screen, auto_refresh=False) as drawn:
        yield lambda name, step: drawn.update(_table(name, step), refresh=True)


def _table(name: str, step: converge.Step) -> Any:
    from rich import box, console, table, text

    picture = step.picture
    countdown = f" ({int(step.left_s) + 1} s)" if step.left_s > 0 else ""
    head = text.Text(headline(name, step) + countdown, style="bold green" if picture.done else "bold")
    if picture.total > ROWS_MAX or len(picture.slots) > ROWS_MAX:
        counts: dict[str, int] = {}
        for slot in picture.slots:
            counts[slot.state] = counts.get(slot.state, 0) + 1
        lines = [f"  {amount} {word}" for word, amount in counts.items()]
        lines += [f"  {reason}" for reason in picture.reasons[:3]]
        return console.Group(head, *(text.Text(line) for line in lines))
    rows = table.Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for title in ("TASK", "STATE", "NODE", "ERROR"):
        rows.add_column(title)
    shown = {slot.name: slot for slot in picture.slots}
    if all(key.isdecimal() for key in shown) and not picture.job:
        waiting = converge.Slot(name="", state="new")
        shown = {str(number): shown.get(str(number), waiting) for number in range(1, picture.total + 1)} | shown
    for key, slot in shown.items():
        style = {"running": "green", "complete": "green", "failed": "red", "rejected": "red"}.get(slot.state, "yellow")
        rows.add_row(f"{name}.{key}", text.Text(slot.state, style=style), slot.host, text.Text(slot.error, style="red"))
    return console.Group(head, rows)
