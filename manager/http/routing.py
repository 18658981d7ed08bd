"""The table of routes: which handler answers what, and who may answer it."""

import dataclasses
import enum
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable

from manager.http import messages
from skep import errors

Handler = Callable[[messages.Call], Awaitable[messages.Response]]

_PREFIX = re.compile(r"/v(\d{1,4})\.(\d{1,4})(?=/)")
_PARAM = re.compile(r"\{(\w+)(\.\.\.)?\}")


class Scope(enum.Enum):
    """Who may answer."""

    LOCAL = "local"  # this machine, whatever it is
    READ = "read"  # the leader, once it has proved that it leads
    WRITE = "write"  # the leader


class Transfer(enum.Enum):
    """How request and answer travel."""

    WHOLE = "whole"  # the body is read before the handler is called
    BODY = "body"  # the handler takes the body as it comes
    RAW = "raw"  # the answer is 101, then the connection is the handler's


@dataclasses.dataclass(frozen=True)
class Route:
    """One line of the table. `{name}` is one segment of the path, `{name...}` may contain slashes."""

    method: str
    path: str
    scope: Scope
    handler: Handler
    transfer: Transfer = Transfer.WHOLE

    @property
    def pattern(self) -> re.Pattern[str]:
        """What the path must look like, still percent-encoded."""
        pieces: list[str] = []
        end = 0
        for match in _PARAM.finditer(self.path):
            pieces.append(re.escape(self.path[end : match.start()]))
            pieces.append(f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})")
            end = match.end()
        return re.compile("".join(pieces) + re.escape(self.path[end:]))


class Table:
    """Finds the route for a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [(route, route.pattern) for route in routes]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route and the values in its path. HEAD is answered as GET is."""
        wanted = "GET" if method == "HEAD" else method
        for route, pattern in self._routes:
            if route.method != wanted:
                continue
            match = pattern.fullmatch(path)
            if match is not None:
                return route, {name: urllib.parse.unquote(value) for name, value in match.groupdict().items()}
        return None


def strip_version(path: str) -> str:
    """The path without Docker's /v1.41. Raises Invalid for a version that is not spoken here."""
    match = _PREFIX.match(path)
    if match is None:
        return path
    version = (int(match[1]), int(match[2]))
    if version > messages.API_VERSION:
        raise errors.Invalid(
            f"client version {_dotted(version)} is too new. "
            f"Maximum supported API version is {_dotted(messages.API_VERSION)}"
        )
    if version < messages.API_VERSION_MIN:
        raise errors.Invalid(
            f"client version {_dotted(version)} is too old. Minimum supported API version is "
            f"{_dotted(messages.API_VERSION_MIN)}, please upgrade your client to a newer version"
        )
    return path[match.end() :]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
