"""Frames on the raw connection of a command that runs in a task: Docker's eight bytes, with a few kinds more.

One byte says what it is, three are zero, four are the length of what follows. Pure; the standard library only.
"""

import struct

from skep import errors

HEADER = struct.Struct(">BxxxL")
BYTES_MAX = 1 << 20  # of one frame; more means that the two ends have lost step
# To the task.
STDIN, RESIZE, STDIN_END = 0, 5, 6
# From the task. EXIT or ERROR is the last one.
STDOUT, STDERR, ERROR, EXIT = 1, 2, 3, 4
_SIZE = struct.Struct(">HH")
_CODE = struct.Struct(">i")


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(kind, len(payload)) + payload


def resize(rows: int, columns: int) -> bytes:
    """A RESIZE frame."""
    return frame(RESIZE, _SIZE.pack(min(max(rows, 0), 0xFFFF), min(max(columns, 0), 0xFFFF)))


def size_of(payload: bytes) -> tuple[int, int]:
    """(rows, columns) of a RESIZE frame. Raises Invalid."""
    if len(payload) != _SIZE.size:
        raise errors.Invalid("a RESIZE frame has two numbers of 16 bits")
    rows, columns = _SIZE.unpack(payload)
    return rows, columns


def exit_frame(code: int) -> bytes:
    """An EXIT frame."""
    return frame(EXIT, _CODE.pack(code))


def exit_code(payload: bytes) -> int:
    """The code in an EXIT frame. Raises Invalid."""
    if len(payload) != _CODE.size:
        raise errors.Invalid("an EXIT frame has one number of 32 bits")
    return int(_CODE.unpack(payload)[0])


class Parser:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(kind, payload) of every frame that is whole now. Raises Invalid when it cannot be frames."""
        self._buffer += data
        found: list[tuple[int, bytes]] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer, start)
            if length > BYTES_MAX or self._buffer[start + 1 : start + 4] != b"\0\0\0":
                raise errors.Invalid("what arrives is not in frames")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            found.append((kind, bytes(self._buffer[start + HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return found
