"""service logs: what tasks have printed, with the task and node in front of every line."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import click

from skep import client, errors
from skep.cli import app, completing, lazy, services, tasks, text, values

HEADER_BYTES = 8  # Docker's frames: stream, three zeros, the payload's length in four bytes
FRAME_BYTES_MAX = 16 << 20
STDERR = 2
SYSTEM_ERROR = 3
ORIGIN = "io.skep.origin"  # a detail of lines that are not the task's, or not from where it runs
CLOCK_STEP_S = 1e-6  # what rounding a time stamp to a float may cost


def frames(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """(stream, payload) of every frame. Raises SkepError when the answer is not in frames."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= HEADER_BYTES:
            length = int.from_bytes(buffer[4:HEADER_BYTES], "big")
            if buffer[1:4] != b"\0\0\0" or length > FRAME_BYTES_MAX:
                raise errors.SkepError("the logs are not in Docker's frames: is the service's terminal on? Try --raw")
            if len(buffer) < HEADER_BYTES + length:
                break
            stream, payload = buffer[0], bytes(buffer[HEADER_BYTES : HEADER_BYTES + length])
            del buffer[: HEADER_BYTES + length]
            yield stream, payload


def since_seconds(wanted: str, *, now: float) -> str:
    """--since as the API wants it: seconds since the epoch. Takes a time, such seconds, or a length of time ago.

    Raises ValueError.
    """
    stamped = text.seconds_of(wanted)
    if stamped is not None:
        return f"{stamped:.9f}"
    if wanted.replace(".", "", 1).isdecimal():
        return wanted
    try:
        return f"{now - values.duration_ns(wanted) / values.NANOS:.9f}"
    except ValueError:
        raise ValueError(
            f"{wanted!r} is neither a time nor a length of time; write 42m or 2026-01-02T13:23:37Z"
        ) from None


def details_of(payload: bytes, *, timestamps: bool) -> tuple[bytes, dict[str, str], bytes]:
    """(timestamp, details, line) of a payload that was asked for with details=1."""
    stamp = b""
    if timestamps:
        stamp, _, payload = payload.partition(b" ")
    head, _, line = payload.partition(b" ")
    pairs = (pair.partition("=") for pair in head.decode(errors="replace").split(","))
    return stamp, {key: value for key, _, value in pairs}, line


class _Prefixes:
    """`web.1.abc123456789@n1    |`: who said it. Looks names up once a task."""

    def __init__(self, state: app.App, *, resolve: bool, trunc: bool, ids: bool) -> None:
        self._state, self._resolve, self._trunc, self._ids = state, resolve, trunc, ids
        self._known: dict[str, str] = {}
        self._services: Mapping[str, str] | None = None
        self._nodes: Mapping[str, str] | None = None
        self._width = 0

    def of(self, details: Mapping[str, str]) -> str:
        """The prefix, padded to the longest one so far."""
        task_id = details.get("com.docker.swarm.task.id", "")
        if task_id not in self._known:
            self._known[task_id] = self._make(task_id, details)
            self._width = max(self._width, len(self._known[task_id]))
        return f"{self._known[task_id]:<{self._width}}    | "

    def _make(self, task_id: str, details: Mapping[str, str]) -> str:
        node_id = details.get("com.docker.swarm.node.id", "")
        if self._services is None or self._nodes is None:
            self._services = tasks.service_names(self._state) if self._resolve else {}
            self._nodes = tasks.hostnames(self._state) if self._resolve else {}
        try:
            name = tasks.name_of(self._state.client.get(f"/tasks/{client.quote(task_id)}"), self._services)
        except errors.SkepError:  # the task may be gone by now; its output is still worth showing
            service_id = details.get("com.docker.swarm.service.id", "")
            name = self._services.get(service_id, service_id)
        if self._ids:
            name += f".{text.short_id(task_id) if self._trunc else task_id}"
        return f"{name}@{self._nodes.get(node_id, node_id)}"


