"""Links between managers in one process: for tests and the simulator, which decide about delays and cuts.

Frames travel encoded, as on a wire. A link is a direction of its own: in order while it lasts; what is under way when
it breaks is lost.
"""

import asyncio
import contextvars
from collections.abc import Callable, Mapping

from manager.raft import transport
from skep import pb

REDIAL_S = 0.1


class MemoryNetwork:
    """All transports of a simulated network. `delay_s(source, target)` is asked for every frame."""

    def __init__(
        self,
        *,
        delay_s: Callable[[str, str], float] = lambda _source, _target: 0.001,
        watch: Callable[[str, str, pb.RaftFrame], None] = lambda _source, _target, _frame: None,
    ) -> None:
        """`watch` sees every frame that is sent over a link that is up."""
        self.delay_s = delay_s
        self.watch = watch
        self.cuts: dict[tuple[str, str], None] = {}  # directions in which nothing gets through, as both ends know
        self.holes: dict[tuple[str, str], None] = {}  # directions in which nothing gets through, and nobody knows yet
        self._running: dict[str, MemoryTransport] = {}

    def attach(self, member: "MemoryTransport") -> None:
        """A manager has come up."""
        self._running[member.node_id] = member

    def detach(self, member: "MemoryTransport") -> None:
        """A manager is gone: every link to and from it breaks."""
        if self._running.get(member.node_id) is member:
            del self._running[member.node_id]
        self.check_links()

    def check_links(self) -> None:
        """Breaks all links that are no longer possible."""
        for member in list(self._running.values()):
            member.check_links()

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target` any more."""
        self.cuts[source, target] = None
        if source in self._running:
            self._running[source].check_links()

    def swallow(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target` any more, but the link looks well until it is cut."""
        self.holes[source, target] = None

    def heal(self) -> None:
        """All cuts are over; links come up again when they are dialled next, what was stuck arrives."""
        self.cuts.clear()
        self.holes.clear()
        for member in list(self._running.values()):
            member.flush()

    def find(self, source: str, target: str) -> "MemoryTransport | None":
        """The transport that `source` reaches when it dials `target`."""
        return None if (source, target) in self.cuts else self._running.get(target)


class MemoryTransport:
    """The Transport of a manager on a MemoryNetwork."""

    def __init__(self, *, node_id: str, network: MemoryNetwork) -> None:
        self.node_id = node_id
        self._network = network
        self._handler: transport.Handler | None = None
        self._peers: dict[str, str] = {}
        self._links: dict[str, _Link] = {}
        self._redial: asyncio.TimerHandle | None = None

    async def start(self, handler: transport.Handler) -> None:
        self._handler = handler
        self._network.attach(self)
        self._dial()

    def set_peers(self, peers: Mapping[str, str]) -> None:
        self._peers = dict(peers)
        for peer in list(self._links):
            if peer not in self._peers:
                self._break(peer)
        self._network.check_links()

    def send(self, peer: str, frame: pb.RaftFrame) -> None:
        link = self._links.get(peer)
        if link is not None:
            self._network.watch(self.node_id, peer, frame)
            link.send(frame.SerializeToString(), self._network.delay_s(self.node_id, peer))

    async def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        """Gone at once, as a process that was killed."""
        if self._redial is not None:
            self._redial.cancel()
        self._handler = None
        for link in self._links.values():
            link.broken = True
        self._links.clear()
        self._network.detach(self)

    # ---------------------------------------------------------------- links

    def _dial(self) -> None:
        """Tries every link that is down, and will again."""
        loop = asyncio.get_running_loop()
        for peer in self._peers:
            target = self._network.find(self.node_id, peer)
            swallowed = (self.node_id, peer) in self._network.holes
            if peer not in self._links and target is not None and self._handler is not None and not swallowed:
                if target.knows(self.node_id):
                    self._links[peer] = _Link(self.node_id, target, self._network.holes)
                    self._handler.link_changed(peer, up=True)
                elif (configuration := target.refusal()) is not None:
                    self._handler.refused(peer, configuration)
        if self._handler is not None:
            self._redial = loop.call_later(REDIAL_S, self._dial)

    def check_links(self) -> None:
        """Breaks the links that the network no longer carries."""
        for peer, link in list(self._links.items()):
            if self._network.find(self.node_id, peer) is not link.target or not link.target.knows(self.node_id):
                self._break(peer)

    def flush(self) -> None:
        """What is stuck arrives."""
        for link in list(self._links.values()):
            link.flush()

    def _break(self, peer: str) -> None:
        link = self._links.pop(peer)
        link.broken = True
        if self._handler is not None:
            self._handler.link_changed(peer, up=False)

    def knows(self, source: str) -> bool:
        """Whether `source` may connect."""
        return source in self._peers

    def refusal(self) -> pb.RaftConfiguration | None:
        """What a stranger is told."""
        return None if self._handler is None else self._handler.committed_configuration()

    def deliver(self, source: str, encoded: bytes) -> None:
        """A frame has arrived."""
        if self._handler is not None and source in self._peers:
            self._handler.frame_received(source, pb.RaftFrame.FromString(encoded))


class _Link:
    def __init__(self, source: str, target: MemoryTransport, holes: Mapping[tuple[str, str], None]) -> None:
        self.source = source
        self.target = target
        self.broken = False
        self._holes = holes
        self._stuck: list[bytes] = []
        self._free_at = 0.0

    def send(self, encoded: bytes, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time() + delay_s)  # frames do not overtake each other
        # In nobody's context: what is on its way arrives whatever becomes of the sender.
        loop.call_at(self._free_at, self._arrive, encoded, context=contextvars.Context())

    def _arrive(self, encoded: bytes) -> None:
        if self._stuck or (self.source, self.target.node_id) in self._holes:
            self._stuck.append(encoded)
        elif not self.broken:
            self.target.deliver(self.source, encoded)

    def flush(self) -> None:
        stuck, self._stuck = self._stuck, []
        for encoded in stuck:
            self._arrive(encoded)
