"""Known faults, put back one at a time, to show that the simulation finds them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

from manager.raft import core, election, journal, log, replication
from tests.simulation import shadow

Patches = tuple[tuple[Any, str, Any], ...]  # owner, attribute, what stands there instead


def _unsynced(self: Any) -> int:
    """Everything may leave at once."""
    return 0


def _truncating(self: Any, node: Any, message: dict[str, Any]) -> None:
    """The library's own append: cuts whatever follows prev, also when it matches."""
    if self._from_leader(node, message):
        self._base_receive(node, message)
        self._reconfigure()


def _any_vote(self: Any, node: Any, message: dict[str, Any]) -> None:
    """Counts messages, as the library does: of any term, of anybody, and each as often as it comes."""
    if not self.leading and self._granted:
        self._granted[f"{node.id} {len(self._granted)}"] = None
        if 2 * len(self._granted) > len(self.members):
            self._lead()


def _unasked(self: Any) -> None:
    """Who hears of no leader stands at once, and is voted for whoever leads."""
    if self._election_deadline > self._now:
        return
    self._put_off_election()
    if self.electable:
        self._stand(forced=True)


def _disloyal(self: Any) -> bool:
    """A leader that was heard from is no reason to refuse a vote."""
    return False


def _forgetful(self: Any, term: int, vote: str | None) -> None:
    """The vote is not written down."""
    self.term, self._vote = term, ""
    self._hard_changed = True


def _own_copy_counts(self: Any) -> None:
    """A leader counts its own entries before they are on its disk."""
    self.journal.durable_index = self.journal.last_index
    _ADVANCE(self)


def _no_barrier(self: Any, now: float, done: Any) -> None:
    """Reads are answered without asking anybody."""
    self._enter(now)
    if self.in_charge:
        done(core.Outcome.DONE, self.applied_index)
    else:
        done(core.Outcome.FAILED, None)


def _any_term(self: Any, node: Any, message: dict[str, Any]) -> None:
    """Answers of other terms count."""
    _ON_REPLY(self, node, {**message, "term": self.term})


def _no_sync(self: Any, batch: Any) -> None:
    """Says that a batch is durable before it was synced."""
    synced = self._file
    if synced is not None:
        with mock.patch.object(synced, "sync"):
            _WRITE(self, batch)
    else:
        _WRITE(self, batch)


def _credulous(self: Any, node: Any, message: dict[str, Any], *, commit: int) -> None:
    """The commit index that a message names counts, whatever was compared."""
    _HEADER(self, node, message, commit=min(message["commit_index"], self.journal.last_index))


_HEADER = replication.Replication._header
_ADVANCE = replication.Replication._advance_commit
_ON_REPLY = replication.Replication._on_reply
_WRITE = log.DurableLog.write

MUTANTS: dict[str, Patches] = {
    "messages leave before the disk is done": ((journal.Journal, "needed_batch", property(_unsynced)),),
    "a matching suffix is cut": ((replication.Replication, "_on_append", _truncating),),
    "whatever a leader has committed is committed here": ((replication.Replication, "_header", _credulous),),
    "votes are counted, whoever sends them": ((election.Election, "_on_vote", _any_vote),),
    "elections are held without asking before": ((election.Election, "_maybe_stand", _unasked),),
    "nobody is loyal to a leader": ((election.Election, "_content", _disloyal),),
    "votes are forgotten": ((journal.Journal, "setCurrentTerm", _forgetful),),
    "the leader's own copy counts at once": ((replication.Replication, "_advance_commit", _own_copy_counts),),
    "reads without a barrier": ((core.RaftCore, "read_barrier", _no_barrier),),
    "answers of other terms count": ((replication.Replication, "_on_reply", _any_term),),
    "batches are not synced": ((log.DurableLog, "write", _no_sync),),
}

QUICKLY_FOUND = (  # by one of the first seeds; the others take many
    "messages leave before the disk is done",
    "a matching suffix is cut",
    "votes are forgotten",
    "the leader's own copy counts at once",
    "batches are not synced",
)


@contextlib.contextmanager
def put_back(fault: Patches) -> Iterator[None]:
    """The fault is there while the context lasts."""
    with contextlib.ExitStack() as stack:
        for owner, attribute, replacement in fault:
            stack.enter_context(mock.patch.object(owner, attribute, replacement))
        yield


def first_find(
    fault: Patches, simulate: Callable[[int], object], seeds: Iterable[int]
) -> tuple[int, shadow.Violation] | None:
    """The first seed that finds the fault, and what it says; None when none of them does."""
    for seed in seeds:
        with put_back(fault):
            try:
                simulate(seed)
            except shadow.Violation as error:
                return seed, error
    return None
