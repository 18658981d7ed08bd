"""Requests, responses, and what one call to a handler carries. Knows no web framework."""

import dataclasses
import json
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import prometheus_client

from manager.control import control
from manager.http import backend
from skep import errors

API_VERSION = (1, 41)  # the smallest that all of Docker's present clients accept
API_VERSION_MIN = (1, 24)
BODY_BYTES_MAX = 4 * 1024 * 1024  # the largest thing anybody sends is a stack's config of 1000 KiB in base64
SWITCHING = 101
NOT_DONE = "skep-not-done"  # header of a refusal: the leader has certainly not carried the request out
NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this "
    "command on a manager node or promote the current node to a manager."
)
PREPARING = "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster."
_FALSE = ("", "0", "no", "false", "none")


class Duplex(Protocol):
    """A connection whose HTTP is over: bytes both ways. Its owner closes it."""

    async def read(self) -> bytes:
        """Some bytes; empty once the other end has said all, or is gone."""
        ...

    async def write(self, data: bytes) -> None:
        """Waits while the other end does not keep up. Raises Unavailable when it is gone."""
        ...

    async def write_eof(self) -> None:
        """Nothing more will be written; the other end may still say something."""
        ...


class Gone:
    """The Duplex of a client that has left before it got its connection: lets an upgrade end what it holds."""

    async def read(self) -> bytes:
        """Nothing."""
        return b""

    async def write(self, data: bytes) -> None:
        """Raises Unavailable."""
        raise errors.Unavailable("the client has gone")

    async def write_eof(self) -> None:
        """Raises Unavailable."""
        raise errors.Unavailable("the client has gone")


@dataclasses.dataclass(frozen=True)
class Request:
    """An HTTP request as it arrived. Header names are in lower case."""

    method: str
    target: str  # path and query
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)  # may hold passwords
    body: bytes = dataclasses.field(default=b"", repr=False)
    incoming: AsyncIterator[bytes] | None = None  # the body as it comes, for routes that take it so
    forwarded: bool = False  # another manager has sent it on already: never send it further


@dataclasses.dataclass
class Response:
    """An answer: a whole body, a stream of pieces, or with status 101 a raw connection.

    Whoever takes a stream closes it; whoever takes an upgrade calls it once, in any case.
    """

    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    stream: AsyncGenerator[bytes, None] | None = None
    upgrade: Callable[[Duplex], Awaitable[None]] | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """What handlers work on."""

    machine: backend.Machine
    registry: prometheus_client.CollectorRegistry

    @property
    def manager(self) -> backend.Manager:
        """The manager part of this machine. Raises Unavailable in Docker's words when it has none."""
        manager = self.machine.manager
        if manager is None:
            raise errors.Unavailable(self._why_no_manager())
        return manager

    @property
    def control(self) -> control.Control:
        """Writes to the cluster's state."""
        manager = self.manager
        return control.Control(
            state=manager.store, committer=manager.committer, time=self.machine.clock, rng=self.machine.rng
        )

    def _why_no_manager(self) -> str:
        info = self.machine.info()
        if info.state == "active":
            return WORKER
        if info.state == "error" and info.error:
            return f"This node is not a swarm manager. {info.error}"
        return PREPARING if info.state == "pending" else NO_SWARM


@dataclasses.dataclass(frozen=True)
class Call:
    """One request on its way into a handler."""

    context: Context
    request: Request
    params: Mapping[str, str]  # from the path
    query: Mapping[str, list[str]]

    def text(self, name: str) -> str:
        """A query parameter; empty when it was not given."""
        return self.query.get(name, [""])[0]

    def flag(self, name: str) -> bool:
        """A boolean query parameter as Go's and Python's clients write them: 1, true, True."""
        return self.text(name).strip().lower() not in _FALSE

    def version(self, kind: str) -> int:
        """The object version that an update is based on. Raises Invalid without one."""
        text = self.text("version")
        if not (text.isascii() and text.isdigit() and int(text) < 2**64):
            raise errors.Invalid(f"invalid {kind} version '{text}': it must be the Version.Index that was read")
        return int(text)

    def json(self) -> Any:
        """The decoded body; None when it is empty. Raises Invalid for anything but JSON."""
        body = self.request.body
        if not body.strip():
            return None
        kind = self.request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise errors.Invalid(f"unsupported Content-Type header ({kind}): must be 'application/json'")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as problem:
            raise errors.Invalid(f"invalid JSON: {problem}") from None


def members(value: object) -> dict[str, Any]:
    """The members of a JSON object by their names in lower case, as Go's servers read them; none of anything else."""
    return {str(name).lower(): item for name, item in value.items()} if isinstance(value, dict) else {}


def json_response(value: Any, *, status: int = 200) -> Response:
    """JSON without a charset in its type: with one, Docker's command prints the raw body of an error."""
    body = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return Response(status=status, headers={"Content-Type": "application/json"}, body=body)


def empty_response(*, status: int = 200) -> Response:
    """Nothing but a status."""
    return Response(status=status)


def upgrade_response(upgrade: Callable[[Duplex], Awaitable[None]]) -> Response:
    """101 as Docker answers it."""
    headers = {"Content-Type": "application/vnd.docker.raw-stream", "Connection": "Upgrade", "Upgrade": "tcp"}
    return Response(status=SWITCHING, headers=headers, upgrade=upgrade)


def error_response(status: int, message: str) -> Response:
    """An error in Docker's form."""
    return json_response({"message": message}, status=status)


def split_target(target: str) -> tuple[str, dict[str, list[str]]]:
    """(path still percent-encoded, query). Raises Invalid for a query that is not one."""
    path, _, query = target.partition("?")
    try:
        return path, urllib.parse.parse_qs(query, keep_blank_values=True, max_num_fields=100)
    except ValueError as problem:
        raise errors.Invalid(f"invalid query: {problem}") from None
