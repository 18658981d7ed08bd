"""What can happen to the log: the operations that the journal queues and that a log backend makes durable."""

import dataclasses
from collections.abc import Sequence

from manager.raft import commands, snapshot
from skep import pb


@dataclasses.dataclass(frozen=True, slots=True)
class Put:
    """An entry at the end."""

    entry: commands.Entry


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """Entries from `index` on are gone."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class Hard:
    """Term, vote in that term ('' for none), commit index, whether this node has ever been a member."""

    term: int
    vote: str
    commit: int
    member: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """The snapshot that counts from now on. Its file is already there."""

    snapshot: snapshot.Snapshot


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """Entries up to `index`, which had `term`, are gone: a snapshot covers them."""

    index: int
    term: int


Op = Put | Cut | Hard | Taken | Head


class State:
    """What a log holds: the result of all operations so far."""

    def __init__(self) -> None:
        self.hard = Hard(0, "", 0)
        self.snapshot = snapshot.Snapshot(index=0, term=0, members={}, members_index=0)
        self.head = Head(0, 0)
        self.entries: list[commands.Entry] = []  # from head.index + 1 on, without gaps

    @property
    def last_index(self) -> int:
        """Index of the last entry, or of the head."""
        return self.head.index + len(self.entries)

    def apply(self, op: Op) -> None:
        """Carries out one operation. Raises ValueError when it does not fit."""
        match op:
            case Put(entry):
                if entry[1] != self.last_index + 1:
                    raise ValueError(f"entry {entry[1]} after {self.last_index}")
                self.entries.append(entry)
            case Cut(index):
                del self.entries[max(0, index - self.head.index - 1) :]
            case Hard():
                self.hard = op
            case Taken(taken):
                self.snapshot = taken
            case Head(index):
                del self.entries[: max(0, index - self.head.index)]
                self.head = op

    def operations(self) -> list[Op]:
        """Operations that lead from nothing to this state."""
        puts = [Put(entry) for entry in self.entries]
        return [self.hard, Taken(self.snapshot), self.head, *puts]


def encode(batch: Sequence[Op]) -> bytes:
    """The record of a batch."""
    message = pb.RaftLogBatch()
    for op in batch:
        encoded = message.ops.add()
        match op:
            case Put((command, index, term)):
                encoded.put.index, encoded.put.term, encoded.put.command = index, term, command
            case Cut(index):
                encoded.cut_from = index
            case Hard(term, vote, commit, member):
                encoded.hard.CopyFrom(pb.RaftHardState(term=term, vote=vote, commit=commit, member=member))
            case Taken(taken):
                encoded.snapshot.CopyFrom(taken.message())
            case Head(index, term):
                encoded.head.CopyFrom(pb.RaftLogHead(index=index, term=term))
    return message.SerializeToString()


def decode(record: bytes) -> list[Op]:
    """The batch in a record. Raises ValueError."""
    return [_decode_op(op) for op in pb.RaftLogBatch.FromString(record).ops]


def _decode_op(op: pb.RaftLogOp) -> Op:
    match op.WhichOneof("op"):
        case "put":
            return Put((op.put.command, op.put.index, op.put.term))
        case "cut_from":
            return Cut(op.cut_from)
        case "hard":
            return Hard(op.hard.term, op.hard.vote, op.hard.commit, op.hard.member)
        case "snapshot":
            return Taken(snapshot.Snapshot.of(op.snapshot))
        case "head":
            return Head(op.head.index, op.head.term)
        case _:
            raise ValueError("an operation of a newer version of skep")
