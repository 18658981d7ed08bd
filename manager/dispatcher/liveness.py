"""Which nodes have fallen silent. Sans-IO: time comes in, verdicts come out.

A node counts as alive for as long as something was heard of it lately, whichever session it came over; the end of a
session alone says nothing.
"""

import dataclasses
import enum
import heapq


class Verdict(enum.Enum):
    """What has become of a silent node."""

    UNKNOWN = "unknown"  # has not registered with this leader yet
    DOWN = "down"  # its heartbeats stopped
    NEVER_CAME = "never came"  # has not registered with this leader for so long that it counts as down


@dataclasses.dataclass
class _Watch:
    deadline: float
    verdict: Verdict  # at the deadline
    down_at: float  # after UNKNOWN


class Liveness:
    """Deadlines of all nodes, in seconds of the event loop's clock."""

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}
        # One entry per node or more; one whose deadline has moved is pushed again when it comes up, so that a
        # heartbeat costs no more than an assignment.
        self._queue: list[tuple[float, str]] = []

    def expect(self, node_id: str, *, unknown_at: float, down_at: float) -> None:
        """A node that this leader has not heard of yet, but should."""
        self._set(node_id, _Watch(unknown_at, Verdict.UNKNOWN, down_at))

    def __len__(self) -> int:
        """How many nodes are watched."""
        return len(self._watches)

    def heard(self, node_id: str, *, down_at: float) -> bool:
        """The node is alive, and may be silent until `down_at`. Whether `next_at` may have become earlier."""
        watch = self._watches.get(node_id)
        if watch is not None and watch.deadline <= down_at:
            watch.deadline, watch.verdict = down_at, Verdict.DOWN
            return False
        self._set(node_id, _Watch(down_at, Verdict.DOWN, down_at))
        return True

    def alive(self, node_id: str) -> bool:
        """Whether the node was heard of and has not been silent for too long since."""
        watch = self._watches.get(node_id)
        return watch is not None and watch.verdict is Verdict.DOWN

    def drop(self, node_id: str) -> None:
        """Nothing is expected of the node any more."""
        self._watches.pop(node_id, None)

    def due(self, now: float) -> list[tuple[str, Verdict]]:
        """The nodes whose time is up. One that is down is not watched until it is heard of again."""
        verdicts: list[tuple[str, Verdict]] = []
        while self._queue and self._queue[0][0] <= now:
            at, node_id = heapq.heappop(self._queue)
            watch = self._watches.get(node_id)
            if watch is None or watch.deadline < at:
                continue  # dropped, or there is an earlier entry for it
            if watch.deadline > now:
                heapq.heappush(self._queue, (watch.deadline, node_id))
                continue
            verdicts.append((node_id, watch.verdict))
            if watch.verdict is Verdict.UNKNOWN:
                self._set(node_id, _Watch(watch.down_at, Verdict.NEVER_CAME, watch.down_at))
            else:
                del self._watches[node_id]
        return verdicts

    def next_at(self) -> float | None:
        """When `due` is worth calling again; None when no node is watched."""
        return self._queue[0][0] if self._queue else None

    def _set(self, node_id: str, watch: _Watch) -> None:
        self._watches[node_id] = watch
        heapq.heappush(self._queue, (watch.deadline, node_id))
