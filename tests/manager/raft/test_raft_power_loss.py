"""The power fails at every single system call of the log: compaction, swapped snapshots, torn tails, and starting."""

import pathlib
import random

import pytest

from manager.raft import commands, disk, log, ops, sealing, snapshot
from tests.manager.raft import recorded_disk

MEMBERS = {"a": "h:1"}
KEPT = (0.0, 1.0, 0.5, 0.9)  # of what was not synced
Promise = tuple[int, ops.State]  # after so many system calls this, or something later, must be there


def put(index: int, rng: random.Random) -> ops.Put:
    return ops.Put((commands.regular(rng.randbytes(rng.choice([20, 700, 3000]))), index, 1))


class Life:
    """A log that is written, with a note of what was promised when."""

    def __init__(self, directory: pathlib.Path, rng: random.Random) -> None:
        self.recorder = recorded_disk.Recorder(directory)
        self.promises: list[Promise] = [(0, ops.State())]
        self.log = log.DurableLog(disk.OsDisk(directory))
        self.rng = rng
        self.last = 1

    def write(self, *batch: ops.Op) -> None:
        expected = ops.State()
        for op in (*self.promises[-1][1].operations(), *batch):
            expected.apply(op)
        self.log.write(batch)
        self.promises.append((len(self.recorder.calls), expected))
        self.last = expected.last_index

    def entries(self, count: int) -> None:
        for _ in range(count):
            self.write(put(self.last + 1, self.rng), ops.Hard(1, "a", self.last))

    def snapshot(self, index: int) -> snapshot.Snapshot:
        wanted = snapshot.Snapshot(index=index, term=1, members=MEMBERS, members_index=1)
        return self.log.save_snapshot(wanted, snapshot.reblock([b"%d " % index * 200_000]))

    def run(self) -> None:
        """Everything that happens to a log."""
        with self.recorder.recording():
            assert self.log.load() is None
            first = snapshot.Snapshot(index=1, term=0, members=MEMBERS, members_index=1)
            self.write(ops.Taken(first), ops.Head(1, 0), ops.Hard(1, "a", 1))
            self.entries(4)
            self.write(ops.Taken(self.snapshot(4)), ops.Head(3, 1))  # a snapshot of its own, one entry stays
            self.entries(2)
            self.write(ops.Cut(6), put(6, self.rng), ops.Hard(2, "", 5))  # a conflicting tail
            self.write(ops.Cut(0), ops.Taken(self.snapshot(9)), ops.Head(9, 1))  # a leader's snapshot
            self.entries(3)
            self.write(ops.Taken(self.snapshot(11)), ops.Head(11, 1), put(13, self.rng))
            self.entries(1)
            self.log.close()


def check(directory: pathlib.Path, allowed: list[ops.State]) -> None:
    """What is loaded is one of these, whole, and can be gone on with."""
    found = log.DurableLog(disk.OsDisk(directory))
    state = found.load()
    loaded = (state or ops.State()).operations()
    assert loaded in [each.operations() for each in allowed]
    if state is not None and state.snapshot.blocks:
        body = b"".join(found.open_snapshot(state.snapshot).blocks())
        assert body == b"%d " % state.snapshot.index * 200_000
    found.write([ops.Hard(7, "b", 1)] if state is not None else [ops.Head(1, 0), ops.Hard(7, "b", 1)])
    found.close()
    again = log.DurableLog(disk.OsDisk(directory)).load()
    assert again is not None
    assert again.hard == ops.Hard(7, "b", 1)


def allowed_after(life: Life, calls: int) -> list[ops.State]:
    """The last promise that was given, and the one that was being made good."""
    given = max(number for number, (at, _) in enumerate(life.promises) if at <= calls)
    return [state for _, state in life.promises[given : given + 2]]


def check_all(life: Life, root: pathlib.Path, *, kept: float) -> None:
    """The power fails after each single call."""
    for calls in range(len(life.recorder.calls) + 1):
        target = root / f"cut{calls}"
        life.recorder.after_power_cut(calls, target, random.Random(calls), kept=kept)
        check(target, allowed_after(life, calls))


@pytest.mark.parametrize("kept", KEPT)
def test_whenever_the_power_fails_what_was_promised_is_there(tmp_path: pathlib.Path, kept: float) -> None:
    life = Life(tmp_path / "real", random.Random(1))
    life.run()
    kinds = {call.kind for call in life.recorder.calls}
    assert kinds == {"create", "write", "sync", "sync names", "rename", "remove"}
    check_all(life, tmp_path, kept=kept)


def test_the_power_fails_once_more_while_the_log_is_being_loaded(tmp_path: pathlib.Path) -> None:
    life = Life(tmp_path / "real", random.Random(2))
    life.run()
    second_cuts = 0
    for calls in range(len(life.recorder.calls) + 1):
        first = tmp_path / f"cut{calls}"
        life.recorder.after_power_cut(calls, first, random.Random(calls), kept=0.6)
        start = recorded_disk.Recorder(first)
        with start.recording():
            opened = log.DurableLog(disk.OsDisk(first))
            opened.load()
            opened.close()
        for more in range(1, len(start.calls) + 1):
            target = tmp_path / f"cut{calls}-{more}"
            start.after_power_cut(more, target, random.Random(more), kept=0.5)
            check(target, allowed_after(life, calls))
            second_cuts += 1
    assert second_cuts > 50


@pytest.mark.parametrize("forgotten", ["sync", "sync_names"])
def test_a_sync_that_is_forgotten_is_found(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    owner = disk.OsDisk if forgotten == "sync_names" else disk._OsFile
    monkeypatch.setattr(owner, forgotten, lambda _: None)
    life = Life(tmp_path / "real", random.Random(1))
    life.run()
    with pytest.raises((AssertionError, sealing.Damaged)):
        check_all(life, tmp_path, kept=0.0)
