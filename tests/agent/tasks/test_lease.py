"""The lease of tasks that must never run twice: what renews it, what does not, and what is left of it after a crash."""

import math
import pathlib

import pytest

from agent.tasks import lease, record


class Uptime:
    """A machine's uptime that tests move."""

    def __init__(self) -> None:
        self.boot = "first"
        self.time = 100.0

    def now(self) -> float:
        return self.time


def left(held: lease.Lease, uptime: Uptime, lease_s: float = 10.0) -> float:
    """How long a lease has to run; 0.0 once it is over."""
    return 0.0 if held.over(lease_s) else held._proven_at + lease_s - uptime.time


@pytest.fixture
def uptime() -> Uptime:
    return Uptime()


@pytest.fixture
def held(uptime: Uptime) -> lease.Lease:
    made = lease.Lease(uptime=uptime, record=record.Record(record.IN_MEMORY))
    made.hold(10.0)
    return made


def test_there_is_none_before_the_first_answer(held: lease.Lease, uptime: Uptime) -> None:
    held.sent()
    assert held.over(10.0)
    assert left(held, uptime) == 0.0


def test_it_counts_from_when_the_answered_heartbeat_was_sent(held: lease.Lease, uptime: Uptime) -> None:
    number = held.sent()
    uptime.time += 8.0  # the answer takes its time
    held.answered(number)
    assert left(held, uptime) == pytest.approx(2.0)
    uptime.time += 2.5
    assert held.over(10.0)
    assert not held.over(20.0)


@pytest.mark.parametrize("number", [0, 7])
def test_an_answer_to_nothing_renews_nothing(held: lease.Lease, number: int) -> None:
    held.sent()
    held.answered(number)
    assert held.over(10.0)


def test_an_answer_that_was_overtaken_does_not_shorten_it(held: lease.Lease, uptime: Uptime) -> None:
    first = held.sent()
    uptime.time += 5.0
    second = held.sent()
    held.answered(second)
    held.answered(first)
    assert left(held, uptime) == pytest.approx(10.0)


def test_whoever_has_to_end_is_told_before_a_renewal_takes_effect(held: lease.Lease, uptime: Uptime) -> None:
    held.answered(held.sent())
    uptime.time += 11.0
    seen: list[bool] = []
    held.renewing = held.renewed = lambda: seen.append(held.over(10.0))
    held.answered(held.sent())
    assert seen == [True, False]


@pytest.mark.parametrize(("boot", "left_s"), [("first", 7.0), ("second", 0.0)])
def test_an_agent_that_starts_again_goes_on_with_it_until_the_next_boot(
    tmp_path: pathlib.Path, uptime: Uptime, boot: str, left_s: float
) -> None:
    kept = record.Record(tmp_path / "tasks.db")
    before = lease.Lease(uptime=uptime, record=kept)
    before.hold(10.0)
    before.answered(before.sent())
    kept.close()
    uptime.time += 3.0
    uptime.boot = boot
    after = lease.Lease(uptime=uptime, record=record.Record(tmp_path / "tasks.db"))
    assert left(after, uptime) == pytest.approx(left_s)


def test_nothing_is_recorded_while_no_task_needs_it(uptime: Uptime) -> None:
    kept = record.Record(record.IN_MEMORY)
    free = lease.Lease(uptime=uptime, record=kept)
    free.answered(free.sent())
    assert kept.proven_at("first") == -math.inf
    free.hold(5.0)  # a task has come: what was proven before counts
    assert kept.proven_at("first") == uptime.time
