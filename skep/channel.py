"""Channels within the stream between an agent and a manager; both ends use this module.

Owns flow control: each direction of a channel has a window in bytes, and only what its reader has taken is granted
anew. So memory per channel is bounded, nobody waits while reading the stream, and a slow reader stalls only itself.
What travels over a channel is its users' business; how frames reach the other side is that of whoever calls `next`.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from skep import errors, pb

WINDOW_BYTES = 256 * 1024  # on the way in one direction of one channel
CHUNK_BYTES_MAX = 32 * 1024  # of one frame, so that channels take turns
CHANNELS_MAX = 256  # at the same time in one session
GRANT_BYTES = WINDOW_BYTES // 4  # granted in portions: a message for each line of output would be two
CLOSED = "the channel is closed"

Piece = pb.ChannelData | pb.TerminalSize
_KINDS = {kind.__name__: kind for kind in errors.GRPC_CODE}


def end_of(error: errors.SkepError) -> pb.ChannelEnd:
    """How an error ends a channel."""
    kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS), "FailedPrecondition")
    return pb.ChannelEnd(error=error.message or type(error).__name__, kind=kind)


class Channel:
    """One end. One coroutine at a time may receive; several may send, each sees its own data in order."""

    def __init__(self, mux: "Mux", identifier: int, opened: pb.ChannelOpen) -> None:
        """Made by a Mux only."""
        self.id = identifier
        self.opened = opened
        self._mux = mux
        self._inbox: deque[Piece] = deque()
        self._room = WINDOW_BYTES  # what the other side may still send
        self._owed = 0  # taken by the reader and not granted anew yet
        self._credit = 0  # what we may still send
        self._is_ready = False
        self._at_eof = False  # the other side sends nothing more
        self._over: pb.ChannelEnd | None = None  # by whichever side
        self._out: deque[pb.ChannelFrame] = deque()  # at most one frame of data, and a few without
        self._size: pb.TerminalSize | None = None  # the latest one that is not sent yet
        self._sending = False
        self._moved = asyncio.Event()

    # ---------------------------------------------------------------- both sides

    @property
    def is_over(self) -> bool:
        """Whether either side has ended it."""
        return self._over is not None

    @property
    def exit_code(self) -> int:
        """What the other side ended with; 0 before."""
        return self._over.exit_code if self._over is not None else 0

    async def send(self, data: bytes, *, stream: pb.ChannelStream.ValueType = pb.CHANNEL_STREAM_MAIN) -> None:
        """Sends; waits while the reader at the other end does not keep up.

        Raises Unavailable when the channel is over, or what the other side ended it with.
        """
        start = 0
        while start < len(data):
            while not self._credit or self._sending:
                self._must_be_open()
                await self._wait()
            self._must_be_open()
            size = min(len(data) - start, self._credit, CHUNK_BYTES_MAX)
            self._credit -= size
            self._sending = True
            self._push(pb.ChannelFrame(data=pb.ChannelData(stream=stream, data=data[start : start + size])))
            start += size

    async def receive(self) -> Piece | None:
        """The next piece; None when nothing more comes. Raises what the other side ended the channel with."""
        while not self._inbox:
            if self._over is not None:
                self._raise_end(self._over)
                return None
            if self._at_eof:
                return None
            await self._wait()
        piece = self._inbox.popleft()
        if isinstance(piece, pb.ChannelData):
            self._owed += len(piece.data)
            if self._owed >= GRANT_BYTES and self._over is None:
                self._room += self._owed
                self._push(pb.ChannelFrame(credit=pb.ChannelCredit(bytes=self._owed)))
                self._owed = 0
        return piece

    def eof(self) -> None:
        """Nothing more will be sent from this end; it may still receive."""
        if self._over is None:
            self._push(pb.ChannelFrame(eof=pb.ChannelEof()))

    def end(self, error: errors.SkepError | None = None, *, exit_code: int = 0) -> None:
        """Ends the channel in both directions; what was sent before still arrives. May be called again."""
        if self._over is not None:
            return
        end = end_of(error) if error is not None else pb.ChannelEnd(exit_code=exit_code)
        self._over = pb.ChannelEnd()
        self._push(pb.ChannelFrame(end=end))
        self._moved.set()

    async def ended(self) -> None:
        """Returns once either side has ended the channel."""
        while self._over is None:
            await self._wait()

    # ---------------------------------------------------------------- the manager's side

    async def ready(self) -> None:
        """Returns once the agent says that the other side is there. Raises what it says instead."""
        while not self._is_ready:
            if self._over is not None:
                self._raise_end(self._over)
                return
            await self._wait()

    def resize(self, size: pb.TerminalSize) -> None:
        """The user's terminal has another size now. Only the latest one counts, so this needs no credit."""
        if self._over is None:
            self._size = size
            self._mux.due(self)

    # ---------------------------------------------------------------- the agent's side

    def say_ready(self) -> None:
        """The other side is there; the manager may send."""
        if not self._is_ready and self._over is None:
            self._is_ready = True
            self._push(pb.ChannelFrame(ready=pb.ChannelReady(window=WINDOW_BYTES)))

    # ---------------------------------------------------------------- for the Mux

    def start(self) -> None:
        """Has the opening frame sent."""
        self._push(pb.ChannelFrame(open=self.opened))

    def allow(self, size: int) -> None:
        """The other side may be sent so many bytes more."""
        self._credit += size
        self._moved.set()

    def next(self) -> tuple[pb.ChannelFrame | None, bool]:
        """The next frame of this channel, and whether there are more."""
        frame: pb.ChannelFrame | None = None
        if self._size is not None and not (self._out and self._out[0].HasField("open")):
            frame, self._size = pb.ChannelFrame(resize=self._size), None
        elif self._out:
            frame = self._out.popleft()
            if frame.HasField("data"):
                self._sending = False
                self._moved.set()
        if frame is not None:
            frame.id = self.id
        return frame, bool(self._out) or self._size is not None

    def take(self, frame: pb.ChannelFrame) -> None:
        """A frame from the other side."""
        match frame.WhichOneof("body"):
            case "ready":
                self._is_ready = True
                self._credit += frame.ready.window
            case "data":
                self._take_data(frame.data)
            case "credit":
                self._credit += frame.credit.bytes
            case "eof":
                self._at_eof = True
            case "resize":
                # Kept in order with the data, but never more than one: a flood of sizes takes no memory.
                self._inbox = deque(piece for piece in self._inbox if isinstance(piece, pb.ChannelData))
                self._inbox.append(frame.resize)
            case "end":
                self.close(frame.end)
            case _:
                return  # a newer version says something we do not know yet
        self._moved.set()

    def close(self, end: pb.ChannelEnd) -> None:
        """The other side has ended it, or is gone."""
        if self._over is None:
            self._over = end
            self._out.clear()
            self._size = None
            self._moved.set()

    def _take_data(self, data: pb.ChannelData) -> None:
        if self._over is not None or not data.data:
            return
        self._room -= len(data.data)
        if self._room < 0:
            self._inbox.clear()
            self.end(errors.Bug("the other side sent more than it was allowed to"))
            return
        self._inbox.append(data)

    # ---------------------------------------------------------------- within

    def _push(self, frame: pb.ChannelFrame) -> None:
        self._out.append(frame)
        self._mux.due(self)

    def _must_be_open(self) -> None:
        if self._over is not None:
            self._raise_end(self._over)
            raise errors.Unavailable(CLOSED)

    @staticmethod
    def _raise_end(end: pb.ChannelEnd) -> None:
        if end.error:
            raise _KINDS.get(end.kind, errors.FailedPrecondition)(end.error)

    async def _wait(self) -> None:
        # Several may wait for different things: each looks again at whatever moved.
        self._moved.clear()
        await self._moved.wait()


