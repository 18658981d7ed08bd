"""Talks Docker's HTTP API to a skepd, with the standard library only, so that the `skep` command starts fast.

Owns: the connection over a unix socket, patience while the cluster changes its leader, and the way back from HTTP
statuses to the errors of `skep.errors`. Must not: print, know about click, or import anything heavy.
"""

import contextlib
import dataclasses
import errno
import http.client
import json
import socket
import threading
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from skep import clock, errors

if TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method):
        """typing.override for Python 3.11, without an import at run time."""
        return method


DEFAULT_HOST = "unix:///run/skep/docker.sock"
API = "/v1.41"  # the smallest version that has jobs and ServiceStatus; Docker's engines answer to it too
PATIENCE_S = 15.0  # longer than an election takes; then the user is told
RETRY_PAUSE_S = 0.25
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0  # managers give up after 20 s themselves
UPGRADE_TIMEOUT_S = 60.0  # until the other side of a raw connection is there; managers give up after 40 s
SWITCHING = 101
HEAD_BYTES_MAX = 64 * 1024
STALE = "Skep-Stale"  # header of requests that accept an old answer, and of such answers
MESSAGE_CHARS_MAX = 2000  # of an error body that is not ours

Json = dict[str, Any]
Query = Mapping[str, str] | Sequence[tuple[str, str]]
T = TypeVar("T")


def sleep(seconds: float) -> None:
    """Pauses this thread; Ctrl-C still gets through."""
    threading.Event().wait(seconds)


