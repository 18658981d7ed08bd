"""What the Raft driver needs from a network. Implementations: grpc_transport, memory_transport."""

from collections.abc import Mapping
from typing import Protocol

from skep import pb


class Handler(Protocol):
    """What a transport tells the driver. Called in the event loop, never blocking."""

    def frame_received(self, peer: str, frame: pb.RaftFrame) -> None:
        """A frame from `peer`, whose identity the transport has verified."""
        ...

    def link_changed(self, peer: str, *, up: bool) -> None:
        """Frames to `peer` can, or can no longer, be sent. What was under way when a link broke may be lost."""
        ...

    def refused(self, peer: str, configuration: pb.RaftConfiguration) -> None:
        """`peer` does not take our frames, because in this committed configuration we are no member."""
        ...

    def committed_configuration(self) -> pb.RaftConfiguration:
        """What to tell somebody who is refused."""
        ...


class Transport(Protocol):
    """Links to the other managers: in order while a link lasts, lossy when it breaks, never forged."""

    async def start(self, handler: Handler) -> None:
        """Begins to accept and to dial."""
        ...

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """Who may connect, and at which address each is dialled. Links to others are closed."""
        ...

    def send(self, peer: str, frame: pb.RaftFrame) -> None:
        """Sends if the link is up, and drops the frame otherwise or when too much is waiting. Never blocks."""
        ...

    async def stop(self) -> None:
        """Closes everything."""
        ...
