"""Brings the output of several tasks into the order of its time stamps, as far as it has come. Pure.

What comes from one task keeps its order. A line waits for those tasks of which nothing is here, since theirs may be
older; never longer than `hold_s`, so that neither a silent task nor a slow node holds up the rest.
"""

import dataclasses
import heapq
from collections import deque

from skep import pb, stamps

Stamp = tuple[int, int]
TICK_S = 0.001  # wall-clock time as a float is not finer by much: what is due so soon is due
AT_ONCE: Stamp = (-1, 0)  # of what carries no time: the end of a chunk


@dataclasses.dataclass(slots=True)
class _Item:
    arrived: float
    stamp: Stamp
    what: pb.LogEntry | pb.LogChunk


class Merge:
    """The tasks that are read at the same time. `now` is monotonic time, `wall` the clock that stamps lines."""

    def __init__(self, *, hold_s: float) -> None:
        self._hold_s = hold_s
        self._here: dict[str, deque[_Item]] = {}
        self._heads: list[tuple[Stamp, int, str]] = []  # of every task of which something is here
        self._empty: dict[str, float] = {}  # the others, and since when; the latest comes last
        self._order = 0

    def open(self, task_id: str, *, now: float) -> None:
        """From now on lines of this task may come."""
        self._here[task_id] = deque()
        self._empty[task_id] = now

    def put(self, task_id: str, chunk: pb.LogChunk, *, now: float) -> None:
        """Takes a chunk of an open task; after its last entry `next` gives out the chunk itself."""
        items = self._here[task_id]
        was_empty = not items
        for entry in chunk.entries:
            items.append(_Item(now, (entry.timestamp.seconds, entry.timestamp.nanos), entry))
        items.append(_Item(now, AT_ONCE, chunk))
        if was_empty:
            del self._empty[task_id]
            self._push(task_id)

    def next(self, *, now: float, wall: float) -> tuple[str, pb.LogEntry | pb.LogChunk] | None:
        """What is due; None when nothing is, then `wait_s` says for how long. A chunk with `end` closes its task."""
        if not self._heads or self._due(now=now, wall=wall) > now + TICK_S:
            return None
        _, _, task_id = heapq.heappop(self._heads)
        items = self._here[task_id]
        what = items.popleft().what
        if isinstance(what, pb.LogChunk) and what.end:
            del self._here[task_id]
        elif items:
            self._push(task_id)
        else:
            self._empty[task_id] = now
        return task_id, what

    def wait_s(self, *, now: float, wall: float) -> float | None:
        """Seconds until something is due if nothing more comes; None when nothing will be."""
        return max(0.0, self._due(now=now, wall=wall) - now) if self._heads else None

    def _push(self, task_id: str) -> None:
        self._order += 1
        heapq.heappush(self._heads, (self._here[task_id][0].stamp, self._order, task_id))

    def _due(self, *, now: float, wall: float) -> float:
        """When the oldest line may go."""
        stamp, _, task_id = self._heads[0]
        if stamp == AT_ONCE or not self._empty:
            return now
        # Whoever has been silent for so long has nothing older: only lines as young as its next one have to wait.
        silent = next(reversed(self._empty.values())) + self._hold_s
        aged = now + stamp[0] + stamp[1] / stamps.NANOS + self._hold_s - wall
        return min(self._here[task_id][0].arrived + self._hold_s, max(silent, aged))
