"""The log in memory: what is queued for the disk, what counts as durable, which configuration is in force."""

import pytest

from manager.raft import commands, config, journal, ops, snapshot
from skep import errors

MEMBERS = {"a": "h:1", "b": "h:2"}


def written(entries: journal.Journal, state: ops.State) -> None:
    """Writes everything that is queued."""
    batch = entries.take()
    for op in batch.operations:
        state.apply(op)
    entries.written(batch)


def fresh() -> tuple[journal.Journal, ops.State]:
    """A new cluster's journal with entries up to 5, all durable."""
    entries = journal.Journal(None, bootstrap=MEMBERS)
    state = ops.State()
    for index in (3, 4, 5):
        entries.add(b"\x00x", index, 1)
    written(entries, state)
    return entries, state


def test_a_new_cluster_begins_with_its_configuration() -> None:
    entries, state = fresh()
    assert entries.configuration == (2, MEMBERS)
    assert entries.configuration_at(1) == (1, {})
    again = journal.Journal(state)
    assert again.entries == entries.entries
    assert again.configuration == (2, MEMBERS)
    assert (again.term, again.durable_index) == (1, 5)
    assert journal.Journal(None).configuration == (1, {})


def test_cutting_takes_the_configuration_back() -> None:
    entries, state = fresh()
    version = entries.configuration_version
    entries.add(commands.membership({"a": "h:1"}), 6, 2)
    assert entries.configuration == (6, {"a": "h:1"})
    entries.deleteEntriesFrom(6 - entries.first_index)
    assert entries.configuration == (2, MEMBERS)
    assert entries.configuration_version == version + 2
    written(entries, state)
    assert journal.Journal(state).entries == entries.entries


def test_committed_entries_are_never_cut() -> None:
    entries, _ = fresh()
    entries.setRaftCommitIndex(4)
    with pytest.raises(errors.Bug):
        entries.deleteEntriesFrom(4 - entries.first_index)
    entries.deleteEntriesFrom(5 - entries.first_index)
    with pytest.raises(errors.Bug):
        entries.setRaftCommitIndex(3)
    with pytest.raises(errors.Bug):
        entries.add(b"\x00x", 7, 1)


def test_an_entry_replaced_while_it_was_being_written_is_not_durable() -> None:
    entries, _ = fresh()
    entries.add(b"\x00old", 6, 1)
    batch = entries.take()
    entries.deleteEntriesFrom(5 - entries.first_index)
    entries.add(b"\x00new", 5, 2)
    entries.add(b"\x00new", 6, 2)
    entries.written(batch)
    assert entries.durable_index == 4
    entries.written(entries.take())
    assert entries.durable_index == 6


def test_what_is_said_waits_for_what_is_queued() -> None:
    entries, _ = fresh()
    assert entries.needed_batch == entries.written_number
    entries.setCurrentTerm(2, "b")
    assert entries.dirty
    first = entries.needed_batch
    assert first > entries.written_number
    batch = entries.take()
    assert entries.needed_batch == first  # under way, and not yet done
    entries.written(batch)
    assert entries.written_number == first
    assert entries.durable_term == 2


def test_a_snapshot_and_the_new_head_are_one_batch() -> None:
    entries, state = fresh()
    entries.setRaftCommitIndex(5)
    taken = snapshot.Snapshot(index=4, term=1, members=MEMBERS, members_index=2, blocks=1)
    entries.compact(taken, keep_from=4)
    assert (entries.first_index, entries.last_index) == (3, 5)
    batch = entries.take()
    assert [type(op) for op in batch.operations] == [ops.Taken, ops.Head, ops.Hard]
    for op in batch.operations:
        state.apply(op)
    again = journal.Journal(state)
    assert again.entries == entries.entries
    assert again.configuration == (2, MEMBERS)


@pytest.mark.parametrize(("term", "last"), [(1, 5), (2, 4)])
def test_a_received_snapshot_keeps_a_tail_that_continues_it(term: int, last: int) -> None:
    entries, state = fresh()
    taken = snapshot.Snapshot(index=4, term=term, members={"c": "h:3"}, members_index=3, blocks=1)
    entries.install(taken)
    assert (entries.first_index, entries.last_index) == (4, last)
    assert entries.configuration == (3, {"c": "h:3"})
    written(entries, state)
    assert journal.Journal(state).entries == entries.entries
    assert entries.durable_index == last


def test_behind_a_snapshot_only_so_many_bytes_are_kept() -> None:
    def full() -> journal.Journal:
        kept = journal.Journal(None, bootstrap={"a": "h:1"})
        for index in range(3, 41):
            kept.add(b"\x00" + bytes(config.MIB), index, 1)
        kept.take()
        return kept

    taken = snapshot.Snapshot(index=30, term=1, members={"a": "h:1"}, members_index=2, blocks=1)
    kept = full()
    kept.compact(taken, keep_from=5)
    assert kept.first_index == 23, "seven of the entries that the snapshot covers, and all later ones"
    assert kept.last_index == 40
    assert kept.size_bytes == sum(len(entry[0]) for entry in kept.entries[1:])
    kept = full()
    kept.compact(taken, keep_from=20, needed_from=10)
    assert kept.first_index == 9, "a follower is getting an older snapshot and needs what comes after it"
