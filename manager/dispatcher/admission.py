"""How many agents may register at once, and when the others are to come. Sans-IO: time comes in, waits come out.

After a change of leader every agent of the cluster comes within a second or two. Each costs the leader a few
milliseconds and a proof that it leads, so those in front are let in at a steady rate, some wait in line, and the rest
are told when to come back: each gets a time of its own, at which it is let in.
"""

from collections.abc import Callable

RATE_PER_S = 250.0  # registrations begun; leaves most of a core to the other work of a leader
BURST = 50  # let in at once: small clusters never notice
HOLD_S = 2.0  # who is let in within this time waits in line; an agent gives up after ten seconds without an answer
REGISTERING_MAX = 200  # begun and not finished; more when the log is slow would only time out together
PATIENCE_S = 30.0  # how much too late a node that was told a time may come


class Admission:
    """The line in front of one leader."""

    def __init__(self, spread: Callable[[float, float], float]) -> None:
        """`spread` draws between two numbers."""
        self._spread = spread
        self._next_at = float("-inf")  # when the next newcomer is let in
        self._told: dict[str, float] = {}  # node -> when it may come in; at most one entry a node
        self._swept_at = 0.0
        self.registering = 0

    @property
    def told(self) -> int:
        """How many were told to come back, and have not yet."""
        return len(self._told)

    def wait_s(self, node_id: str, now: float) -> float:
        """Seconds until the node may register; 0.0 is now. More than HOLD_S: it is to go away and come back then."""
        self._sweep(now)
        if self.registering >= REGISTERING_MAX:
            return self._spread(HOLD_S, 2 * HOLD_S) + HOLD_S
        told_at = self._told.get(node_id)
        if told_at is not None and told_at - now <= HOLD_S:
            del self._told[node_id]
            return max(0.0, told_at - now)
        if told_at is None:
            told_at = self._next_at = max(self._next_at, now - BURST / RATE_PER_S) + 1 / RATE_PER_S
            if told_at - now > HOLD_S:
                self._told[node_id] = told_at
        return max(0.0, told_at - now)

    def _sweep(self, now: float) -> None:
        """Forgets those who did not come back."""
        if now < self._swept_at + PATIENCE_S:
            return
        self._swept_at = now
        for node_id in [node_id for node_id, at in self._told.items() if at + PATIENCE_S < now]:
            del self._told[node_id]


def spread_s(nodes: int) -> float:
    """Over how much time the agents of so many nodes are to come when all have lost their sessions."""
    return max(0.0, nodes - BURST) / RATE_PER_S
