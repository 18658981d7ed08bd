"""The log on disk: what survives, what is cut, what is refused."""

import contextlib
import os
import pathlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.raft import commands, disk, log, ops, sealing, snapshot
from tests.simulation import memory_disk

MEMBERS = {"a": "h:1"}
FIRST = snapshot.Snapshot(index=1, term=0, members=MEMBERS, members_index=1)


BEGINNING: tuple[ops.Op, ...] = (ops.Taken(FIRST), ops.Head(1, 0), ops.Hard(1, "a", 1))


def put(index: int, term: int = 1, command: bytes = b"\x00x") -> ops.Put:
    return ops.Put((command, index, term))


def begin(target: disk.Disk) -> log.DurableLog:
    """A log with entries 2, 3 and 4."""
    fresh = log.DurableLog(target)
    assert fresh.load() is None
    fresh.write(BEGINNING)
    for index in (2, 3, 4):
        fresh.write([put(index), ops.Hard(1, "a", index)])
    return fresh


def only_log(root: pathlib.Path) -> pathlib.Path:
    (path,) = root.glob("log-*")
    return path


def test_what_was_written_is_loaded(tmp_path: pathlib.Path) -> None:
    first = begin(disk.OsDisk(tmp_path / "raft"))
    first.write([ops.Cut(4), put(4, 2), ops.Hard(2, "", 3, member=True)])
    first.close()
    state = log.DurableLog(disk.OsDisk(tmp_path / "raft")).load()
    assert state is not None
    assert state.entries == [(b"\x00x", 2, 1), (b"\x00x", 3, 1), (b"\x00x", 4, 2)]
    assert state.hard == ops.Hard(2, "", 3, member=True)
    assert state.snapshot.members == MEMBERS
    assert (tmp_path / "raft").stat().st_mode & 0o777 == 0o700
    assert only_log(tmp_path / "raft").stat().st_mode & 0o777 == 0o600


def test_a_torn_tail_is_cut_wherever_it_tears(tmp_path: pathlib.Path) -> None:
    begin(disk.OsDisk(tmp_path)).close()
    whole = only_log(tmp_path).read_bytes()
    last = whole.rindex(b"\xabREC")
    for end in range(last + 1, len(whole)):
        only_log(tmp_path).write_bytes(whole[:end])
        torn = log.DurableLog(disk.OsDisk(tmp_path))
        state = torn.load()
        assert state is not None
        assert state.last_index == 3
        assert torn.torn_bytes == end - last
        torn.write([put(4, 7), ops.Hard(7, "", 3)])  # and it goes on from there
        torn.close()
        again = log.DurableLog(disk.OsDisk(tmp_path)).load()
        assert again is not None
        assert again.entries[-1] == (b"\x00x", 4, 7)


@pytest.mark.parametrize("seed", range(20))
def test_what_a_killed_process_had_not_synced_is_durable_once_it_is_loaded(seed: int) -> None:
    """The process is killed between the write and the sync, goes on, and then the power fails."""
    platter = memory_disk.MemoryDisk(random.Random(seed))
    killed = platter.handle()
    first = begin(killed)
    killed.crash_in = 1
    with pytest.raises(memory_disk.Crashed):
        first.write([put(5, command=b"\x00" + bytes([7]) * 3000)])
    loaded = log.DurableLog(platter.handle()).load()
    assert loaded is not None
    assert loaded.last_index == 5
    platter.lose_power()
    again = log.DurableLog(platter.handle()).load()
    assert again is not None
    assert again.entries == loaded.entries


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="asks Linux what it has in memory")
def test_what_is_loaded_comes_from_the_disk_and_not_from_memory(tmp_path: pathlib.Path) -> None:
    """After a failed sync Linux keeps what it could not write, as if it had: that is not to be believed."""
    target = disk.OsDisk(tmp_path / "raft")
    begin(target).close()

    def in_memory(descriptor: int) -> bool:
        try:
            return os.preadv(descriptor, [bytearray(16)], 0, os.RWF_NOWAIT) == 16
        except BlockingIOError:
            return False
        except OSError as error:
            pytest.skip(f"this file system does not say: {error}")

    descriptor = os.open(only_log(tmp_path / "raft"), os.O_RDONLY)
    try:
        assert in_memory(descriptor)
        reader = target.open(only_log(tmp_path / "raft").name)
        if in_memory(descriptor) and not _can_forget(tmp_path / "other"):
            pytest.skip("this file system lives in memory")
        assert not in_memory(descriptor)
        assert len(reader.read_at(0, 16)) == 16
        reader.close()
    finally:
        os.close(descriptor)


