"""A small skepd for tests of the command: Docker's API on a unix socket over plain dictionaries.

Every request is recorded. A test changes `services`, `tasks` and `nodes` between polls through `on_look`.
"""

import contextlib
import http.server
import json
import pathlib
import socketserver
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from skep.cli import app, main
from tests.skep.cli import objects

Json = dict[str, Any]
Answer = tuple[int, Any]


class Request:
    """What a client has sent."""

    def __init__(self, method: str, target: str, headers: dict[str, str], raw: bytes) -> None:
        split = urllib.parse.urlsplit(target)
        self.method = method
        self.path = urllib.parse.unquote(split.path).removeprefix("/v1.41")
        self.query = dict(urllib.parse.parse_qsl(split.query))
        self.filters: Json = json.loads(self.query.get("filters", "{}"))
        self.headers = headers
        self.body: Any = json.loads(raw) if raw else None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def address_string(self) -> str:  # type: ignore[explicit-override]
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:  # type: ignore[explicit-override]
        pass

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, dict(self.headers.items()), raw)
        answer = self.server.world.answer(request)
        if answer is None:  # the test wants the connection to break
            self.close_connection = True
            return
        status, body = answer
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - names of the base class


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    world: "FakeSkepd"

    def get_request(self) -> Any:  # type: ignore[explicit-override]
        connection, _ = super().get_request()
        return connection, ("unix", 0)


class FakeClock:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.seconds = objects.NOW

    def now(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += seconds


class FakeSkepd:
    """The server's state, and ways to drive the command against it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.host = f"unix://{path}"
        self.clock = FakeClock()
        self.requests: list[Request] = []
        self.services: list[Json] = []
        self.tasks: list[Json] = []
        self.nodes: list[Json] = [objects.node("n1", leader=True)]
        self.routes: dict[tuple[str, str], Callable[[Request], Answer | None]] = {}
        self.on_look: Callable[[int], None] = lambda look: None
        self.looks = 0

    def run(self, *arguments: str, terminal: bool = False) -> int:
        """Runs the command in this process; returns its exit code."""
        state = app.App(wall=self.clock, pause=self.clock.pause, terminal=terminal)
        return main.run(["--host", self.host, *arguments], state=state)

    def sent(self, method: str, path: str) -> list[Request]:
        """The recorded requests of that kind."""
        return [each for each in self.requests if (each.method, each.path) == (method, path)]

    def answer(self, request: Request) -> Answer | None:
        """What the server says."""
        self.requests.append(request)
        route = self.routes.get((request.method, request.path))
        if route is not None:
            return route(request)
        noun, _, rest = request.path.removeprefix("/").partition("/")
        reference, _, verb = rest.partition("/")
        if request.method == "GET" and request.path == "/info":
            return 200, objects.info()
        if noun == "services":
            return self._service(request, reference, verb)
        if noun in ("nodes", "tasks") and request.method == "GET":
            return self._read(getattr(self, noun), noun.removesuffix("s"), reference)
        if noun == "nodes" and verb == "update":
            found = self._find(self.nodes, reference)
            assert found is not None
            found["Spec"] = request.body
            return 200, None
        return 404, {"message": "page not found"}

    def _service(self, request: Request, reference: str, verb: str) -> Answer:
        if request.path == "/services/create":
            made = objects.service("new", request.body)
            self.services.append(made)
            return 201, {"ID": made["ID"], "Warnings": None}
        found = self._find(self.services, reference)
        if request.method == "GET":
            if reference:
                self.looks += 1
                self.on_look(self.looks)
            return self._read(self.services, "service", reference)
        if found is None:
            return 404, {"message": f"service {reference} not found"}
        if request.method == "DELETE":
            self.services.remove(found)
            return 200, None
        if int(request.query["version"]) != found["Version"]["Index"]:
            return 500, {"message": "rpc error: code = Unknown desc = update out of sequence"}
        found["Version"]["Index"] += 1
        if verb == "update" and "rollback" not in request.query:
            found["Spec"] = request.body
        return 200, {"Warnings": None}

    def _read(self, found: list[Json], kind: str, reference: str) -> Answer:
        if not reference:
            return 200, found
        one = self._find(found, reference)
        return (200, one) if one is not None else (404, {"message": f"{kind} {reference} not found"})

    @staticmethod
    def _find(found: list[Json], reference: str) -> Json | None:
        for each in found:
            name = each["Spec"].get("Name") or (each.get("Description") or {}).get("Hostname")
            if reference in (each["ID"], name):
                return each
        return None


@contextlib.contextmanager
def serve(directory: pathlib.Path) -> Iterator[FakeSkepd]:
    """A running server in `directory`."""
    path = directory / "d.sock"
    world = FakeSkepd(path)
    with _Server(str(path), _Handler) as server:
        server.world = world
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield world
        finally:
            server.shutdown()
            thread.join()
