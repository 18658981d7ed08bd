"""For how long tasks that must never run twice may run here without a word from the leader.

Heartbeats are numbered, and the leader answers the ones that it counts as signs of life. The lease runs from the moment
at which an answered heartbeat was *sent*: however long the answer was on its way, the leader had not given this node up
before. It counts the node's silence from later on, and allows for clocks that run at different speeds
(`policies.certainly_stopped_s`), so that this side is always the first to let go (Gray and Cheriton, "Leases: an
efficient fault-tolerant mechanism for distributed file cache consistency", SOSP 1989).
"""

import asyncio
import contextlib
import math
from collections.abc import Callable

from agent.tasks import record
from skep import clock

BEATS = 4  # heartbeats in the shortest lease: one or two may be late without harm
BEAT_MIN_S = 0.1
SENT_MAX = 100  # heartbeats whose answers are waited for
SAVE_SHARE = 0.1  # of the shortest lease: how old what is on record of it may be


class Lease:
    """The one lease of this node. Time is the machine's, since its boot: it goes on while nothing runs."""

    def __init__(self, *, uptime: clock.Uptime, record: record.Record) -> None:
        """Goes on from what is on record of this boot."""
        self._uptime = uptime
        self._record = record
        self._shortest_s = math.inf
        self._paced = asyncio.Event()
        self._number = 0
        self._sent: dict[int, float] = {}
        self._proven_at = self._saved_at = record.proven_at(uptime.boot)
        self.renewing: Callable[[], None] = lambda: None  # called before a renewal takes effect
        self.renewed: Callable[[], None] = lambda: None  # .. and after

    def over(self, lease_s: float) -> bool:
        """Whether a lease of so many seconds has run out."""
        return self._uptime.now() - self._proven_at > lease_s

    def hold(self, shortest_s: float) -> None:
        """The shortest lease of a task that is here now; infinite when there is none."""
        if shortest_s != self._shortest_s:
            self._shortest_s = shortest_s
            self._save()
            self._paced.set()

    # ---------------------------------------------------------------- heartbeats

    def sent(self) -> int:
        """A heartbeat is about to be sent: its number."""
        self._number += 1
        self._sent[self._number] = self._uptime.now()
        if len(self._sent) > SENT_MAX:
            del self._sent[next(iter(self._sent))]
        return self._number

    def answered(self, number: int) -> None:
        """The leader has answered the heartbeat of that number, and everything that it said before is done."""
        sent_at = self._sent.get(number)
        if sent_at is None:
            return
        self._sent = {each: at for each, at in self._sent.items() if each > number}
        # What has run out stays so: only then can it be told from what was renewed in time.
        self.renewing()
        self._proven_at = max(self._proven_at, sent_at)
        if self._proven_at - self._saved_at > SAVE_SHARE * self._shortest_s:
            self._save()
        self.renewed()

    async def pause(self, period_s: float) -> None:
        """Returns when the next heartbeat is due: after the leader's period, or sooner when a lease asks for it."""
        self._paced.clear()
        pause_s = min(period_s, max(self._shortest_s / BEATS, BEAT_MIN_S))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._paced.wait()

    def _save(self) -> None:
        if self._shortest_s < math.inf and self._proven_at > -math.inf:
            self._saved_at = self._proven_at
            self._record.save_proven(self._uptime.boot, self._proven_at)
