"""Handlers that reach into tasks: commands, files and connections. skep's own, below /skep/v1/tasks/{id}.

`{id}` is a task's ID, its beginning or name, or `service.slot`: the task that runs there. See `skep.frames` for what
travels on the connection of a command. Nothing is buffered here: the channel's windows bound what is under way.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from typing_extensions import override

from manager.control import lookup
from manager.http import messages, render, routing
from manager.store import commit
from skep import channel, errors, frames, pb

EXEC_FIELDS = frozenset({"Cmd", "Tty", "AttachStdin", "AttachStdout", "AttachStderr", "Env", "User", "WorkingDir",
                         "ConsoleSize"})  # fmt: skip
PORT_MAX = 2**16 - 1


async def inspect_task(call: messages.Call) -> messages.Response:
    """GET: the task as Docker shows it, and the last output of one that has failed."""
    view = call.context.manager.store.view()
    row = lookup.entered_task(view, call.params["id"])
    shown = render.Tasks(view, now=call.context.machine.clock.now()).render(row)
    shown["Status"]["LastOutput"] = row.status.last_output
    return messages.json_response(shown)


async def run_command(call: messages.Call) -> messages.Response:
    """POST exec: runs a command; 101 and frames."""
    _must_upgrade(call)
    return await _upgraded(call, pb.ChannelOpen(exec=_exec_of(call.json())), _Command)


async def connect(call: messages.Call) -> messages.Response:
    """POST forward: a TCP connection to a port of the task; 101 and its bytes."""
    _must_upgrade(call)
    text = call.params["port"]
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= PORT_MAX):
        raise errors.Invalid(f"invalid port {text!r}: write a number from 1 to {PORT_MAX}")
    return await _upgraded(call, pb.ChannelOpen(connect=pb.PortConnect(port=int(text))), _Connection)


async def read_archive(call: messages.Call) -> messages.Response:
    """GET archive: what is at ?path= as a tar stream."""
    stack, pipe = await _open(call, pb.ChannelOpen(archive_out=pb.ArchiveOut(path=_path(call))))
    return messages.Response(headers={"Content-Type": "application/x-tar"}, stream=_Pieces(stack, pipe))


async def write_archive(call: messages.Call) -> messages.Response:
    """PUT archive: unpacks a tar stream below the directory ?path=."""
    stack, pipe = await _open(call, pb.ChannelOpen(archive_in=pb.ArchiveIn(path=_path(call))))
    async with stack:
        incoming = call.request.incoming
        if incoming is None:
            raise errors.Bug("the body of an upload was not handed on as a stream")
        async for piece in incoming:
            await pipe.send(piece)
        pipe.eof()
        while await pipe.receive() is not None:
            continue
    return messages.empty_response()


def _must_upgrade(call: messages.Call) -> None:
    if not call.request.forwarded and "upgrade" not in call.request.headers.get("connection", "").lower():
        raise errors.Invalid("the answer is a raw connection: ask for it with 'Connection: Upgrade', 'Upgrade: tcp'")


def _path(call: messages.Call) -> str:
    path = call.text("path")
    if not path or "\0" in path:
        raise errors.Invalid("path: say which file or directory of the task is meant")
    return path


def _exec_of(body: object) -> pb.ExecStart:
    """The body as Docker's exec calls have it. Raises Invalid naming the field."""
    if not isinstance(body, dict):
        raise errors.Invalid('the body must be an object such as {"Cmd": ["sh"], "Tty": true}')
    for name in body:
        if name not in EXEC_FIELDS:
            raise errors.Invalid(f"{name}: no such field; there are {', '.join(sorted(EXEC_FIELDS))}")
    made = pb.ExecStart(
        command=_strings(body, "Cmd"),
        tty=body.get("Tty") is True,
        stdin=body.get("AttachStdin") is True,
        env=_strings(body, "Env"),
        user=_string(body, "User"),
        dir=_string(body, "WorkingDir"),
    )
    if not made.command or not made.command[0]:
        raise errors.Invalid("Cmd: no command was given")
    match body.get("ConsoleSize"):
        case [int(rows), int(columns)] if 0 <= rows <= PORT_MAX and 0 <= columns <= PORT_MAX:
            made.size.rows, made.size.columns = rows, columns
        case None:
            pass
        case _:
            raise errors.Invalid("ConsoleSize: expected [rows, columns]")
    return made


def _strings(body: dict[str, object], name: str) -> list[str]:
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, str) and "\0" not in each for each in value):
        raise errors.Invalid(f"{name}: expected a list of strings")
    return value


def _string(body: dict[str, object], name: str) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str) or "\0" in value:
        raise errors.Invalid(f"{name}: expected a string")
    return value