def _can_forget(path: pathlib.Path) -> bool:
    """Whether this file system gives memory back at all; tmpfs does not."""
    path.write_bytes(bytes(5000))
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(descriptor, [bytearray(16)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_sectors_that_were_never_written_count_as_torn(tmp_path: pathlib.Path) -> None:
    first = begin(disk.OsDisk(tmp_path))
    first.write([put(5, command=b"\x00" + bytes([7]) * 3000)])
    first.close()
    whole = bytearray(only_log(tmp_path).read_bytes())
    sector = (len(whole) // 512 - 2) * 512
    whole[sector : sector + 512] = bytes(512)
    only_log(tmp_path).write_bytes(whole)
    state = log.DurableLog(disk.OsDisk(tmp_path)).load()
    assert state is not None
    assert state.last_index == 4


def test_a_flipped_bit_is_refused_with_file_position_and_remedy(tmp_path: pathlib.Path) -> None:
    begin(disk.OsDisk(tmp_path)).close()
    whole = only_log(tmp_path).read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        only_log(tmp_path).write_bytes(damaged)
        with pytest.raises(sealing.Damaged) as refusal:
            log.DurableLog(disk.OsDisk(tmp_path)).load()
        assert str(only_log(tmp_path)) in refusal.value.message
        assert "at byte" in refusal.value.message
        assert "join again" in refusal.value.message
        assert only_log(tmp_path).read_bytes() == bytes(damaged)  # nothing was touched


def test_a_hole_in_the_middle_is_not_a_torn_tail(tmp_path: pathlib.Path) -> None:
    first = begin(disk.OsDisk(tmp_path))
    first.write([put(5, command=b"\x00" + bytes([7]) * 3000)])
    first.write([put(6)])
    first.close()
    whole = bytearray(only_log(tmp_path).read_bytes())
    whole[1024:1536] = bytes(512)
    only_log(tmp_path).write_bytes(whole)
    with pytest.raises(sealing.Damaged):
        log.DurableLog(disk.OsDisk(tmp_path)).load()


def test_foreign_files_and_missing_logs_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "log-0000000000000001").write_bytes(b"something else entirely")
    with pytest.raises(sealing.Damaged, match="not a log"):
        log.DurableLog(disk.OsDisk(tmp_path)).load()
    (tmp_path / "log-0000000000000001").rename(tmp_path / "snapshot-1-1")
    with pytest.raises(sealing.Damaged, match="missing"):
        log.DurableLog(disk.OsDisk(tmp_path)).load()


def test_a_log_that_is_gone_is_not_a_new_one(tmp_path: pathlib.Path) -> None:
    """Emptied, or the log removed before there was any snapshot: what it had acknowledged is not forgotten."""
    mark = disk.OsMark(tmp_path / "mark")
    target = disk.OsDisk(tmp_path / "raft")
    first = log.DurableLog(target, mark=mark)
    assert first.load() is None
    assert not mark.is_set()
    first.write(BEGINNING)
    assert mark.is_set()
    first.close()
    only_log(tmp_path / "raft").unlink()
    with pytest.raises(sealing.Damaged) as refusal:
        log.DurableLog(target, mark=mark).load()
    for words in (str(tmp_path / "raft"), str(tmp_path / "mark"), "the log is missing", "join again"):
        assert words in refusal.value.message
    mark.clear()  # it has left the cluster
    assert log.DurableLog(target, mark=mark).load() is None


@pytest.mark.parametrize("crash_in", range(14))
def test_one_that_was_stopped_while_it_began_may_begin_again(crash_in: int) -> None:
    platter = memory_disk.MemoryDisk(random.Random(1))
    handle = platter.handle()
    handle.crash_in = crash_in
    begun = log.DurableLog(handle, mark=handle.mark())
    with contextlib.suppress(memory_disk.Crashed):
        assert begun.load() is None
        begun.write(BEGINNING)
    platter.settle()
    again = platter.handle()
    resumed = log.DurableLog(again, mark=again.mark())
    state = resumed.load()
    resumed.write(BEGINNING if state is None else [put(2)])
    assert platter.marked


def test_a_log_from_before_there_were_marks_gets_one(tmp_path: pathlib.Path) -> None:
    begin(disk.OsDisk(tmp_path / "raft")).close()
    mark = disk.OsMark(tmp_path / "mark")
    assert log.DurableLog(disk.OsDisk(tmp_path / "raft"), mark=mark).load() is not None
    assert mark.is_set()


class Xor:
    """A seal that depends on the context, for tests."""

    overhead_bytes = 4

    def __init__(self, key: int) -> None:
        self._key = key

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        mark = (sum(context) + self._key).to_bytes(4, "big")
        return mark + bytes(byte ^ self._key for byte in data)

    def open(self, data: bytes, *, context: bytes) -> bytes:
        if data[:4] != (sum(context) + self._key).to_bytes(4, "big"):
            raise ValueError("sealed otherwise")
        return bytes(byte ^ self._key for byte in data[4:])


def test_sealed_logs_and_snapshots_open_with_the_same_key_only(tmp_path: pathlib.Path) -> None:
    target = disk.OsDisk(tmp_path)
    first = log.DurableLog(target, Xor(5))
    first.load()
    blocks = [b"secret word" * 30_000, b"tail"]
    wanted = snapshot.Snapshot(index=9, term=2, members=MEMBERS, members_index=4)
    taken = first.save_snapshot(wanted, snapshot.reblock(blocks))
    first.write([ops.Taken(taken), ops.Head(9, 2), ops.Hard(2, "", 9), put(10, command=b"\x00secret word")])
    first.close()
    assert all(b"secret word" not in path.read_bytes() for path in tmp_path.iterdir())
    second = log.DurableLog(target, Xor(5))
    state = second.load()
    assert state is not None
    assert state.entries == [(b"\x00secret word", 10, 2 - 1)]
    reader = second.open_snapshot(state.snapshot)
    assert b"".join(reader.blocks()) == b"".join(blocks)
    assert reader.block(1)[-4:] == b"tail"
    reader.close()
    with pytest.raises(sealing.Damaged, match="another key"):
        log.DurableLog(target, Xor(6)).load()


def test_a_damaged_snapshot_is_refused(tmp_path: pathlib.Path) -> None:
    target = disk.OsDisk(tmp_path)
    kept = begin(target)
    wanted = snapshot.Snapshot(index=4, term=1, members=MEMBERS, members_index=1)
    taken = kept.save_snapshot(wanted, [b"a" * 1000])
    path = tmp_path / taken.name
    path.write_bytes(path.read_bytes().replace(b"aa", b"ab", 1))
    with pytest.raises(sealing.Damaged, match="damaged block"):
        list(kept.open_snapshot(taken).blocks())
    path.unlink()
    with pytest.raises(sealing.Damaged, match="missing"):
        kept.open_snapshot(taken)


def test_compaction_leaves_one_log_and_one_snapshot(tmp_path: pathlib.Path) -> None:
    kept = begin(disk.OsDisk(tmp_path))
    for index in (3, 4):
        wanted = snapshot.Snapshot(index=index, term=1, members=MEMBERS, members_index=1)
        taken = kept.save_snapshot(wanted, [b"state %d" % index])
        reader = kept.open_snapshot(taken)
        kept.write([ops.Taken(taken), ops.Head(index, 1)])
        assert reader.block(0) == b"state %d" % index
    assert sorted(path.name[:4] for path in tmp_path.iterdir()) == ["log-", "snap"]
    kept.close()
    state = log.DurableLog(disk.OsDisk(tmp_path)).load()
    assert state is not None
    assert (state.head, state.entries, state.snapshot.index) == (ops.Head(4, 1), [], 4)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), crash_in=st.integers(0, 60), power=st.booleans())