class Mux:
    """The channels of one session, at one end."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called when `next` has something to give."""
        self._wake = wake
        self._channels: dict[int, Channel] = {}
        self._due: dict[int, Channel] = {}  # in the order in which they may send a frame
        self._last_id = 0
        self._closed = ""

    def __len__(self) -> int:
        return len(self._channels)

    def open(self, what: pb.ChannelOpen) -> Channel:
        """A new channel, on the manager's end. Raises Unavailable when there are too many or the session is over."""
        if self._closed:
            raise errors.Unavailable(self._closed)
        if len(self._channels) >= CHANNELS_MAX:
            raise errors.Unavailable(f"{CHANNELS_MAX} commands and streams are open on this node; try again later")
        self._last_id += 1
        opened = pb.ChannelOpen()
        opened.CopyFrom(what)
        opened.window = WINDOW_BYTES
        channel = self._channels[self._last_id] = Channel(self, self._last_id, opened)
        channel.start()
        return channel

    def take(self, frame: pb.ChannelFrame) -> Channel | None:
        """Hands a frame to its channel; returns the channel when the frame has opened it. Never waits."""
        if frame.HasField("open"):
            if frame.id in self._channels:
                return None
            channel = self._channels[frame.id] = Channel(self, frame.id, frame.open)
            channel.allow(frame.open.window)
            if len(self._channels) > CHANNELS_MAX:
                channel.end(errors.Unavailable("too many commands and streams are open on this node"))
                return None
            return channel
        known = self._channels.get(frame.id)
        if known is not None:  # else it was ended here while this was under way
            known.take(frame)
            if frame.HasField("end"):
                self._forget(known)
        return None

    def due(self, channel: Channel) -> None:
        """The channel has a frame to send."""
        if self._channels.get(channel.id) is channel:
            self._due[channel.id] = channel
            self._wake()

    def next(self) -> pb.ChannelFrame | None:
        """The next frame to send, channels in turn; None when there is none."""
        while self._due:
            identifier = next(iter(self._due))
            channel = self._due.pop(identifier)
            frame, more = channel.next()
            if frame is None:
                continue
            if frame.HasField("end"):
                self._forget(channel)
            elif more:
                self._due[identifier] = channel
            return frame
        return None

    def close(self, error: errors.SkepError) -> None:
        """The session is over: ends every channel with this error."""
        self._closed = error.message
        end = end_of(error)
        for channel in list(self._channels.values()):
            channel.close(end)
        self._channels.clear()
        self._due.clear()

    def _forget(self, channel: Channel) -> None:
        self._channels.pop(channel.id, None)
        self._due.pop(channel.id, None)