async def _open(call: messages.Call, what: pb.ChannelOpen) -> tuple[contextlib.AsyncExitStack, channel.Channel]:
    """The open channel to the task that the path names, and what ends it."""
    manager = call.context.manager
    task = lookup.entered_task(manager.store.view(), call.params["id"])
    async with contextlib.AsyncExitStack() as stack:
        try:
            pipe = await stack.enter_async_context(manager.channels.open(task.id, what))
        except commit.NotProposed:
            raise
        except errors.Unavailable as problem:
            # It is the node that cannot now, not the cluster: asking another manager would change nothing.
            raise errors.FailedPrecondition(problem.message) from problem
        return stack.pop_all(), pipe


async def _upgraded(
    call: messages.Call, what: pb.ChannelOpen, kind: "type[_Command] | type[_Connection]"
) -> messages.Response:
    stack, pipe = await _open(call, what)

    async def serve(duplex: messages.Duplex) -> None:
        async with stack:
            await kind(pipe, duplex).run()

    return messages.upgrade_response(serve)


class _Pieces(AsyncGenerator[bytes, None]):
    """What comes over a channel. Unlike a generator function's, its `aclose` ends it before the first piece too."""

    def __init__(self, stack: contextlib.AsyncExitStack, pipe: channel.Channel) -> None:
        self._stack = stack
        self._pieces = _data(pipe)

    @override
    async def asend(self, value: None) -> bytes:
        try:
            return (await anext(self._pieces)).data
        except BaseException:
            await self._stack.aclose()
            raise

    @override
    async def athrow(self, typ: Any, val: Any = None, tb: Any = None) -> bytes:
        await self._stack.aclose()
        raise typ if val is None else val


class _Connection:
    """A TCP connection: bytes both ways, each direction with an end of its own."""

    def __init__(self, pipe: channel.Channel, duplex: messages.Duplex) -> None:
        self._pipe = pipe
        self._duplex = duplex

    async def run(self) -> None:
        """Until the task's side has ended and the user's has said all, or either is gone."""
        up = asyncio.create_task(self._up(), name="forward.up")
        try:
            async for data in _data(self._pipe):
                await self._duplex.write(data.data)
            await self._duplex.write_eof()
            if not self._pipe.is_over:
                await up
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)

    async def _up(self) -> None:
        with contextlib.suppress(errors.SkepError):  # what ended the channel shows where it is read
            while data := await self._duplex.read():
                await self._pipe.send(data)
            self._pipe.eof()


class _Command:
    """A command's streams as frames."""

    def __init__(self, pipe: channel.Channel, duplex: messages.Duplex) -> None:
        self._pipe = pipe
        self._duplex = duplex

    async def run(self) -> None:
        """Until the command has ended, or the user's connection has: then the command is ended too."""
        up = asyncio.create_task(self._up(), name="exec.up")
        try:
            last = await self._down()
            await self._duplex.write(last)
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)

    async def _down(self) -> bytes:
        """Passes output on; returns the last frame."""
        output = aiter(_data(self._pipe))
        while True:
            try:
                piece = await anext(output, None)
            except errors.SkepError as problem:
                return frames.frame(frames.ERROR, problem.message.encode())
            if piece is None:
                return frames.exit_frame(self._pipe.exit_code)
            kind = frames.STDERR if piece.stream == pb.CHANNEL_STREAM_ERROR else frames.STDOUT
            await self._duplex.write(frames.frame(kind, piece.data))

    async def _up(self) -> None:
        parser = frames.Parser()
        try:
            while data := await self._duplex.read():
                for kind, payload in parser.feed(data):
                    if kind == frames.STDIN:
                        await self._pipe.send(payload)
                    elif kind == frames.RESIZE:
                        rows, columns = frames.size_of(payload)
                        self._pipe.resize(pb.TerminalSize(rows=rows, columns=columns))
                    elif kind == frames.STDIN_END:
                        self._pipe.eof()
            self._pipe.end()  # the user has gone
        except errors.SkepError as problem:
            self._pipe.end(problem)


async def _data(pipe: channel.Channel) -> AsyncIterator[pb.ChannelData]:
    while (piece := await pipe.receive()) is not None:
        if isinstance(piece, pb.ChannelData):
            yield piece


_WRITE, _RAW = routing.Scope.WRITE, routing.Transfer.RAW
ROUTES = (
    routing.Route("GET", "/skep/v1/tasks/{id}", routing.Scope.READ, inspect_task),
    routing.Route("POST", "/skep/v1/tasks/{id}/exec", _WRITE, run_command, _RAW),
    routing.Route("POST", "/skep/v1/tasks/{id}/forward/{port}", _WRITE, connect, _RAW),
    routing.Route("GET", "/skep/v1/tasks/{id}/archive", routing.Scope.READ, read_archive),
    routing.Route("PUT", "/skep/v1/tasks/{id}/archive", _WRITE, write_archive, routing.Transfer.BODY),
)
