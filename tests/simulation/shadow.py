"""What a checker knows about every manager: what is on its disk, and what the cluster has ever agreed on.

Fed by the simulated disk, network and state machines; raises Violation at the first thing that must never happen.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

from manager.raft import commands, core, ops
from skep import pb


class Violation(AssertionError):
    """An invariant of the consensus layer does not hold."""


def require(condition: object, message: str) -> None:
    """Raises Violation unless `condition` holds."""
    if not condition:
        raise Violation(message)


@dataclasses.dataclass
class Applied:
    """What was last seen of one run of a manager."""

    index: int  # up to which it has applied
    looked_at: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # state, term, last index, commit index, applied index


class Checker:
    """All invariants that can be checked while the simulation runs."""

    def __init__(self) -> None:
        self.durable: dict[str, ops.State] = {}  # manager -> what is on its disk
        self.leaders: dict[int, str] = {}  # term -> leader
        self.entries: dict[tuple[int, int], tuple[bytes, int]] = {}  # index, term -> command, term before
        self.applied: dict[int, bytes] = {}  # index -> digest of the command
        self.committed: dict[int, tuple[int, int]] = {}  # index -> its term, term of the leader that committed it
        self.committed_to = 1
        self.members: dict[str, None] = {}  # everybody who ever was one, beyond doubt
        self.trace = hashlib.sha256()
        self.checks = 0

    # ---------------------------------------------------------------- disks

    def wrote(self, name: str, batch: Sequence[ops.Op]) -> None:
        """`batch` is durable on a manager's disk: entries of one index and term are alike everywhere."""
        state = self.durable.setdefault(name, ops.State())
        for op in batch:
            if isinstance(op, ops.Hard):
                require(op.term >= state.hard.term, f"{name}: term went back on disk")
                same_vote = op.vote == state.hard.vote or not state.hard.vote
                require(op.term > state.hard.term or same_vote, f"{name}: voted twice in term {op.term}")
            before = self._term_on(state, state.last_index)
            state.apply(op)
            if isinstance(op, ops.Put):
                command, index, term = op.entry
                known = self.entries.setdefault((index, term), (command, before))
                require(known == (command, before), f"{name}: log matching broken at {index} in term {term}")
        self.trace.update(f"{name} {len(batch)} {state.last_index} {state.hard}".encode())

    @staticmethod
    def _term_on(state: ops.State, index: int) -> int:
        if index == state.head.index:
            return state.head.term
        return (
            state.entries[index - state.head.index - 1][2] if 0 < index - state.head.index <= len(state.entries) else 0
        )

    def has(self, name: str, index: int, term: int) -> bool:
        """Whether an entry is on a manager's disk, itself or within a snapshot."""
        state = self.durable.get(name)
        if state is None:
            return False
        return state.snapshot.index >= index or (index <= state.last_index and self._term_on(state, index) == term)

    def reloaded(self, name: str, state: ops.State | None) -> None:
        """A manager starts from its disk. What was durable must be there; what was not may be, too."""
        before = self.durable.get(name)
        if before is not None:
            require(state is not None, f"{name}: the log is gone")
        if state is None:
            return
        if before is not None:
            require(state.hard.term >= before.hard.term, f"{name}: forgot its term")
            if state.hard.term == before.hard.term and before.hard.vote:
                require(state.hard.vote == before.hard.vote, f"{name}: forgot its vote")
        self.durable[name] = ops.State()
        for op in state.operations():
            self.durable[name].apply(op)

    # ---------------------------------------------------------------- network

    def sent(self, source: str, target: str, frame: pb.RaftFrame) -> None:
        """Nothing leaves that depends on something that is not on disk."""
        state = self.durable.get(source, ops.State())
        self.trace.update(f"{source}>{target} {frame.kind} {frame.term} {frame.prev_index}".encode())
        if frame.kind == pb.RAFT_FRAME_KIND_VOTE_REPLY:
            voted = state.hard.term > frame.term or (state.hard.term == frame.term and state.hard.vote == target)
            require(voted, f"{source}: vote for {target} in term {frame.term} left before it was durable")
        elif frame.kind == pb.RAFT_FRAME_KIND_VOTE:
            require(state.hard.term >= frame.term, f"{source}: stood in term {frame.term} before that was durable")
        elif frame.kind in {pb.RAFT_FRAME_KIND_APPEND, pb.RAFT_FRAME_KIND_SNAPSHOT}:
            require(state.hard.term >= frame.term, f"{source}: led term {frame.term} before that was durable")
        elif frame.kind == pb.RAFT_FRAME_KIND_APPEND_REPLY and frame.success:
            have = max(state.last_index, state.snapshot.index)
            overtaken = state.hard.term > frame.term
            require(
                have >= frame.next_index - 1 or overtaken, f"{source}: acknowledged {frame.next_index - 1}, has {have}"
            )

    # ---------------------------------------------------------------- cores

    def look_at(self, raft: core.RaftCore, seen: Applied) -> None:
        """After every turn of the loop, for every manager that runs."""
        now = (
            raft._SyncObj__raftState, raft._SyncObj__raftCurrentTerm, raft.journal.last_index,
            raft._SyncObj__raftCommitIndex, raft._SyncObj__raftLastApplied,
        )  # fmt: skip
        if now == seen.looked_at:
            return  # most turns are about something else, and this is asked a hundred thousand times in a run
        seen.looked_at = now
        self.checks += 1
        name = raft.node_id
        if raft.leading:
            leader = self.leaders.setdefault(raft.term, name)
            require(leader == name, f"two leaders in term {raft.term}: {leader} and {name}")
            if raft.noop_index == raft.journal.last_index:
                self._check_completeness(raft)
        if raft.applied_index != seen.index:
            require(raft.applied_index > seen.index, f"{name}: applied went back to {raft.applied_index}")
            seen.index = raft.applied_index
        if raft.leading and raft.commit_index > self.committed_to:
            self._check_commit(raft)

    def _check_completeness(self, raft: core.RaftCore) -> None:
        for index in range(max(raft.journal.first_index, 2), self.committed_to + 1):
            term, committed_in = self.committed.get(index, (0, raft.term))
            # A leader that was deposed and does not know it lacks what its successors have committed.
            if committed_in < raft.term:
                have = raft.journal.term_at(index)
                require(have == term, f"{raft.node_id} leads term {raft.term} without committed entry {index}")

    def _check_commit(self, raft: core.RaftCore) -> None:
        members = raft.members
        index = raft.commit_index
        term = raft.journal.term_at(index) or 0
        holders = [member for member in members if self.has(member, index, term)]
        require(
            2 * len(holders) > len(members),
            f"{raft.node_id} committed {index} of term {term}, which only {holders} of {list(members)} have on disk",
        )
        for each in range(self.committed_to + 1, index + 1):
            found = raft.journal.term_at(each)
            if found is not None:
                self.committed[each] = found, raft.term
        self.committed_to = index
        self.members.update(dict.fromkeys(raft.committed_configuration[1]))

    def applying(self, name: str, index: int, body: bytes) -> None:
        """Every manager applies the same at the same index."""
        digest = hashlib.sha256(commands.regular(body)).digest()
        known = self.applied.setdefault(index, digest)
        require(known == digest, f"{name} applies something else at {index} than others did")
        # Without the bytes: maps in messages are encoded in another order in every process.
        self.trace.update(f"{name} applies {index} {len(body)}".encode())
