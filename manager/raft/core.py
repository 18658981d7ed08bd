"""The Raft core: what the driver calls. No sockets, files, threads, clocks or chance of its own.

The driver hands in messages, proposals and the time, calls `tick`, then writes `journal.take()` to disk and sends
`outbox.take()`: see `may_leave_early` for the only messages that need not wait for the disk.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from typing_extensions import override

from manager.raft import commands, config, election, library, messages, snapshot, transfers
from manager.raft import journal as journals
from skep import errors, ids


class Outcome(enum.Enum):
    """How a proposal ended."""

    DONE = "done"  # applied; the result comes with it
    FAILED = "failed"  # not in the log, never will be
    UNKNOWN = "unknown"  # this node stopped leading while it was under way


Done = Callable[[Outcome, Any], None]


class Machine(Protocol):
    """The state machine behind the core."""

    def apply(self, index: int, body: bytes) -> Any:
        """Applies one entry; the result goes to the proposer. Whatever it raises stops the manager."""
        ...

    def receive(self, taken: snapshot.Snapshot, blocks: Sequence[bytes]) -> None:
        """Begins to store and decode a received snapshot; `snapshot_received` is called when that is done."""
        ...

    def install(self, content: Any) -> None:
        """Replaces the state by the content of a received snapshot, at once."""
        ...

    def discard(self, content: Any) -> None:
        """The content of a received snapshot that came too late."""
        ...

    def take_snapshot(self, wanted: snapshot.Snapshot) -> None:
        """Begins to store a snapshot of this moment's state; `snapshot_done` is called when it is durable."""
        ...


