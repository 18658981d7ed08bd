"""The stream between an agent and a manager as both ends see it, and its in-memory form.

The gRPC forms live beside their users (`manager.dispatcher.service`, `agent.link`); the simulator has one that delays
and loses. No gRPC here, and nothing about what the messages mean.
"""

import asyncio
import copy
from collections import deque
from typing import Generic, Protocol, TypeVar

from google.protobuf import message as protobuf

from skep import errors, pb

Out_contra = TypeVar("Out_contra", contravariant=True)
In_co = TypeVar("In_co", covariant=True)
A = TypeVar("A", bound=protobuf.Message)
B = TypeVar("B", bound=protobuf.Message)

MEMORY_BACKLOG_MAX = 64  # messages on their way in one direction before `send` waits; like a socket's buffer


class Link(Protocol[Out_contra, In_co]):
    """One end of a stream of messages. They arrive in order, each once; a stream that loses one breaks, as TCP does."""

    async def send(self, message: Out_contra) -> None:
        """Sends; waits while the other end does not keep up. May be called by several coroutines at once.

        Raises Unavailable when the stream is broken or closed.
        """
        ...

    async def receive(self) -> In_co | None:
        """The next message; None once the other end has closed in peace.

        Raises what the other end closed with (Denied, Unavailable ..), or Unavailable when the stream broke.
        """
        ...

    async def close(self, error: errors.SkepError | None = None) -> None:
        """Ends the stream, telling the other end why; what was sent before still arrives. May be called twice."""
        ...


AgentLink = Link[pb.AgentMessage, pb.ManagerMessage]  # the agent's end
ManagerLink = Link[pb.ManagerMessage, pb.AgentMessage]  # the manager's end


class _Pipe(Generic[A]):
    """One direction of an in-memory stream."""

    def __init__(self) -> None:
        self.messages: deque[A] = deque()
        self.closed = False
        self.error: errors.SkepError | None = None
        self.changed = asyncio.Event()

    def close(self, error: errors.SkepError | None) -> None:
        if not self.closed:
            self.closed = True
            self.error = error
            self.changed.set()

    async def wait(self) -> None:
        self.changed.clear()
        await self.changed.wait()


class MemoryLink(Generic[A, B]):
    """One end of an in-memory stream; sends A and receives B. One coroutine at a time may receive."""

    def __init__(self, outgoing: _Pipe[A], incoming: _Pipe[B]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._sending = asyncio.Lock()

    async def send(self, message: A) -> None:
        pipe = self._outgoing
        async with self._sending:
            while not pipe.closed and len(pipe.messages) >= MEMORY_BACKLOG_MAX:
                await pipe.wait()
            if pipe.closed:
                raise errors.Unavailable("the stream is closed")
            pipe.messages.append(copy.deepcopy(message))
            pipe.changed.set()

    async def receive(self) -> B | None:
        pipe = self._incoming
        while not pipe.messages:
            if pipe.closed:
                if pipe.error is not None:
                    raise pipe.error
                return None
            await pipe.wait()
        message = pipe.messages.popleft()
        pipe.changed.set()
        return message

    async def close(self, error: errors.SkepError | None = None) -> None:
        self._outgoing.close(error)
        self._incoming.messages.clear()
        self._incoming.close(None)


def memory_pair() -> tuple[
    MemoryLink[pb.AgentMessage, pb.ManagerMessage], MemoryLink[pb.ManagerMessage, pb.AgentMessage]
]:
    """The two ends of a new in-memory stream: the agent's, and the manager's."""
    up: _Pipe[pb.AgentMessage] = _Pipe()
    down: _Pipe[pb.ManagerMessage] = _Pipe()
    return MemoryLink(up, down), MemoryLink(down, up)