def test_after_a_crash_at_any_operation_the_log_holds_all_that_was_durable(
    seed: int, crash_in: int, power: bool
) -> None:
    """Every state between the last batch that was durable and the one that was being written is fine; no other is."""
    rng = random.Random(seed)
    platter = memory_disk.MemoryDisk(rng)
    expected = ops.State()
    under_way = ops.State()
    handle = platter.handle()
    handle.crash_in = crash_in
    kept = log.DurableLog(handle, mark=handle.mark())
    started = False
    try:
        kept.load()
        while True:
            batch = _some_batch(rng, expected, kept) if started else list(BEGINNING)
            under_way = _after(expected, batch)
            kept.write(batch)
            expected = under_way
            started = True
    except memory_disk.Crashed:
        pass
    if power:
        platter.lose_power()
    else:
        platter.settle()
    assert platter.marked or not started
    again = platter.handle()
    second = log.DurableLog(again, mark=again.mark())
    state = second.load()
    if state is None:
        assert not started
        return
    assert platter.marked
    assert state.operations() in (expected.operations(), under_way.operations())
    if state.snapshot.blocks:
        assert list(second.open_snapshot(state.snapshot).blocks()) == [b"s" * state.snapshot.index]


def _after(state: ops.State, batch: list[ops.Op]) -> ops.State:
    result = ops.State()
    for op in (*state.operations(), *batch):
        result.apply(op)
    return result


def _some_batch(rng: random.Random, state: ops.State, kept: log.DurableLog) -> list[ops.Op]:
    choice = rng.random()
    batch: list[ops.Op] = []
    last = state.last_index
    if choice < 0.2 and last > state.snapshot.index:
        index = rng.randint(state.snapshot.index + 1, last)
        wanted = snapshot.Snapshot(index=index, term=1, members=MEMBERS, members_index=1)
        batch.append(ops.Taken(kept.save_snapshot(wanted, [b"s" * index])))
        if rng.random() < 0.8:
            batch.append(ops.Head(index, 1))
    elif choice < 0.3:
        index = last + rng.randint(1, 9)
        wanted = snapshot.Snapshot(index=index, term=1, members=MEMBERS, members_index=1)
        taken = snapshot.write(kept._disk, sealing.Plain(), wanted, [b"s" * index])
        batch += [ops.Cut(0), ops.Taken(taken), ops.Head(index, 1)]
    else:
        if last > state.snapshot.index and rng.random() < 0.3:
            last = rng.randint(state.snapshot.index, last - 1)
            batch.append(ops.Cut(last + 1))
        batch += [put(last + i, command=commands.regular(rng.randbytes(rng.randint(0, 900)))) for i in range(1, 4)]
    batch.append(ops.Hard(rng.randint(1, 9), "", last))
    return batch
