"""The one shape of every decider: `decide(view, now, rng, dirty) -> Plan`.

A decider is a plain function of its arguments. It recomputes from the store (level, not edge), gives an empty plan on
its own result, and keeps no timer or counter: due times come from stored timestamps. So a change of leader hands over
nothing.
"""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from manager.store import views, watching
from skep import ids, pb


@dataclasses.dataclass(slots=True)
class Plan:
    """What a decider wants to happen. Leaves no choice to whoever carries it out."""

    ops: list[pb.Op] = dataclasses.field(default_factory=list)
    reasons: list[str] = dataclasses.field(default_factory=list)  # one line per decision worth showing
    faults: list[str] = dataclasses.field(default_factory=list)  # what must never be, for the log; the rest goes on
    wake_at: float | None = None  # seconds since the epoch: decide again then, even if nothing changes
    wake_keys: dict[str, float] = dataclasses.field(default_factory=dict)  # what exactly to decide again, and when

    def wake(self, at: float, key: str | None = None) -> None:
        """Asks to be called again at `at` or earlier: for `key` only, or for everything when it is None.

        A decider names a key in all its calls or in none.
        """
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at
        if key is not None:
            self.wake_keys[key] = min(at, self.wake_keys.get(key, at))

    def merge(self, other: "Plan") -> None:
        """Adds another plan to this one."""
        self.ops.extend(other.ops)
        self.reasons.extend(other.reasons)
        self.faults.extend(other.faults)
        for key, at in other.wake_keys.items():
            self.wake(at, key)
        if other.wake_at is not None:
            self.wake(other.wake_at)


class Decider(Protocol):
    """A named decision, the changes that concern it, and the decision itself."""

    name: str
    kinds: frozenset[str]  # kinds of objects whose changes concern it

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        """Keys (service IDs, say) that must be decided anew because of this change; empty when it does not matter."""
        ...

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> Plan:
        """The plan for the keys in `dirty`, or for everything when it is None (a new leader, a watcher that lagged)."""
        ...