class Line(NamedTuple):
    """One entry of the logs."""

    stream: int
    stamp: bytes
    details: Mapping[str, str]
    text: bytes


class Lines:
    """The lines of the logs at a path. When the answer breaks off they go on where they were, none twice."""

    def __init__(self, connection: client.Client, path: str, query: Mapping[str, str]) -> None:
        """`query` without timestamps and details: those are always asked for, to know where to go on."""
        self._client = connection
        self._path = path
        self._query = {**query, "timestamps": "1", "details": "1"}
        self._last: dict[str, tuple[bytes, int]] = {}  # of each task: the last time stamp, and how many lines had it
        self._again: dict[str, tuple[bytes, int]] = {}  # the same, of what is still to be left out when it comes again
        self._kept: dict[str, None] = {}  # tasks whose kept last words came in an earlier answer
        self._said: dict[str, bytes] = {}  # what managers have said of a task since its last line

    def __iter__(self) -> Iterator[Line]:
        return self._client.resumed(self._attempt)

    def _attempt(self) -> Iterator[Line]:
        self._again = dict(self._last)
        kept = dict.fromkeys([*self._kept, *self._last])
        for stream, payload in frames(self._client.stream(self._path, self._from_here())):
            if stream == SYSTEM_ERROR:
                yield Line(stream, b"", {}, payload)
                continue
            stamp, details, line = details_of(payload, timestamps=True)
            task_id, origin = details.get("com.docker.swarm.task.id", ""), details.pop(ORIGIN, "")
            if origin == "kept":  # their time stamps are not those of their lines
                new = task_id not in kept
                self._kept[task_id] = None
            elif origin:
                new = self._said.get(task_id) != line
                self._said[task_id] = line
            else:
                new = self._new(task_id, stamp)
            if new:
                yield Line(stream, stamp, details, line)

    def _from_here(self) -> dict[str, str]:
        if not self._last:
            return self._query
        earliest = min(text.seconds_of(stamp.decode()) or 0.0 for stamp, _ in self._last.values())
        return {**self._query, "tail": "all", "since": f"{max(0.0, earliest - CLOCK_STEP_S):.9f}"}

    def _new(self, task_id: str, stamp: bytes) -> bool:
        """Notes the line; False for one that has come before."""
        known, left = self._again.get(task_id, (b"", 0))
        if stamp < known:
            return False
        if stamp == known and left:
            self._again[task_id] = (known, left - 1)
            return False
        self._again.pop(task_id, None)
        self._said.pop(task_id, None)
        last, count = self._last.get(task_id, (b"", 0))
        self._last[task_id] = (stamp, count + 1 if stamp == last else 1)
        return True


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--details", is_flag=True, help="Show the details that the log driver adds."),
        click.option("--raw", is_flag=True, help="Show only what was printed."),
        click.option("--no-resolve", is_flag=True, help="Show IDs in place of names."),
        click.option("--no-task-ids", is_flag=True, help="Leave the task IDs out."),
        click.option("--no-trunc", is_flag=True, help="Show task IDs in full."),
        click.option("-t", "--timestamps", is_flag=True, help="Show when a line was printed."),
        click.option("--since", help="Show what was printed since then: 42m, or 2026-01-02T13:23:37Z."),
        click.option("-n", "--tail", default="all", show_default=True,
                     help="Lines to show from the end, of every task."),
        click.option("-f", "--follow", is_flag=True, help="Go on showing what is printed."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command(
    cls=lazy.Command,
    examples=(
        "skep service logs web",
        "skep service logs --follow --tail 20 web",
        "skep service logs --since 10m --timestamps web",
    ),
)
@_options
@click.argument("reference", metavar="SERVICE|TASK", shell_complete=completing.services)
@app.pass_app
def logs(state: app.App, /, *, reference: str, **options: Any) -> None:
    """Show what the tasks of a service, or one task, have printed. Standard error goes to standard error."""
    _show(state, reference, _source(state, reference), **options)


@click.command("logs", cls=lazy.Command, examples=("skep task logs web.2", "skep task logs --follow --tail 20 web.2"))
@_options
@click.argument("reference", metavar="TASK|SERVICE.SLOT", shell_complete=completing.tasks)
@app.pass_app
def task_logs(state: app.App, /, *, reference: str, **options: Any) -> None:
    """Show what a task has printed; SERVICE.SLOT is the one that runs there, or did last."""
    _show(state, reference, _task_source(state, reference), **options)


def _show(
    state: app.App,
    reference: str,
    source: tuple[str, bool],
    *,
    follow: bool,
    tail: str,
    since: str | None,
    timestamps: bool,
    no_trunc: bool,
    no_task_ids: bool,
    no_resolve: bool,
    raw: bool,
    details: bool,
) -> None:
    path, terminal = source
    query = {"stdout": "1", "stderr": "1", "tail": _tail(tail)}
    if follow:
        query["follow"] = "1"
    if since is not None:
        try:
            query["since"] = since_seconds(since, now=state.wall.now())
        except ValueError as problem:
            raise click.UsageError(f"Invalid value for '--since': {problem}") from None
    if terminal:
        _show_terminal(state, reference, path, query, timestamps=timestamps, raw=raw, details=details)
        return
    prefixes = None if raw else _Prefixes(state, resolve=not no_resolve, trunc=not no_trunc, ids=not no_task_ids)
    for line in Lines(state.client, path, query):
        out = sys.stderr.buffer if line.stream in (STDERR, SYSTEM_ERROR) else sys.stdout.buffer
        if line.stream == SYSTEM_ERROR:
            _write(out, [line.text])
            continue
        shown = line.details.items()
        extra = ",".join(f"{key}={value}" for key, value in shown if not key.startswith("com.docker.swarm."))
        stamp = line.stamp + b" " if timestamps else b""
        head = prefixes.of(line.details).encode() if prefixes is not None else b""
        _write(out, [head, stamp, f"{extra} ".encode() if details and extra else b"", line.text])


def _show_terminal(
    state: app.App,
    reference: str,
    path: str,
    query: dict[str, str],
    *,
    timestamps: bool,
    raw: bool,
    details: bool,
) -> None:
    """What was written to a terminal has no lines that could carry a prefix."""
    if not raw:
        raise errors.Invalid(f"the tasks of {reference} write to a terminal: their logs can only be shown with --raw")
    for name, wanted in (("timestamps", timestamps), ("details", details)):
        if wanted:
            query[name] = "1"
    for chunk in state.client.stream(path, query):
        _write(sys.stdout.buffer, [chunk])


def _write(out: BinaryIO, pieces: Sequence[bytes]) -> None:
    out.write(b"".join(pieces))
    out.flush()


def _tail(wanted: str) -> str:
    if wanted != "all" and not wanted.isdecimal():
        raise click.UsageError(f"Invalid value for '--tail': {wanted!r} is neither a number of lines nor 'all'")
    return wanted


def _source(state: app.App, reference: str) -> tuple[str, bool]:
    """The path of the logs of a service or, failing that, a task; and whether it writes to a terminal."""
    try:
        found = services.find(state, reference)
    except errors.NotFound:
        try:
            return _task_source(state, reference)
        except errors.NotFound:
            raise errors.NotFound(f"no such service or task: {reference}; 'skep service ls' shows services") from None
    return f"/services/{found['ID']}/logs", _has_terminal(found["Spec"]["TaskTemplate"])


def _task_source(state: app.App, reference: str) -> tuple[str, bool]:
    found = state.client.get(f"/skep/v1/tasks/{client.quote(reference)}")
    return f"/tasks/{found['ID']}/logs", _has_terminal(found["Spec"])


def _has_terminal(spec: Mapping[str, Any]) -> bool:
    return bool((spec.get("ContainerSpec") or {}).get("TTY"))
