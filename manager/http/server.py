"""The Api on a unix socket. With `takeover` the only module that knows aiohttp; adds nothing of its own to answers."""

import asyncio
import contextlib
import os
import pathlib
import socket
import stat

import structlog
from aiohttp import web

from manager.http import api, messages, routing, takeover
from skep import errors

log = structlog.get_logger(__name__)

SOCKET_MODE = 0o600  # whoever can write here owns the cluster
FOLDER_MODE = 0o700
BACKLOG = 128
DRAIN_S = 3.0  # for requests under way when the server stops; streams are then cut
DISCARD_BYTES_MAX = 64 * 1024 * 1024  # of a body that is too large; beyond it the connection is cut
CONNECT_S = 1.0  # to find out whether somebody lives behind an old socket


class HttpServer:
    """Serves an Api on `path`, for the owner of the socket only."""

    def __init__(self, answers: api.Api, path: pathlib.Path) -> None:
        self._api = answers
        self._path = path
        self._runner: web.ServerRunner | None = None
        self._inode: int | None = None

    async def start(self) -> None:
        """Listens. A socket that nobody answers on is replaced; FailedPrecondition when somebody does."""
        listener = await self._bind()
        # Cancelled when the client leaves: a followed log must not outlive its reader.
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=DRAIN_S)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()
        log.info("http.listening", socket=str(self._path))

    async def stop(self) -> None:
        """Stops listening, lets requests under way finish for a few seconds, removes the socket."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:  # not the one of a successor
                self._path.unlink()
        await runner.cleanup()
        log.info("http.stopped", socket=str(self._path))

    async def _bind(self) -> socket.socket:
        folder = self._path.parent
        if not folder.exists():
            folder.mkdir(mode=FOLDER_MODE, parents=True)
        await self._check_free()
        # Bound under another name and moved into place once its mode is right: never open to others, not for a moment,
        # and an old socket is replaced in one step.
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.settimeout(0)
            try:
                listener.bind(str(fresh))
            except OSError as problem:
                raise errors.FailedPrecondition(f"cannot listen on {self._path}: {problem}") from problem
            fresh.chmod(SOCKET_MODE)
            self._inode = fresh.stat().st_ino
            fresh.rename(self._path)
        except BaseException:
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
            raise
        return listener

    async def _check_free(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise errors.FailedPrecondition(f"{self._path} exists and is no socket: move it away")
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_unix_connection(str(self._path))
        except (OSError, TimeoutError):
            return
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        raise errors.FailedPrecondition(f"another daemon already listens on {self._path}")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transfer = self._api.transfer(request.method, request.raw_path)
        streamed = transfer is routing.Transfer.BODY
        body = b"" if streamed else await _body_of(request)
        if body is None:
            text = f"the request's body is larger than {messages.BODY_BYTES_MAX} bytes"
            return _whole(request, messages.error_response(413, text))
        asked = messages.Request(
            method=request.method,
            target=request.raw_path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            incoming=request.content.iter_any() if streamed else None,
        )
        if request.method in ("GET", "HEAD") or transfer is not routing.Transfer.WHOLE:
            answer = await self._api.handle(asked)
        else:
            # A change that has begun is carried through, also when whoever asked for it has gone.
            answer = await asyncio.shield(asyncio.create_task(self._api.handle(asked)))
        if answer.upgrade is not None:
            return await takeover.upgraded(request, answer)
        if answer.stream is None:
            return _whole(request, answer)
        return await _streamed(request, answer)


async def _body_of(request: web.BaseRequest) -> bytes | None:
    """The body; None when it is too large."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.content.iter_any():
        size += len(piece)
        if size > messages.BODY_BYTES_MAX + DISCARD_BYTES_MAX:
            break
        if size > messages.BODY_BYTES_MAX:
            pieces.clear()  # read on all the same: most clients look for an answer only after they have sent everything
        else:
            pieces.append(piece)
    return None if size > messages.BODY_BYTES_MAX else b"".join(pieces)


def _whole(request: web.BaseRequest, answer: messages.Response) -> web.Response:
    response = web.Response(status=answer.status, headers=answer.headers, body=answer.body)
    if not answer.body:
        response.headers.setdefault("Content-Type", "text/plain; charset=utf-8")
    return response


async def _streamed(request: web.BaseRequest, answer: messages.Response) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.enable_chunked_encoding()
    if answer.stream is None:
        return response
    async with contextlib.aclosing(answer.stream) as stream:
        await response.prepare(request)
        if request.method != "HEAD":
            try:
                async for piece in stream:
                    await response.write(piece)
            except errors.SkepError as problem:
                # Too late for a status: break off without the last chunk, so that the client sees it is not whole.
                log.warning("http.stream_broken", path=request.path, error=problem.message)
                if request.transport is not None:
                    request.transport.abort()
                return response
    with contextlib.suppress(ConnectionError):
        await response.write_eof()
    return response
