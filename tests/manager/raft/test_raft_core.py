"""The core, message by message: whose answers and votes count, and which changes of the members are refused."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from manager.raft import commands, core, snapshot
from skep import errors
from tests.manager.raft import raft_core
from tests.simulation import mutants

OUTCOMES = list[core.Outcome]


def members_of(names: str) -> dict[str, str]:
    return {name: f"{name}:1" for name in names}


def candidate() -> raft_core.Lone:
    """One of five that stands for election."""
    lone = raft_core.Lone("bcde")
    lone.stand("b", "c")
    assert not lone.core.leading
    return lone


def old_votes(lone: raft_core.Lone) -> bool:
    """Two others voted for it in the term before, and these arrive now."""
    return any(lone.vote(peer, lone.core.term - 1) for peer in "bc")


def strangers_votes(lone: raft_core.Lone) -> bool:
    return any(lone.vote(peer) for peer in ("x", "y"))


def one_vote_twice(lone: raft_core.Lone) -> bool:
    return any(lone.vote("b") for _ in range(3))


ELECTED_BY: list[Callable[[raft_core.Lone], bool]] = [old_votes, strangers_votes, one_vote_twice]


@pytest.mark.parametrize("elected", ELECTED_BY, ids=lambda elected: elected.__name__)
def test_only_one_vote_of_each_member_in_this_term_counts(elected: Callable[[raft_core.Lone], bool]) -> None:
    lone = candidate()
    assert not elected(lone)
    lone.vote("d")
    lone.vote("e")
    assert lone.core.leading, "two that count, and its own, are three of five"


@pytest.mark.parametrize("elected", ELECTED_BY, ids=lambda elected: elected.__name__)
def test_if_votes_were_counted_it_would_lead(elected: Callable[[raft_core.Lone], bool]) -> None:
    with mutants.put_back(mutants.MUTANTS["votes are counted, whoever sends them"]):
        assert elected(candidate())


def test_a_vote_for_another_in_the_same_term_is_refused() -> None:
    lone = raft_core.Lone("bc")

    def ask(peer: str, term: int) -> bool:
        sent = lone.give(
            peer, type="request_vote", term=term, last_log_index=lone.journal.last_index,
            last_log_term=lone.journal.last_term, forced=False,
        )  # fmt: skip
        return (peer, {"type": "response_vote", "term": term}) in sent

    lone.turn(raft_core.TIMES.election_min_s)
    assert ask("b", 5)
    assert not ask("c", 5)
    assert not ask("c", 4)
    assert ask("c", 6)


def led_twice() -> tuple[raft_core.Lone, int]:
    """A leader, in a second term of its own, with an entry that nobody else has, and that entry's index."""
    lone = raft_core.Lone("bc")
    lone.lead("b")
    lone.turn(2 * raft_core.TIMES.election_max_s)  # nobody answers
    assert not lone.core.leading
    lone.lead("b")
    lone.acknowledge("b", lone.core.noop_index)
    assert lone.core.in_charge
    lone.core.propose(lone.now, b"x", lambda _outcome, _result: None)
    lone.turn()
    assert lone.core.commit_index == lone.journal.last_index - 1
    return lone, lone.journal.last_index


def test_an_answer_of_an_earlier_term_commits_nothing() -> None:
    lone, index = led_twice()
    lone.acknowledge("b", index, term=lone.core.term - 1)  # it had something there, of another leader
    assert lone.core.commit_index == index - 1
    assert lone.machine.applied == []
    lone.acknowledge("b", index)
    assert lone.core.commit_index == index
    assert lone.machine.applied == [index]


def test_if_it_counted_an_entry_that_one_disk_has_would_be_committed() -> None:
    with mutants.put_back(mutants.MUTANTS["answers of other terms count"]):
        lone, index = led_twice()
        lone.acknowledge("b", index, term=lone.core.term - 1)
        assert lone.core.commit_index == index


def test_an_answer_of_an_earlier_term_does_not_keep_a_leader_in_office() -> None:
    lone, index = led_twice()
    for _ in range(20):
        lone.turn(raft_core.TIMES.election_max_s / 10)
        lone.acknowledge("b", index - 1, term=lone.core.term - 1)
    assert not lone.core.leading


def test_an_answer_of_a_later_term_ends_leading() -> None:
    lone, index = led_twice()
    lone.acknowledge("b", index, term=lone.core.term + 1)
    assert not lone.core.leading
    assert lone.core.commit_index == index - 1


def with_a_tail() -> raft_core.Lone:
    """A follower with entry 3 of a leader that is gone, on no other disk; a new leader knows of another entry 3."""
    lone = raft_core.Lone("bc")
    lone.give(
        "b", type="append_entries", term=2, commit_index=2, round=0, entries=[(commands.regular(b"x"), 3, 2)],
        prevLogIdx=2, prevLogTerm=1,
    )  # fmt: skip
    assert (lone.journal.last_index, lone.core.commit_index) == (3, 2)
    return lone


