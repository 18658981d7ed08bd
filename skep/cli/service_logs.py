"""service logs: what tasks have printed, with the task and node in front of every line."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import click

from skep import client, errors
from skep.cli import app, completing, lazy, services, tasks, text, values

HEADER_BYTES = 8  # Docker's frames: stream, three zeros, the payload's length in four bytes
FRAME_BYTES_MAX = 16 << 20
STDERR = 2
SYSTEM_ERROR = 3


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


@click.command(
    cls=lazy.Command,
    examples=(
        "skep service logs web",
        "skep service logs --follow --tail 20 web",
        "skep service logs --since 10m --timestamps web",
    ),
)
@click.option("-f", "--follow", is_flag=True, help="Go on showing what is printed.")
@click.option("-n", "--tail", default="all", show_default=True, help="Lines to show from the end, of every task.")
@click.option("--since", help="Show what was printed since then: 42m, or 2026-01-02T13:23:37Z.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when a line was printed.")
@click.option("--no-trunc", is_flag=True, help="Show task IDs in full.")
@click.option("--no-task-ids", is_flag=True, help="Leave the task IDs out.")
@click.option("--no-resolve", is_flag=True, help="Show IDs in place of names.")
@click.option("--raw", is_flag=True, help="Show only what was printed.")
@click.option("--details", is_flag=True, help="Show the details that the log driver adds.")
@click.argument("reference", metavar="SERVICE|TASK", shell_complete=completing.services)
@app.pass_app
def logs(
    state: app.App,
    *,
    reference: str,
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
    """Show what the tasks of a service, or one task, have printed. Standard error goes to standard error."""
    path, terminal = _source(state, reference)
    query = {"stdout": "1", "stderr": "1", "tail": _tail(tail)}
    if follow:
        query["follow"] = "1"
    if timestamps:
        query["timestamps"] = "1"
    if since is not None:
        try:
            query["since"] = since_seconds(since, now=state.wall.now())
        except ValueError as problem:
            raise click.UsageError(f"Invalid value for '--since': {problem}") from None
    if terminal and not raw:
        raise errors.Invalid(f"the tasks of {reference} write to a terminal: their logs can only be shown with --raw")
    if not raw or details:
        query["details"] = "1"
    prefixes = None if raw else _Prefixes(state, resolve=not no_resolve, trunc=not no_trunc, ids=not no_task_ids)
    chunks = state.client.stream(path, query)
    if terminal:
        for chunk in chunks:
            _write(sys.stdout.buffer, [chunk])
        return
    for stream, payload in frames(chunks):
        out = sys.stderr.buffer if stream in (STDERR, SYSTEM_ERROR) else sys.stdout.buffer
        if prefixes is None:
            _write(out, [payload])
            continue
        stamp, context, line = details_of(payload, timestamps=timestamps)
        extra = ",".join(f"{key}={value}" for key, value in context.items() if not key.startswith("com.docker.swarm."))
        pieces = [prefixes.of(context).encode(), stamp + b" " if stamp else b""]
        _write(out, [*pieces, f"{extra} ".encode() if details and extra else b"", line])


def _write(out: BinaryIO, pieces: Sequence[bytes]) -> None:
    out.write(b"".join(pieces))
    out.flush()


def _tail(wanted: str) -> str:
    if wanted != "all" and not wanted.isdecimal():
        raise click.UsageError(f"Invalid value for '--tail': {wanted!r} is neither a number of lines nor 'all'")
    return wanted


def _source(state: app.App, reference: str) -> tuple[str, bool]:
    """The path of the logs of a service or, failing that, a task; and whether it writes to a terminal."""
    found: Any
    try:
        found = services.find(state, reference)
        spec, path = found["Spec"]["TaskTemplate"], f"/services/{found['ID']}/logs"
    except errors.NotFound:
        try:
            found = state.client.get(f"/tasks/{client.quote(reference)}")
        except errors.NotFound:
            raise errors.NotFound(f"no such service or task: {reference}; 'skep service ls' shows services") from None
        spec, path = found["Spec"], f"/tasks/{found['ID']}/logs"
    return path, bool((spec.get("ContainerSpec") or {}).get("TTY"))