def socket_path(host: str) -> str:
    """The path in `unix:///path` (a bare path will do). Raises Invalid for anything else."""
    if host.startswith("unix://") and host.removeprefix("unix://").startswith("/"):
        return host.removeprefix("unix://")
    if host.startswith("/"):
        return host
    raise errors.Invalid(f"--host {host!r} is not an address of skepd; write unix:///path, for example {DEFAULT_HOST}")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(min(CONNECT_TIMEOUT_S, self.timeout or CONNECT_TIMEOUT_S))
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise
        self.sock.settimeout(self.timeout)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a request came back with."""

    body: Any
    headers: Mapping[str, str]


class Client:
    """One user's view of the cluster through one skepd.

    Raises NotFound, Invalid, AlreadyExists, Conflict, Denied, Unavailable.. as the server says, Unavailable or Denied
    when the socket cannot be used.
    """

    def __init__(
        self,
        host: str = DEFAULT_HOST,
        *,
        wall: clock.Clock | None = None,
        pause: Callable[[float], None] = sleep,
        patience_s: float = PATIENCE_S,
        timeout_s: float = READ_TIMEOUT_S,
        on_retry: Callable[[str], None] | None = None,
        on_stale: Callable[[str], None] | None = None,
    ) -> None:
        """With `on_stale` reads are answered by any manager, also without a quorum; it is told how old they may be."""
        self._host = host
        self._path = socket_path(host)
        self._clock = wall or clock.SystemClock()
        self._pause = pause
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._on_retry = on_retry
        self._on_stale = on_stale
        self._kept: _UnixConnection | None = None  # kept alive between GETs only
        self.attempts = 0  # of the last request; above 1, an earlier attempt may have been carried out
        self._reached = False  # skepd has answered before, so a refused connection is worth waiting out

    def close(self) -> None:
        """Drops the connection; the next request opens another."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """The decoded JSON at `path`."""
        return self.request("GET", path, query=query).body

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        patient: bool = True,
        timeout_s: float | None = None,
    ) -> Reply:
        """One request; repeated for up to `patience_s` while there is no leader or skepd restarts.

        A request that changes something is only repeated when the server said that it did not do it, or was never
        reached.
        """
        return self._patiently(
            lambda: self._once(method, path, query, body, headers, timeout_s or self._timeout_s), patient=patient
        )

    def _patiently(self, attempt: Callable[[], T], *, patient: bool = True) -> T:
        deadline = self._clock.now() + (self._patience_s if patient else 0.0)
        self.attempts = 0
        while True:
            self.attempts += 1
            try:
                return attempt()
            except errors.Unavailable as problem:
                if not _worth_waiting(problem, reached=self._reached) or self._clock.now() >= deadline:
                    raise
                if self._on_retry is not None and self.attempts == 1:
                    self._on_retry(problem.message)
                self._pause(RETRY_PAUSE_S)

    def resumed(self, attempt: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What `attempt` yields. It is called again when it breaks off, until nothing new has come for `patience_s`."""
        deadline: float | None = None
        while True:
            try:
                for item in attempt():
                    deadline = None
                    yield item
                return
            except errors.Unavailable as problem:
                now = self._clock.now()
                if self._on_retry is not None and deadline is None:
                    self._on_retry(problem.message)
                deadline = now + self._patience_s if deadline is None else deadline
                if not _worth_waiting(problem, reached=self._reached) or now >= deadline:
                    raise
                self._pause(RETRY_PAUSE_S)

    def stream(self, path: str, query: Query | None = None) -> Generator[bytes, None, None]:
        """The bytes of an answer as they come, until the server ends it. Close the iterator to leave early.

        Raises Unavailable when the answer breaks off, besides what `request` raises.
        """
        connection = _UnixConnection(self._path, timeout_s=self._timeout_s)
        with contextlib.closing(connection):
            try:
                response = self._exchange(connection, "GET", _target(path, query), None, {})
            except (OSError, http.client.HTTPException) as problem:
                raise self._broken(problem, reading=True) from problem
            if connection.sock is not None:
                connection.sock.settimeout(None)  # a followed log may be silent for hours
            while True:
                try:
                    chunk = response.read1(65536)
                except (OSError, http.client.HTTPException) as problem:
                    raise self._broken(problem, reading=True) from problem
                if not chunk:
                    return
                yield chunk

    def connect(self, path: str, *, body: Any = None) -> socket.socket:
        """POSTs, and returns the raw connection that the server answers with (101). Whoever calls closes it."""
        payload = b"" if body is None else json.dumps(body).encode()
        headers = {"Connection": "Upgrade", "Upgrade": "tcp", "Content-Type": "application/json"}

        def attempt() -> socket.socket:
            connection = _UnixConnection(self._path, timeout_s=max(self._timeout_s, UPGRADE_TIMEOUT_S))
            try:
                return self._upgrade(connection, _target(path, None), payload, headers)
            except BaseException:
                connection.close()
                raise

        return self._patiently(attempt)

    def _upgrade(
        self, connection: _UnixConnection, target: str, payload: bytes, headers: Mapping[str, str]
    ) -> socket.socket:
        try:
            connection.connect()
        except OSError as problem:
            raise self._unreachable(problem) from problem
        try:
            connection.request("POST", target, body=payload, headers=dict(headers))
            status, raw = _answer_of(connection.sock)
        except (OSError, ValueError) as problem:
            raise self._broken(problem, reading=False) from problem
        self._reached = True
        if status != SWITCHING:
            raise error_of(status, raw)
        connection.sock.settimeout(None)
        return connection.sock

    def upload(self, path: str, chunks: Iterable[bytes], query: Mapping[str, str] | None = None) -> None:
        """PUTs a body of any length. Not repeated: the chunks are gone."""
        connection = _UnixConnection(self._path, timeout_s=self._timeout_s)
        with contextlib.closing(connection):
            try:
                connection.connect()
            except OSError as problem:
                raise self._unreachable(problem) from problem
            connection.sock.settimeout(None)  # whoever takes it may be slow
            # A server that refuses answers before it has read everything: what it says is worth more than that.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                headers = {"Content-Type": "application/x-tar", "Transfer-Encoding": "chunked"}
                connection.request("PUT", _target(path, query), body=chunks, headers=headers, encode_chunked=True)
            try:
                status, raw = _answer_of(connection.sock)
            except (OSError, ValueError) as problem:
                raise self._broken(problem, reading=False) from problem
            if status >= 400:  # noqa: PLR2004
                raise error_of(status, raw)

    def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> Reply:
        reading = method == "GET"
        connection = _UnixConnection(self._path, timeout_s=timeout_s)
        if reading and self._kept is not None:
            connection, self._kept = self._kept, None
        payload = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if payload is not None else {}
        try:
            response = self._exchange(connection, method, _target(path, query), payload, {**sent, **(headers or {})})
            raw = response.read()
        except (OSError, http.client.HTTPException) as problem:
            connection.close()
            raise self._broken(problem, reading=reading) from problem
        except BaseException:
            connection.close()
            raise
        if reading and not response.will_close:
            self._kept = connection
        else:
            connection.close()
        try:
            decoded = json.loads(raw) if raw.strip() else None
        except ValueError:
            decoded = raw.decode(errors="replace")
        return Reply(decoded, dict(response.getheaders()))

    def _exchange(
        self,
        connection: _UnixConnection,
        method: str,
        target: str,
        payload: bytes | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as problem:
                raise self._unreachable(problem) from problem
        sent = dict(headers)
        if self._on_stale is not None:
            if method != "GET":
                raise errors.Invalid("--stale only reads: a change takes a leader; leave --stale out")
            sent[STALE] = "1"
        connection.request(method, target, body=payload, headers=sent)
        response = connection.getresponse()
        self._reached = True
        if response.status >= 400:  # noqa: PLR2004
            raise error_of(response.status, response.read())
        if self._on_stale is not None and response.getheader(STALE):
            self._on_stale(_how_old(response.getheader("Skep-Index", ""), response.getheader("Skep-Age", "")))
        return response

    def _unreachable(self, problem: OSError) -> errors.SkepError:
        if problem.errno in (errno.EACCES, errno.EPERM):
            return errors.Denied(
                f"permission denied on {self._host}: the socket belongs to another user. "
                "Run the command as root (sudo), or name your own skepd with --host or SKEP_HOST"
            )
        reason = {
            errno.ENOENT: "the socket does not exist",
            errno.ECONNREFUSED: "nobody listens on the socket",
        }.get(problem.errno or 0, str(problem))
        return _NotReached(
            f"cannot reach skepd at {self._host}: {reason}; is it running? "
            "Start it (systemctl start skepd, or skep dev), or name another socket with --host or SKEP_HOST"
        )

    def _broken(self, problem: Exception, *, reading: bool) -> errors.Unavailable:
        if reading:
            return _Interrupted(f"skepd at {self._host} broke off the answer ({_reason(problem)})")
        return errors.Unavailable(
            f"skepd at {self._host} broke off before it answered ({_reason(problem)}): the change may or may not have "
            "been made. Look before you repeat it"
        )


class _NotReached(errors.Unavailable):
    """No connection: the request was certainly not carried out."""


class _Interrupted(errors.Unavailable):
    """A read broke off; reading again does no harm."""


class _NoLeader(errors.Unavailable):
    """The server says that it cannot now."""


def _reason(problem: Exception) -> str:
    return str(problem) or type(problem).__name__


def _how_old(index: str, age_s: str) -> str:
    since = "it has not heard of a leader since it started" if age_s == "unknown" else f"it was current {age_s} s ago"
    return f"this manager answered without asking the leader: state {index}, {since}"


def _worth_waiting(problem: errors.Unavailable, *, reached: bool) -> bool:
    return isinstance(problem, _NoLeader | _Interrupted) or (isinstance(problem, _NotReached) and reached)


def _target(path: str, query: Query | None) -> str:
    prefix = "" if path.startswith(("/skep/", "/_ping")) else API
    return prefix + path + ("?" + urllib.parse.urlencode(query) if query else "")


def _answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """(status, body) of an answer, and not a byte of what follows a 101. Raises ValueError when it is none."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte or len(head) > HEAD_BYTES_MAX:
            raise ValueError("the connection was closed before there was an answer")
        head += byte
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split()[1])
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = bytearray()
    length = 0 if status == SWITCHING else int(fields.get("content-length", "0"))
    while len(body) < length:
        piece = connection.recv(length - len(body))
        if not piece:
            break
        body += piece
    return status, bytes(body)


def error_of(status: int, raw: bytes) -> errors.SkepError:
    """The error of our tree for an HTTP answer of 400 or more."""
    try:
        decoded = json.loads(raw)
        message = str(decoded["message"]) if isinstance(decoded, dict) and "message" in decoded else str(decoded)
    except ValueError:
        message = raw.decode(errors="replace").strip()[:MESSAGE_CHARS_MAX]
    if message.startswith("rpc error: code = ") and " desc = " in message:  # how Docker's engines wrap theirs
        message = message.split(" desc = ", 1)[1]
    message = message.strip() or f"the server answered with HTTP status {status} and no explanation"
    if "update out of sequence" in message:
        return errors.Conflict(message)
    if status == 503:  # noqa: PLR2004
        # "This node is not a swarm manager", "This node is already part of a swarm": waiting changes nothing.
        return errors.FailedPrecondition(message) if message.startswith(("This node", "Swarm ")) else _NoLeader(message)
    kinds: dict[int, type[errors.SkepError]] = {
        400: errors.Invalid,
        401: errors.Denied,
        403: errors.Denied,
        404: errors.NotFound,
        409: errors.AlreadyExists,
        501: errors.Unimplemented,
    }
    return kinds.get(status, errors.SkepError)(message)


def quote(reference: str) -> str:
    """A name or ID as one path segment. Raises Invalid when it is empty: the path would mean something else."""
    if not reference.strip():
        raise errors.Invalid("an empty name or ID was given")
    return urllib.parse.quote(reference, safe="")


def filters_of(wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The `filters` query in the form of Docker's own client; keys without values are left out."""
    chosen = {key: dict.fromkeys(values, True) for key, values in wanted.items() if values}
    return {"filters": json.dumps(chosen)} if chosen else {}
