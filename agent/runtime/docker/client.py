"""Calls to the Docker Engine API over its unix socket.

Owns the connection, the API version and the translation of failures; every call has a time limit, because an engine can
hang. Must not know what a task is.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from agent.runtime import base
from skep import errors

Version = tuple[int, int]
VERSION_MIN: Version = (1, 40)  # Docker 19.03
VERSION_MAX: Version = (1, 51)  # the newest one this driver was written for; newer engines still answer it
CALL_S = 30.0  # for calls that an idle engine answers in milliseconds
PING_S = 5.0
CALLS_MAX = 16  # short ones at the same time; engines serialise most of their work anyway
READ_BYTES = 64 * 1024


class EngineAway(base.TaskTemporary, errors.Unavailable):
    """The engine does not answer, or not in time."""


class EngineFailed(errors.SkepError):
    """The engine tried and could not (HTTP 5xx); the text is its own."""


ERRORS: dict[int, type[errors.SkepError]] = {
    400: errors.Invalid,
    401: errors.Denied,
    403: errors.Denied,
    404: errors.NotFound,
    409: errors.Conflict,
}


def parse_version(text: str) -> Version:
    """ "1.41" as (1, 41). Raises ValueError."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def negotiate(*, newest: str, oldest: str) -> Version:
    """The API version to speak with an engine that speaks `oldest` to `newest`. Raises EngineAway."""
    try:
        upper = parse_version(newest)
        lower = parse_version(oldest) if oldest else VERSION_MIN
    except ValueError:
        raise EngineAway(f"the engine names an API version that cannot be read: {newest!r}, {oldest!r}") from None
    chosen = min(upper, VERSION_MAX)
    if chosen < VERSION_MIN or chosen < lower:
        raise EngineAway(
            f"the engine speaks API {oldest or '?'} to {newest}, skep {VERSION_MIN[0]}.{VERSION_MIN[1]} "
            f"to {VERSION_MAX[0]}.{VERSION_MAX[1]}"
        )
    return chosen


