"""Following committed changes, in order and with a bound.

Sans-IO: the watcher is woken through a plain callback and takes what has gathered. One that does not keep up is told
so (`Lagged`) instead of being buffered without end; it then starts over from a view.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from manager.store.ops import AnyRow
from skep import errors

WATCH_BACKLOG_MAX = 100_000  # changes; a pass over a large cluster touches this many at most


class Lagged(errors.SkepError):
    """The watcher fell behind and has lost changes: read everything again."""


class Change(NamedTuple):
    """One object as it was and as it is; `old` is None for a creation, `new` for a deletion."""

    index: int  # type: ignore[assignment]  # hides tuple's method, which nobody calls
    kind: str  # "task", "node", .. the field in pb.Object
    id: str
    old: AnyRow | None
    new: AnyRow | None


class Watch:
    """A bounded queue of changes of the chosen kinds."""

    def __init__(
        self, kinds: frozenset[str], wake: Callable[[], None], close: Callable[["Watch"], None], limit: int
    ) -> None:
        self._kinds = kinds
        self._wake = wake
        self._close = close
        self._limit = limit
        self._changes: deque[Change] = deque()
        self._lagged = False

    def offer(self, changes: list[Change]) -> None:
        """Called by the store after each applied entry."""
        if self._kinds:
            changes = [change for change in changes if change.kind in self._kinds]
        if not changes:
            return
        if len(self._changes) + len(changes) > self._limit:
            self._lagged = True
            self._changes.clear()
        if not self._lagged:
            self._changes.extend(changes)
        self._wake()

    def reset(self) -> None:
        """The store was replaced by a snapshot: whatever the watcher knows is void."""
        self._lagged = True
        self._changes.clear()
        self._wake()

    def take(self) -> list[Change]:
        """What was committed since the last call. Raises Lagged once when something was lost."""
        if self._lagged:
            self._lagged = False
            raise Lagged("this watcher fell behind; read the state again")
        taken = list(self._changes)
        self._changes.clear()
        return taken

    def close(self) -> None:
        """Stops following."""
        self._close(self)
