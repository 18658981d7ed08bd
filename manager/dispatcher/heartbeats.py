"""Signs of life of all nodes, and what is written when they cease. Owns no session; liveness.py has the arithmetic."""

import asyncio
from collections.abc import Callable

import structlog

from manager.dispatcher import admission, liveness, metrics, nodes, silence
from manager.store import store
from skep import errors, ids, pb, stamps

log = structlog.get_logger(__name__)

PERIOD_DEFAULT_S = 5.0
PERIOD_MIN_S = 0.1  # whatever the cluster's spec says
RATE_PER_S = 400.0  # heartbeats that a leader is to take; with more nodes than that allows each speaks less often ..
STRETCH_MAX = 2.5  # .. but no more than so many times: a node told so keeps within SILENT_PERIODS if the others leave
JITTER = 0.1  # of the period, both ways
SILENT_PERIODS = 3  # a node is down after as many periods without a word
TAKEOVER_UNKNOWN_PERIODS = 1.2  # time to register with a new leader before the node is marked UNKNOWN
TAKEOVER_DOWN_PERIODS = 6
RETRY_S = 0.5
IDLE_S = 3600.0


class Heartbeats:
    """Who is alive, for as long as this manager leads."""

    def __init__(
        self,
        *,
        target: store.Store,
        rng: ids.Rng,
        writer: nodes.NodeWriter,
        counters: metrics.Metrics,
        silenced: Callable[[str], None],
    ) -> None:
        """`silenced` is called with the ID of each node that was declared down."""
        self._store = target
        self._rng = rng
        self._nodes = writer
        self._metrics = counters
        self._silenced = silenced
        self._liveness = liveness.Liveness()
        self._configured_s = PERIOD_DEFAULT_S
        self._grace_s = 0.0  # for agents that were told to spread their return
        self._moved = asyncio.Event()
        self._owed: dict[str, liveness.Verdict] = {}  # verdicts that are not written yet
        self._settled = asyncio.Event()  # set, and replaced, when there are none any more
        self.silence = silence.Silence(target=target, writer=writer)

    def begin(self) -> None:
        """A new leadership: whatever was known is void, every node that is not down is expected."""
        self._liveness = liveness.Liveness()
        self._settle()
        self.silence.begin()
        self.configure()
        expected = [node.id for node in self._store.view().nodes if node.status.state != pb.NODE_STATE_DOWN]
        self._grace_s = admission.spread_s(len(expected))
        for node_id in expected:
            self.expect(node_id)

    def drop(self, node_id: str) -> None:
        """Nothing is expected of the node any more."""
        self._liveness.drop(node_id)

    def configure(self) -> None:
        """The cluster's specification may have changed."""
        try:
            configured_ns = self._store.view().cluster.spec.dispatcher.heartbeat_period
        except errors.Unavailable:
            configured_ns = 0
        self._configured_s = max(stamps.from_nanos(configured_ns), PERIOD_MIN_S) if configured_ns else PERIOD_DEFAULT_S

    def period_s(self) -> float:
        """What the cluster's specification says, and longer in a very large cluster."""
        stretch = len(self._liveness) / (RATE_PER_S * self._configured_s)
        return self._configured_s * min(max(stretch, 1.0), STRETCH_MAX)

    def next_s(self) -> float:
        """Time to an agent's next heartbeat, in seconds, with jitter."""
        return self.period_s() * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def spread_s(self) -> float:
        """Over how much time agents are to come back when all lose their sessions."""
        return admission.spread_s(len(self._liveness))

    def heard(self, node_id: str) -> None:
        """A sign of life."""
        now = asyncio.get_running_loop().time()
        if self._liveness.heard(node_id, down_at=now + SILENT_PERIODS * self.period_s()):
            self._moved.set()

    def doubted(self, node_id: str) -> bool:
        """Whether the node may just be being given up: what it says now comes too late for its tasks' leases."""
        return node_id in self._owed

    async def settled(self, node_id: str) -> None:
        """Returns once no verdict on the node is on its way to the log; call `heard` first, so that none follows."""
        while node_id in self._owed:
            await self._settled.wait()

    def _settle(self) -> None:
        self._owed = {}
        settled, self._settled = self._settled, asyncio.Event()
        settled.set()

    def expect(self, node_id: str) -> None:
        """A node that should register with this leader soon."""
        now, period_s = asyncio.get_running_loop().time(), self.period_s()
        self._liveness.expect(
            node_id,
            unknown_at=now + self._grace_s + TAKEOVER_UNKNOWN_PERIODS * period_s,
            down_at=now + self._grace_s + TAKEOVER_DOWN_PERIODS * period_s,
        )
        self._moved.set()

    async def run(self) -> None:
        """Pronounces on silent nodes until cancelled."""
        while True:
            loop = asyncio.get_running_loop()
            self._owed |= self._silent(loop.time())
            if self._owed:
                try:
                    await self._pronounce(self._owed)
                    self._settle()
                except errors.Unavailable:
                    await asyncio.sleep(RETRY_S)
                continue
            at = self._liveness.next_at()
            self._moved.clear()
            try:
                async with asyncio.timeout(max(at - loop.time(), 0.0) if at is not None else IDLE_S):
                    await self._moved.wait()
            except TimeoutError:
                continue

    def _silent(self, now: float) -> dict[str, liveness.Verdict]:
        """The nodes whose time is up, unless it is this manager that did not look for a while."""
        at = self._liveness.next_at()
        silent = dict(self._liveness.due(now))
        if at is None or now - at <= self.period_s() / 2:
            return silent
        # Stopped, starved or swapped out: the agents' words may be waiting unread. They get a second chance.
        log.warning("dispatcher.stalled", stalled_s=round(now - at, 1), nodes=len(silent))
        for node_id, verdict in silent.items():
            if verdict is liveness.Verdict.DOWN:
                self.heard(node_id)
            else:
                self.expect(node_id)
        return {}

    async def _pronounce(self, verdicts: dict[str, liveness.Verdict]) -> None:
        """Writes verdicts, unless the node was heard of meanwhile."""
        changes: dict[str, nodes.Change] = {}
        for node_id, verdict in verdicts.items():
            if self._liveness.alive(node_id):
                continue
            if verdict is liveness.Verdict.UNKNOWN:
                changes[node_id] = self._while_silent(node_id, nodes.unknown)
                continue
            message = nodes.HEARTBEAT_FAILURE if verdict is liveness.Verdict.DOWN else nodes.NEVER_CAME
            changes[node_id] = self._while_silent(node_id, nodes.down(message))
            log.warning("node.down", node=node_id, reason=verdict.value)
        if not changes:
            return
        await self._nodes.change(changes)
        view = self._store.view()
        for node_id in changes:
            node = view.nodes.get(node_id)
            if node is None or node.status.state != pb.NODE_STATE_DOWN:
                continue  # expected still, or it has registered meanwhile
            self._metrics.lost.inc()
            # One that speaks again registers again, which makes it READY again.
            self._silenced(node_id)

    def _while_silent(self, node_id: str, change: nodes.Change) -> nodes.Change:
        """The change, unless the node is heard of before it is made: a race with its registration decides anew."""

        def changed(node: pb.Node) -> None:
            if not self._liveness.alive(node_id):
                change(node)

        return changed
