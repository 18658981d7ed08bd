"""For how long nodes that are down have been silent at least: what replaces tasks that must never run twice.

No stamp can say that: managers' wall clocks differ, and jump. So each leader counts on its steady clock, from when it
wrote, or found, that a node is down, and adds that to what earlier leaders have written on the node. It is written only
when it reaches what a task on the node waits for (`policies.certainly_stopped_s`).
"""

import asyncio
import contextlib
import dataclasses

from manager.dispatcher import nodes
from manager.orchestrator import leaving, tasks
from manager.store import store
from skep import errors, pb, stamps

RETRY_S = 0.5


@dataclasses.dataclass(frozen=True)
class _Count:
    began_at: float  # loop time
    before_s: float  # counted by earlier leaders
    since: float  # the node's own stamp: tells this time from another one of being down


class Silence:
    """Counts for as long as this manager leads."""

    def __init__(self, *, target: store.Store, writer: nodes.NodeWriter) -> None:
        self._store = target
        self._nodes = writer
        self._counts: dict[str, _Count] = {}  # by node ID
        self._moved = asyncio.Event()

    def begin(self) -> None:
        """A new leadership."""
        self._counts.clear()
        self.missed()

    def missed(self) -> None:
        """Nodes may have gone down unnoticed."""
        for node in self._store.view().nodes:
            known = self._counts.get(node.id)
            if tasks.lost(node) and (known is None or known.since != stamps.seconds(node.status.since)):
                self.count(node)

    def count(self, node: pb.Node) -> None:
        """The node has gone down, by now at the latest."""
        now = asyncio.get_running_loop().time()
        self._counts[node.id] = _Count(now, stamps.from_nanos(node.status.silent), stamps.seconds(node.status.since))
        self._moved.set()

    async def run(self) -> None:
        """Writes what is waited for, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._moved.clear()
            view, now = self._store.view(), loop.time()
            reached: dict[str, nodes.Change] = {}
            due: list[float] = []
            for node_id, count in list(self._counts.items()):
                needed = leaving.awaited_silence_s(view, node_id)
                if not needed:
                    del self._counts[node_id]
                    continue
                at = {each: count.began_at + each - count.before_s for each in needed}
                if past := [each for each in needed if at[each] <= now]:
                    reached[node_id] = self._while_counting(node_id, count, max(past))
                due += [at[each] for each in needed if at[each] > now]
            if reached:
                try:
                    await self._nodes.change(reached)
                except errors.Unavailable:
                    await asyncio.sleep(RETRY_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(due, default=None)):
                    await self._moved.wait()

    def _while_counting(self, node_id: str, count: _Count, silent_s: float) -> nodes.Change:
        """The change, unless the node has been back meanwhile, even if it is down again."""

        def changed(node: pb.Node) -> None:
            same = self._counts.get(node_id) is count and stamps.seconds(node.status.since) == count.since
            if same and tasks.lost(node):
                node.status.silent = max(node.status.silent, stamps.to_nanos(silent_s))

        return changed