class RaftCore(election.Election):
    """Consensus among the members of the configuration. `machine` holds what the journal's snapshot says."""

    def __init__(
        self,
        *,
        now: float,
        node_id: str,
        journal: journals.Journal,
        machine: Machine,
        rng: ids.Rng,
        times: config.RaftConfig,
        open_snapshot: transfers.Open,
    ) -> None:
        self._enter(now)
        self._machine = machine
        self._waiting: dict[int, tuple[int, Done]] = {}  # index -> term and callback
        self._reads: list[tuple[int, int, Done]] = []  # round, index to be applied, callback
        self._uncommitted_bytes: dict[int, int] = {}
        self._snapshot_running = False
        self._snapshot_wanted = False
        self._applied_bytes = 0  # of the entries that the newest snapshot does not cover
        self._covered_bytes = 0  # how many of them the one does that is being taken
        super().__init__(node_id=node_id, journal=journal, rng=rng, times=times, open_snapshot=open_snapshot)
        self._set_applied_index(journal.snapshot.index)
        self._SyncObj__raftCommitIndex = max(journal.snapshot.index, min(journal.commit, journal.last_index))
        self._reconfigure()
        if list(self.members) == [node_id]:
            self._SyncObj__raftElectionDeadline = now  # nobody to wait for

    # ---------------------------------------------------------------- state

    @property
    def in_charge(self) -> bool:
        """Whether this node leads and has applied everything that was committed before it did."""
        return self.leading and self.applied_index >= self.noop_index

    @property
    def wake_at(self) -> float:
        """The time of the next `tick`, unless something comes in before."""
        if self.leading:
            return float(self._SyncObj__newAppendEntriesTime)
        return self._election_deadline

    @property
    def restless(self) -> bool:
        """Whether `tick` has more to do at once, after others had their turn."""
        return self.news or self.applied_index < self.commit_index

    @property
    def uncommitted_bytes(self) -> int:
        """Size of this leader's proposals that wait for a majority."""
        return sum(self._uncommitted_bytes.values())

    @property
    def responsive(self) -> dict[str, None]:
        """Leader only: the members that answer, itself among them."""
        return self._responsive(self.times.election_max_s)

    # ---------------------------------------------------------------- input

    def receive(self, now: float, peer: str, message: messages.Message) -> None:
        """A message from `peer`, whose identity the transport has checked."""
        self._enter(now)
        node = library.new_node(peer)
        match message["type"]:
            case "append_entries":
                self._on_append(node, message)
            case "next_node_idx":
                self._on_reply(node, message)
            case "install_snapshot":
                self._on_block(node, message)
            case "pre_vote":
                self._on_pre_vote(node, message)
            case "pre_vote_reply":
                self._on_pre_vote_reply(node, message)
            case "request_vote":
                self._on_request_vote(node, message)
            case "response_vote":
                self._on_vote(node, message)
            case "timeout_now":
                self._on_timeout_now(node, message)
            case "configuration":
                if message["term"] == self.term and self.node_id not in message["configuration"][1]:
                    self.removed = True
            case _:
                raise errors.Bug(f"raft: no such message: {message['type']}")

    def propose(self, now: float, body: bytes, done: Done) -> None:
        """Puts a batch into the log. `done` is called exactly once, whatever happens."""
        self._enter(now)
        if not self.in_charge:
            done(Outcome.FAILED, None)
            return
        self._append(commands.regular(body), done)

    def change(self, now: float, members: Mapping[str, str], done: Done) -> None:
        """Proposes a configuration that differs in one member (or in addresses); FAILED when it is not the time."""
        self._enter(now)
        if not self.in_charge or not self._change_allowed(members):
            done(Outcome.FAILED, None)
            return
        self._append(commands.membership(members), done)
        self._reconfigure()

    def read_barrier(self, now: float, done: Done) -> None:
        """Calls `done` once this node has proved that it led after the call and has applied what was committed."""
        self._enter(now)
        if not self.in_charge:
            done(Outcome.FAILED, None)
            return
        self._round += 1
        self._reads.append((self._round, self.commit_index, done))
        self._unsent = True

    def snapshot_now(self) -> None:
        """A snapshot at the next tick, whatever the thresholds say."""
        self._snapshot_wanted = True

    def snapshot_done(self, taken: snapshot.Snapshot | None) -> None:
        """The snapshot that was begun is durable (or failed: None)."""
        self._snapshot_running = False
        if taken is None or taken.index <= self.journal.snapshot.index:
            return
        self._applied_bytes -= self._covered_bytes
        floor = self._transfers.floor()
        self.journal.compact(
            taken,
            keep_from=taken.index + 1 - self.times.keep_entries,
            keep_bytes=self.times.keep_bytes,
            needed_from=None if floor is None else floor + 1,
        )

    @override
    def _begin_install(self, taken: snapshot.Snapshot, blocks: Sequence[bytes]) -> None:
        self._machine.receive(taken, blocks)

    def snapshot_received(self, now: float, taken: snapshot.Snapshot, content: Any) -> None:
        """A received snapshot is stored and decoded, or was damaged on the way (None)."""
        self._enter(now)
        source, self._installing = self._installing, None
        if content is None:
            if source is not None:
                self._answer(source[0], acknowledged=(taken.index, 0))  # once more
            return
        if self.leading or taken.index <= self.applied_index:  # the log itself has got here meanwhile
            self._machine.discard(content)
            return
        self._machine.install(content)
        self.journal.install(taken)
        self._set_applied_index(taken.index)
        self._applied_bytes = 0
        self._set_commit_index(max(taken.index, self.commit_index))
        self._reconfigure()
        if source is not None:
            self._answer(source[0], nextNodeIdx=taken.index + 1, success=True, acknowledged=(taken.index, taken.blocks))

    def tick(self, now: float) -> None:
        """Does whatever is due: elections, commits, applying, reads, sending, snapshots."""
        self._enter(now)
        if not self.leading:
            self._maybe_stand()
        news = self.leading and self.news
        if self.leading:
            self._advance_commit()
            self._check_quorum()
        self._SyncObj__applyLogEntries()
        if self.leading:
            self._answer_reads()
            self._part()
            if self._unsent or news or now >= self._SyncObj__newAppendEntriesTime:
                self._SyncObj__sendAppendEntries()
            self._leave_when_removed()
        self._maybe_snapshot()

    def may_leave_early(self, message: messages.Message) -> bool:
        """Whether a message may leave while our own disk is still busy: a leader's entries, in a durable term."""
        return message["type"] in {"append_entries", "install_snapshot"} and self.journal.durable_term == self.term

    # ---------------------------------------------------------------- inside

    def _append(self, command: bytes, done: Done) -> None:
        index = self.journal.last_index + 1
        self.journal.add(command, index, self.term)
        self._waiting[index] = (self.term, done)
        self._uncommitted_bytes[index] = len(command)
        self._unsent = True

    @override
    def _state_changed(self, old: int, new: int) -> None:
        """No longer leading: every proposal and read gets its answer now."""
        if old != library.LEADER:
            return
        waiting, self._waiting = self._waiting, {}
        reads, self._reads = self._reads, []
        self._uncommitted_bytes = {}
        self.news = False
        self._transfers.clear()
        self._windows = {}
        self._clear_listeners()
        for _, done in waiting.values():
            done(Outcome.UNKNOWN, None)
        for _, _, done in reads:
            done(Outcome.FAILED, None)

    def abandon(self) -> None:
        """The end of this core: gives every proposal and read its answer."""
        self._state_changed(library.LEADER, library.FOLLOWER)

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        """Applies what is committed, a slice a tick: the library would hold the event loop for thousands of entries."""
        size_bytes = 0
        end = min(self.commit_index, self.applied_index + config.APPLY_ENTRIES_MAX)
        while self.applied_index < end and size_bytes < config.APPLY_SLICE_BYTES:
            command = self.journal.entries[self.applied_index + 1 - self.journal.first_index][0]
            self._SyncObj__doApplyCommand(command)
            self._set_applied_index(self.applied_index + 1)
            size_bytes += len(command)
        self._applied_bytes += size_bytes
        return False

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:  # noqa: N802
        """Applies one entry; ours are not pickles. The index counts up afterwards."""
        index = self.applied_index + 1
        result: Any = index
        if command[:1] == commands.REGULAR:
            result = self._machine.apply(index, command[1:])
        elif command[:1] not in {commands.NOOP, commands.MEMBERSHIP}:
            raise errors.Bug(f"raft: entry {index} is of an unknown kind: update skep on this manager")
        term, done = self._waiting.pop(index, (0, None))
        self._uncommitted_bytes.pop(index, None)
        if done is not None:
            same = self.journal.term_at(index) == term
            done(Outcome.DONE if same else Outcome.UNKNOWN, result if same else None)
        return result

    def _answer_reads(self) -> None:
        if not self._reads:
            return
        rounds = sorted(self._round if peer == self.node_id else self._rounds.get(peer, 0) for peer in self.members)
        proved = rounds[(len(rounds) - 1) // 2]
        waiting, self._reads = self._reads, []
        for read in waiting:
            number, index, done = read
            if number <= proved and self.applied_index >= index:
                done(Outcome.DONE, self.applied_index)
            else:
                self._reads.append(read)

    def _leave_when_removed(self) -> None:
        """A leader that has committed its own removal, and told so, stops leading."""
        index, members = self.journal.configuration
        if self.node_id not in members and index <= self.commit_index and not self.news:
            self.removed = True
            self._become_follower(self.term)

    def _maybe_snapshot(self) -> None:
        journal = self.journal
        new = self.applied_index - journal.snapshot.index
        due = (
            new >= self.times.snapshot_entries
            or self._applied_bytes + self.times.keep_bytes > self.times.snapshot_bytes
        )
        if self._snapshot_running or new <= 0 or not (due or self._snapshot_wanted):
            return
        self._snapshot_running = True
        self._snapshot_wanted = False
        self._covered_bytes = self._applied_bytes
        index = self.applied_index
        term = journal.term_at(index)
        if term is None:
            raise errors.Bug(f"raft: entry {index} was applied and is not in the log")
        members_index, members = journal.configuration_at(index)
        self._machine.take_snapshot(
            snapshot.Snapshot(index=index, term=term, members=members, members_index=members_index)
        )