class Client:
    """One engine. Raises EngineAway, EngineFailed, or Invalid, Denied, NotFound, Conflict with the engine's words."""

    def __init__(self, socket: str, *, call_s: float = CALL_S) -> None:
        """`call_s` bounds every call that does not bring a time limit of its own."""
        self.socket = socket.removeprefix("unix://")
        self.version: Version = VERSION_MIN
        self._agreed = False  # on that version, with the engine as it is now
        self._call_s = call_s
        self._session: aiohttp.ClientSession | None = None
        self._calls = asyncio.Semaphore(CALLS_MAX)

    @property
    def is_open(self) -> bool:
        """Between `open` and `close`, whether or not the engine answers."""
        return self._session is not None

    async def open(self) -> None:
        """Connects and agrees on the API version; again, to agree with an engine that came back.

        Raises EngineAway when no engine answers; it is open all the same, and agrees before the first call.
        """
        if self._session is None:
            connector = aiohttp.UnixConnector(self.socket, limit=0)
            # Proxies and cookies of the environment have no business on a local socket.
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        await self._agree()

    async def _agree(self) -> None:
        answer = await self._call("GET", "/version", timeout_s=PING_S)
        if not isinstance(answer, dict) or "ApiVersion" not in answer:
            raise EngineAway(f"what answers at {self.socket} is no container engine")
        self.version = negotiate(newest=str(answer["ApiVersion"]), oldest=str(answer.get("MinAPIVersion", "")))
        self._agreed = True

    async def close(self) -> None:
        """Breaks off whatever is under way."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, *, query: Mapping[str, str] | None = None, timeout_s: float | None = None) -> Any:
        """GET; the decoded JSON."""
        async with self._calls:
            return await self._call("GET", await self._versioned(path), query=query, timeout_s=timeout_s)

    async def post(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        timeout_s: float | None = None,
    ) -> Any:
        """POST; the decoded JSON, None when there is none or nothing was to do (304)."""
        async with self._calls:
            return await self._call("POST", await self._versioned(path), query=query, body=body, timeout_s=timeout_s)

    async def labour(
        self, path: str, *, query: Mapping[str, str] | None = None, body: Any = None, timeout_s: float
    ) -> Any:
        """POST that may take long; it is given up earlier when the engine meanwhile does not answer what is easy.

        Whoever calls bounds how many at a time: those that hang must keep nobody from asking.
        """
        working = asyncio.ensure_future(
            self._call("POST", await self._versioned(path), query=query, body=body, timeout_s=timeout_s)
        )
        try:
            while not (await asyncio.wait((working,), timeout=self._call_s))[0]:
                await self._call("GET", "/version", timeout_s=min(PING_S, self._call_s))
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def wait(self, path: str, *, query: Mapping[str, str] | None = None, timeout_s: float) -> Any:
        """POST that may take its time; bounded by the caller, as `labour`."""
        return await self._call("POST", await self._versioned(path), query=query, timeout_s=timeout_s)

    async def delete(self, path: str, *, query: Mapping[str, str] | None = None, timeout_s: float | None = None) -> Any:
        """DELETE; bounded by the caller, as `labour`."""
        return await self._call("DELETE", await self._versioned(path), query=query, timeout_s=timeout_s)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        idle_s: float | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """An answer without end, in chunks. `idle_s` bounds the silence between two of them."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=PING_S, sock_read=idle_s)
        async with self._translated(method, path):
            try:
                async with asyncio.timeout(self._call_s if idle_s is None else max(idle_s, self._call_s)):
                    response = await self._open_session().request(
                        method, self._url(await self._versioned(path)), params=query, headers=headers, timeout=timeout
                    )
            except TimeoutError:
                raise self._late(method, path) from None
        try:
            async with self._translated(method, path):
                await self._check(response)
            yield self._chunks(response, method, path)
        finally:
            response.close()

    async def _chunks(self, response: aiohttp.ClientResponse, method: str, path: str) -> AsyncIterator[bytes]:
        while True:
            async with self._translated(method, path):
                chunk = await response.content.read(READ_BYTES)
            if not chunk:
                return
            yield chunk

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        timeout_s: float | None,
    ) -> Any:
        async with self._translated(method, path):
            try:
                async with (
                    asyncio.timeout(self._call_s if timeout_s is None else timeout_s),
                    self._open_session().request(
                        method,
                        self._url(path),
                        params=query,
                        json=body,
                        timeout=aiohttp.ClientTimeout(total=None),
                    ) as response,
                ):
                    await self._check(response)
                    data = await response.read()
            except TimeoutError:
                raise self._late(method, path) from None
        try:
            return json.loads(data) if data.strip() else None
        except ValueError:
            raise EngineAway(f"the engine's answer to {method} {path} is no JSON") from None

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 400:  # noqa: PLR2004 - 304 is an answer too: nothing was to do
            return
        data = await response.read()
        try:
            message = str(json.loads(data)["message"])
        except (ValueError, KeyError, TypeError):
            message = data.decode(errors="replace").strip() or f"HTTP {response.status}"
        raise ERRORS.get(response.status, EngineFailed)(message)

    @contextlib.asynccontextmanager
    async def _translated(self, method: str, path: str) -> AsyncIterator[None]:
        try:
            yield
        except aiohttp.ClientConnectorError as error:
            self._agreed = False  # whoever listens there next may be an older or a newer one
            reason = error.os_error.strerror or str(error.os_error)
            raise EngineAway(f"cannot connect to the container engine at {self.socket}: {reason}") from error
        except aiohttp.SocketTimeoutError:
            raise self._late(method, path) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise EngineAway(f"the container engine broke off {method} {path}: {error}") from error

    def _late(self, method: str, path: str) -> EngineAway:
        return EngineAway(f"the container engine at {self.socket} does not answer {method} {path} in time")

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineAway("the connection to the container engine is closed")
        return self._session

    async def _versioned(self, path: str) -> str:
        if not self._agreed:
            await self._agree()
        return f"/v{self.version[0]}.{self.version[1]}{path}"

    def _url(self, path: str) -> str:
        return "http://engine" + path
