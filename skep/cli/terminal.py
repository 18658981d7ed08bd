"""This machine's terminal while a command in a task has it: raw mode, its size, and the bytes both ways.

Standard library only; one loop over select, so that neither side waits for the other.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import tty
from collections.abc import Iterator

from skep import errors, frames

READ_BYTES = 32 * 1024


def size(fd: int) -> tuple[int, int] | None:
    """(rows, columns) of the terminal behind a descriptor; None when it is none or does not know."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key goes to the other side, Ctrl-C too; as it was before in the end."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class Talk:
    """Carries a command's streams between its connection and this process' descriptors."""

    def __init__(self, connection: socket.socket, *, stdin: int | None, resize_from: int | None) -> None:
        """Without `stdin` the command's input is empty; sizes are taken from `resize_from`, a terminal."""
        self._connection = connection
        self._stdin = stdin
        self._resize_from = resize_from
        self._out = bytearray()
        self._parser = frames.Parser()
        self._code: int | None = None

    def run(self) -> int:
        """The command's exit code. Raises FailedPrecondition with what went wrong, Unavailable when it broke off."""
        self._connection.settimeout(0)
        with self._resizes() as resized:
            if self._stdin is None:
                self._out += frames.frame(frames.STDIN_END)
            while self._code is None:
                reading: list[socket.socket | int] = [self._connection]
                if resized is not None:
                    reading.append(resized)
                if self._stdin is not None and not self._out:  # no faster than the other side takes it
                    reading.append(self._stdin)
                writing = [self._connection] if self._out else []
                readable, writable, _ = select.select(reading, writing, [])
                if writable:
                    self._send()
                if resized is not None and resized in readable:
                    self._resized(resized)
                if self._stdin is not None and self._stdin in readable:
                    self._typed(self._stdin)
                if self._connection in readable:
                    self._arrived()
        return self._code

    @contextlib.contextmanager
    def _resizes(self) -> Iterator[int | None]:
        """A descriptor that becomes readable when the terminal has another size."""
        if self._resize_from is None:
            yield None
            return
        readable, writable = os.pipe()
        os.set_blocking(writable, False)

        def note(*_: object) -> None:
            with contextlib.suppress(BlockingIOError):
                os.write(writable, b".")

        before = signal.signal(signal.SIGWINCH, note)
        try:
            yield readable
        finally:
            signal.signal(signal.SIGWINCH, before)
            os.close(readable)
            os.close(writable)

    def _resized(self, fd: int) -> None:
        os.read(fd, READ_BYTES)
        found = size(self._resize_from) if self._resize_from is not None else None
        if found is not None:
            self._out += frames.resize(*found)

    def _typed(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except OSError:  # the terminal is gone
            data = b""
        self._out += frames.frame(frames.STDIN, data) if data else frames.frame(frames.STDIN_END)
        if not data:
            self._stdin = None

    def _send(self) -> None:
        try:
            sent = self._connection.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()  # what the other side has said last is still to be read
            self._stdin = None
            return
        del self._out[:sent]

    def _arrived(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise errors.Unavailable("the connection to the command broke off; it may have ended or not")
        for kind, payload in self._parser.feed(data):
            if kind in (frames.STDOUT, frames.STDERR):
                _write(2 if kind == frames.STDERR else 1, payload)
            elif kind == frames.EXIT:
                self._code = frames.exit_code(payload)
            elif kind == frames.ERROR:
                raise errors.FailedPrecondition(payload.decode(errors="replace"))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
