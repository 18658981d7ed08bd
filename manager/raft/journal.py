"""The log in memory: what the core reads and writes, with every change queued for the disk.

It has the shape of PySyncObj's Journal. `take` hands the queued operations to whoever writes them; `written` says that
they are durable. It knows what is durable, and the configuration (the last membership entry); it does no I/O.

Position 0 is a sentinel: index and term of the last entry that is no longer kept.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from manager.raft import commands, config, ops, snapshot
from skep import errors

FIRST_INDEX = 1  # the sentinel of an empty log; the library begins there


@dataclasses.dataclass(frozen=True)
class Batch:
    """Operations that were taken to be written, and what will be durable then."""

    number: int
    operations: Sequence[ops.Op]
    last_index: int
    term: int


class Journal:
    """Entries, term, vote, commit index, snapshot."""

    def __init__(self, state: ops.State | None, *, bootstrap: Mapping[str, str] | None = None) -> None:
        """`state` is what was durable; without it the log is new: of a new cluster, or empty and waiting for one."""
        self._queued: list[ops.Op] = []
        self._hard_changed = False
        self._configurations: list[tuple[int, commands.Members]] = []
        self.configuration_version = 0  # counts changes of the configuration, also the undoing of one
        self.taken_number = 0
        self.written_number = 0
        if state is None:
            self.member = False
            self._begin(bootstrap or {})
        else:
            self.term, self._vote, self.commit = state.hard.term, state.hard.vote, state.hard.commit
            self.member = state.hard.member
            self.snapshot = state.snapshot
            self.entries: list[commands.Entry] = [(commands.NOOP, state.head.index, state.head.term), *state.entries]
            self._configurations = _configurations(state.entries)
            self.durable_index = self.last_index
            self.durable_term = self.term
        self.size_bytes = sum(len(entry[0]) for entry in self.entries[1:])  # the sentinel is nothing to keep
        self._cut_floor = self.last_index

    def _begin(self, members: Mapping[str, str]) -> None:
        self.term, self._vote, self.commit = 0, "", FIRST_INDEX
        self.snapshot = snapshot.Snapshot(index=FIRST_INDEX, term=0, members={}, members_index=FIRST_INDEX)
        self.entries = [(commands.NOOP, FIRST_INDEX, 0)]
        self.durable_index = self.durable_term = 0
        self._queued += [ops.Taken(self.snapshot), ops.Head(FIRST_INDEX, 0)]
        self.size_bytes = 0
        if members:
            self.term = 1
            self.add(commands.membership(members), FIRST_INDEX + 1, 1)
        self._hard_changed = True

    # ---------------------------------------------------------------- what the library calls

    def add(self, command: bytes, index: int, term: int) -> None:
        """An entry at the end."""
        if index != self.last_index + 1:
            raise errors.Bug(f"raft: entry {index} added after {self.last_index}")
        entry = (command, index, term)
        self.entries.append(entry)
        self.size_bytes += len(command)
        self._queued.append(ops.Put(entry))
        if commands.is_membership(command):
            self._configurations.append((index, commands.members_of(command)))
            self.configuration_version += 1

    def deleteEntriesFrom(self, position: int) -> None:  # noqa: N802
        """Cuts a tail that conflicts with the leader's. Committed entries never do: then it is better to stop."""
        index = self.first_index + position
        if index <= max(self.commit, self.snapshot.index):
            raise errors.Bug(f"raft: asked to cut the log from {index}, but {self.commit} is committed")
        self.size_bytes -= sum(len(entry[0]) for entry in self.entries[position:])
        del self.entries[position:]
        self._queued.append(ops.Cut(index))
        self._cut_floor = min(self._cut_floor, index - 1)
        self.durable_index = min(self.durable_index, index - 1)
        while self._configurations and self._configurations[-1][0] >= index:
            self._configurations.pop()
            self.configuration_version += 1

    def deleteEntriesTo(self, position: int) -> None:  # noqa: N802
        raise errors.Bug("raft: the library's own compaction was used")

    def clear(self) -> None:
        raise errors.Bug("raft: the library's own compaction was used")

    def __getitem__(self, position: Any) -> Any:
        return self.entries[position]

    def __len__(self) -> int:
        return len(self.entries)

    def setRaftCommitIndex(self, index: int) -> None:  # noqa: N802
        """Remembered without an own write: after a crash the leader says it again."""
        if index < self.commit:
            raise errors.Bug(f"raft: commit index going back from {self.commit} to {index}")
        self.commit = index

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self.commit

    def setCurrentTerm(self, term: int, vote: str | None) -> None:  # noqa: N802
        self.term, self._vote = term, vote or ""
        self._hard_changed = True

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._vote or None

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """The library's timer; nothing to do."""

    def _destroy(self) -> None:
        """The library's end; whoever owns the backend closes it."""

    # ---------------------------------------------------------------- reading

    @property
    def first_index(self) -> int:
        """The sentinel's index: the last one that is not kept."""
        return self.entries[0][1]

    @property
    def last_index(self) -> int:
        return self.entries[-1][1]

    @property
    def last_term(self) -> int:
        return self.entries[-1][2]

    def term_at(self, index: int) -> int | None:
        """The term of an entry; None when it is not kept."""
        if self.first_index <= index <= self.last_index:
            return self.entries[index - self.first_index][2]
        return None

    def configuration_at(self, index: int) -> tuple[int, commands.Members]:
        """The configuration in force at `index`, and the index of the entry that set it."""
        found = self.snapshot.members_index, self.snapshot.members
        for at, members in self._configurations:
            if at <= index:
                found = at, members
        return found

    @property
    def configuration(self) -> tuple[int, commands.Members]:
        """The newest configuration, committed or not: the one that counts for elections and commits."""
        return self.configuration_at(self.last_index)

    def mark_member(self) -> None:
        """This node is, or was, a member; that is remembered for good."""
        if not self.member:
            self.member = self._hard_changed = True

    # ---------------------------------------------------------------- snapshots

    def compact(
        self,
        taken: snapshot.Snapshot,
        *,
        keep_from: int,
        keep_bytes: int = config.KEEP_BYTES_MAX,
        needed_from: int | None = None,
    ) -> None:
        """A snapshot of our own counts from now on; entries before `keep_from` are dropped, in the same batch.

        Of those that the snapshot covers no more is kept than `keep_bytes`: what stays is written anew, and nothing
        that others wait for gets to the disk meanwhile. Entries from `needed_from` on stay whatever they weigh.
        """
        if needed_from is not None:
            keep_from = min(keep_from, needed_from)
        covered = min(taken.index, taken.index if needed_from is None else needed_from - 1) - self.first_index
        drop = min(keep_from, taken.index + 1) - 1 - self.first_index
        kept_bytes = sum(len(entry[0]) for entry in self.entries[max(drop, 0) + 1 : covered + 1])
        while drop < covered and kept_bytes > keep_bytes:
            drop = max(drop, 0) + 1
            kept_bytes -= len(self.entries[drop][0])
        self.snapshot = taken
        self._queued.append(ops.Taken(taken))
        if drop > 0:
            self.size_bytes -= sum(len(entry[0]) for entry in self.entries[1 : drop + 1])
            self.entries = self.entries[drop:]
            self.entries[0] = (commands.NOOP, self.entries[0][1], self.entries[0][2])
            self._queued.append(ops.Head(self.entries[0][1], self.entries[0][2]))
        self._configurations = [held for held in self._configurations if held[0] > taken.index]

    def install(self, taken: snapshot.Snapshot) -> None:
        """A leader's snapshot, stored already, replaces the log, except a tail that continues it."""
        tail: list[commands.Entry] = []
        if taken.index > self.first_index and self.term_at(taken.index) == taken.term:
            tail = self.entries[taken.index - self.first_index + 1 :]
        self.snapshot = taken
        self.entries = [(commands.NOOP, taken.index, taken.term), *tail]
        self.size_bytes = sum(len(entry[0]) for entry in tail)
        if not tail:
            self._queued.append(ops.Cut(0))
            self._cut_floor = min(self._cut_floor, taken.index)
            self.durable_index = min(self.durable_index, taken.index)
        self._queued += [ops.Taken(taken), ops.Head(taken.index, taken.term)]
        self._configurations = _configurations(tail)
        self.configuration_version += 1

    # ---------------------------------------------------------------- the disk

    @property
    def dirty(self) -> bool:
        """Whether something waits to be written that somebody may depend on."""
        return bool(self._queued) or self._hard_changed

    def take(self) -> Batch:
        """The next batch to write. Batches must be written in the order in which they were taken."""
        operations = [*self._queued, self._hard()]
        self._queued = []
        self._hard_changed = False
        self._cut_floor = self.last_index
        self.taken_number += 1
        return Batch(self.taken_number, operations, self.last_index, self.term)

    def _hard(self) -> ops.Hard:
        return ops.Hard(self.term, self._vote, min(self.commit, self.last_index), self.member)

    def written(self, batch: Batch) -> None:
        """`batch` is durable. What was cut meanwhile does not count."""
        self.written_number = batch.number
        self.durable_index = max(self.durable_index, min(batch.last_index, self._cut_floor))
        self.durable_term = batch.term

    @property
    def needed_batch(self) -> int:
        """The number of the batch that must be durable before anything said now may leave this machine."""
        return self.taken_number + 1 if self.dirty else self.taken_number


def _configurations(entries: Sequence[commands.Entry]) -> list[tuple[int, commands.Members]]:
    return [(entry[1], commands.members_of(entry[0])) for entry in entries if commands.is_membership(entry[0])]