HEADERS = {
    "an append that does not fit": {
        "type": "append_entries", "entries": [], "prevLogIdx": 9, "prevLogTerm": 3,
    },
    "an append that conflicts": {
        "type": "append_entries", "entries": [], "prevLogIdx": 3, "prevLogTerm": 3,
    },
    "a block of a snapshot": {
        "type": "install_snapshot", "number": 0, "data": b"",
        "snapshot": snapshot.Snapshot(index=9, term=3, members=members_of("abc"), members_index=2, blocks=2, digest=0),
    },
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_leaders_commit_index_covers_nothing_that_was_not_compared(header: dict[str, object]) -> None:
    lone = with_a_tail()
    lone.give("c", term=3, commit_index=3, round=0, **header)
    assert lone.core.leader_id == "c"
    assert lone.core.commit_index == 2
    assert lone.machine.applied == []


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_if_it_did_another_leaders_entry_would_be_applied(header: dict[str, object]) -> None:
    with mutants.put_back(mutants.MUTANTS["whatever a leader has committed is committed here"]):
        lone = with_a_tail()
        with contextlib.suppress(errors.Bug):  # if it notices, it is too late
            lone.give("c", term=3, commit_index=3, round=0, **header)
        assert lone.core.commit_index == 3


# ---------------------------------------------------------------- membership


def change(lone: raft_core.Lone, members: Mapping[str, str]) -> OUTCOMES:
    outcomes: OUTCOMES = []
    lone.core.change(lone.now, members, lambda outcome, _: outcomes.append(outcome))
    lone.turn()
    return outcomes


def leader() -> raft_core.Lone:
    """Of three, with its first entry committed."""
    lone = raft_core.Lone("bc")
    lone.lead("b")
    lone.acknowledge("b", lone.journal.last_index)
    assert lone.core.in_charge
    return lone


REFUSED = {
    "two come": "abcde",
    "two go": "a",
    "one comes and another goes": "abd",
    "nobody is left": "",
}


@pytest.mark.parametrize("names", REFUSED.values(), ids=REFUSED)
def test_members_come_and_go_one_at_a_time(names: str) -> None:
    lone = leader()
    assert change(lone, members_of(names)) == [core.Outcome.FAILED]
    assert lone.core.members == members_of("abc")
    assert change(lone, members_of("abcd")) == [], "under way"
    assert lone.core.members == members_of("abcd")


def test_a_change_waits_for_the_one_before() -> None:
    """Two in flight could end in two majorities that do not know of each other."""
    lone = leader()
    first = change(lone, members_of("abcd"))
    assert change(lone, members_of("abc")) == [core.Outcome.FAILED]
    assert change(lone, members_of("abcde")) == [core.Outcome.FAILED]
    for peer in "bc":  # three of four
        lone.acknowledge(peer, lone.journal.last_index)
    assert first == [core.Outcome.DONE]
    assert change(lone, members_of("abcde")) == []


def test_a_change_waits_for_the_first_commit_of_the_term() -> None:
    lone = raft_core.Lone("bc")
    lone.lead("b")
    assert not lone.core.in_charge
    assert change(lone, members_of("abcd")) == [core.Outcome.FAILED]
    lone.acknowledge("b", lone.journal.last_index)
    assert change(lone, members_of("abcd")) == []


def test_a_follower_changes_nothing() -> None:
    lone = raft_core.Lone("bc")
    assert change(lone, members_of("abcd")) == [core.Outcome.FAILED]
    assert not any(commands.is_membership(entry[0]) for entry in lone.journal.entries[2:])


def heartbeat_of(leader: str, lone: raft_core.Lone) -> dict[str, Any]:
    """The first one of term 2, which `lone` has had when this returns."""
    heartbeat = {
        "type": "append_entries", "term": 2, "commit_index": 1, "round": 0, "entries": [],
        "prevLogIdx": lone.journal.last_index, "prevLogTerm": lone.journal.last_term,
    }  # fmt: skip
    lone.give(leader, **heartbeat)
    return heartbeat


def test_a_request_to_take_over_survives_what_else_the_leader_says_in_its_term() -> None:
    lone = raft_core.Lone("bc")
    heartbeat = heartbeat_of("b", lone)
    for message in ({"type": "timeout_now", "term": 2}, heartbeat):  # in one round
        lone.core.receive(lone.now, "b", message)
    sent = lone.turn()
    assert [peer for peer, message in sent if message["type"] == "request_vote" and message["forced"]] == ["b", "c"]


def test_a_request_to_take_over_ends_with_its_term() -> None:
    lone = raft_core.Lone("bc")
    heartbeat = heartbeat_of("b", lone)
    for message in ({"type": "timeout_now", "term": 2}, {**heartbeat, "term": 3}):
        lone.core.receive(lone.now, "b", message)
    assert all(message["type"] != "request_vote" for _, message in lone.turn())
    assert lone.core.term == 3
