"""How everybody writes: the Committer. Raft provides the real one; tests and the simulator have a local one."""

from collections.abc import Sequence
from typing import Protocol

from manager.store import store
from skep import clock, errors, pb, stamps


class NotProposed(errors.Unavailable):
    """A commit that was refused before it entered the log (no lead, queue full): certainly not made, safe to repeat."""


class Committer(Protocol):
    """Turns operations into a committed transaction."""

    @property
    def is_leader(self) -> bool:
        """Whether writes are accepted here now."""
        ...

    async def commit(self, ops: Sequence[pb.Op]) -> int:
        """Commits all of `ops` or none; returns the Raft index once they are applied here.

        Raises Conflict (or AlreadyExists) when an object moved, Invalid when the transaction is too large, and
        Unavailable when this manager does not lead, lost its lead, or has too much waiting. After Unavailable the
        outcome can be unknown: decide again from the store. NotProposed, a kind of Unavailable, says that nothing was
        done.
        """
        ...

    async def barrier(self) -> None:
        """Returns once this manager has proved that it led after the call: reads are then linearizable.

        Raises Unavailable when it cannot.
        """
        ...


class LocalCommitter:
    """Applies at once to a store of its own: one replica, no disk. For tests and dry runs."""

    def __init__(self, target: store.Store, time: clock.Clock) -> None:
        self._store = target
        self._clock = time
        self.is_leader = True

    async def commit(self, ops: Sequence[pb.Op]) -> int:
        return self.commit_now(ops)

    def commit_now(self, ops: Sequence[pb.Op]) -> int:
        """The same for callers without an event loop."""
        transaction = pb.Transaction(ops=ops, at=stamps.stamp(self._clock.now()))
        decoded = pb.Transaction.FromString(transaction.SerializeToString())
        (refusal,) = self._store.apply(self._store.index + 1, [decoded])
        if refusal is not None:
            raise refusal
        return self._store.index

    async def barrier(self) -> None:
        return
