"""The order of lines of several tasks, and how long one may hold up another."""

import random

import pytest

from manager.dispatcher import merging
from skep import pb, stamps

HOLD_S = 1.0
WALL = 1_000_000.0  # at now = 0


def chunk(*at: float, end: bool = False) -> pb.LogChunk:
    return pb.LogChunk(entries=[pb.LogEntry(timestamp=stamps.stamp(each), data=b"x") for each in at], end=end)


def taken(merge: merging.Merge, *, now: float) -> list[tuple[str, float]]:
    """What is due now: (task, time stamp), -1 for a chunk."""
    found: list[tuple[str, float]] = []
    while (due := merge.next(now=now, wall=WALL + now)) is not None:
        task_id, what = due
        found.append((task_id, stamps.seconds(what.timestamp) if isinstance(what, pb.LogEntry) else -1))
    return found


def lines(merge: merging.Merge, *, now: float) -> list[tuple[str, float]]:
    return [each for each in taken(merge, now=now) if each[1] >= 0]


def opened(*task_ids: str) -> merging.Merge:
    merge = merging.Merge(hold_s=HOLD_S)
    for task_id in task_ids:
        merge.open(task_id, now=0)
    return merge


def test_one_task_alone_never_waits() -> None:
    merge = opened("a")
    merge.put("a", chunk(WALL, WALL - 5, WALL + 5), now=0)
    assert taken(merge, now=0) == [("a", WALL), ("a", WALL - 5), ("a", WALL + 5), ("a", -1)]
    assert merge.wait_s(now=0, wall=WALL) is None


def test_lines_wait_for_a_task_of_which_nothing_is_here() -> None:
    merge = opened("a", "b")
    merge.put("a", chunk(10, 30), now=0)
    assert lines(merge, now=0.5) == []
    assert merge.wait_s(now=0.5, wall=WALL + 0.5) == pytest.approx(0.5)
    merge.put("b", chunk(20, end=True), now=0.6)
    assert taken(merge, now=0.6) == [("a", 10), ("b", 20), ("b", -1), ("a", 30), ("a", -1)]


def test_old_lines_flow_past_a_silent_task_and_young_ones_wait_a_little() -> None:
    merge = opened("a", "silent")
    for _ in range(3):
        merge.put("a", chunk(10, 20), now=2)
        assert len(lines(merge, now=2)) == 2, "it has been silent for long: it has no older line"
    merge.put("a", chunk(WALL + 2), now=2)
    assert lines(merge, now=2) == []
    assert merge.wait_s(now=2, wall=WALL + 2) == pytest.approx(HOLD_S)
    merge.put("silent", chunk(WALL + 1.5), now=2.5)
    assert lines(merge, now=2.5) == [("silent", WALL + 1.5)]
    assert lines(merge, now=3.1) == [("a", WALL + 2)]


def test_a_clock_that_is_ahead_holds_up_its_own_lines_only_for_the_hold() -> None:
    merge = opened("a", "b")
    merge.put("a", chunk(WALL + 3600), now=0)
    merge.put("b", chunk(WALL), now=0)
    assert lines(merge, now=0) == [("b", WALL)]
    assert lines(merge, now=1.1) == [("a", WALL + 3600)]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_and_everything_is_in_order_when_all_comes_in_time(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"t{number}" for number in range(rng.randint(1, 6))]
    output = {name: sorted(rng.uniform(0, 1000) for _ in range(rng.randint(0, 50))) for name in names}
    merge = opened(*names)
    waiting = {name: list(at) for name, at in output.items()}
    now, found = 0.0, []
    while waiting:
        name = rng.choice(sorted(waiting))
        size = rng.randint(1, 10)
        part, waiting[name] = waiting[name][:size], waiting[name][size:]
        merge.put(name, chunk(*part, end=not waiting[name]), now=now)
        if not waiting[name]:
            del waiting[name]
        now += 0.0005
        found += lines(merge, now=now)
    found += lines(merge, now=now + 2 * HOLD_S)
    stamped = [at for _, at in found]
    assert len(stamped) == sum(len(at) for at in output.values())
    assert stamped == sorted(stamped)
