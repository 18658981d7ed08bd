"""The checker of histories: finds the order when there is one, and says so when there is none."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.cluster import linearizable

UNKNOWN = linearizable.UNKNOWN
Entry = tuple[float, float, linearizable.Event]


def event(kind: str, value: str = "", expected: str | None = None) -> linearizable.Event:
    return linearizable.Event(kind, value, expected)


def check(*entries: Entry) -> bool:
    history = [linearizable.Operation(*entry) for entry in entries]
    return linearizable.check(history, None, linearizable.register) is None


CREATED: Entry = (0, 1, event("create", "a"))


def test_one_after_the_other() -> None:
    assert check(CREATED, (2, 3, event("change", "b", "a")), (4, 5, event("read", "b")))


def test_a_stale_read_is_found() -> None:
    assert not check(CREATED, (2, 3, event("change", "b", "a")), (4, 5, event("read", "a")))


def test_a_lost_write_is_found() -> None:
    assert not check(CREATED, (2, 3, event("missing")))


def test_a_write_of_nobody_is_found() -> None:
    assert not check(CREATED, (2, 3, event("read", "b")))


def test_a_lost_update_is_found() -> None:
    """Both were based on the same value and both were granted."""
    assert not check(CREATED, (2, 5, event("change", "b", "a")), (3, 4, event("change", "c", "a")))


def test_values_that_go_back_and_forth_are_found() -> None:
    change = (2.0, 9.0, event("change", "b", "a"))
    assert check(CREATED, change, (3, 4, event("read", "a")), (5, 6, event("read", "b")))
    assert not check(CREATED, change, (3, 4, event("read", "b")), (5, 6, event("read", "a")))


def test_concurrent_operations_may_come_in_any_order() -> None:
    assert check((0, 9, event("create", "a")), (1, 8, event("exists")), (2, 3, event("missing")))
    assert not check((0, 1, event("create", "a")), (2, 3, event("missing")), (4, 5, event("exists")))


def test_an_unknown_operation_happened_late_or_never() -> None:
    lost = (2.0, UNKNOWN, event("change", "b", "a"))
    assert check(CREATED, lost, (5, 6, event("read", "a")))
    assert check(CREATED, lost, (5, 6, event("read", "a")), (7, 8, event("read", "b")))
    assert not check(CREATED, lost, (5, 6, event("read", "b")), (7, 8, event("read", "a")))
    assert not check((3, 4, event("read", "b")), (5, UNKNOWN, event("create", "b")))


def test_the_way_back() -> None:
    changed = (2.0, 3.0, event("change", "b", "a"))
    assert check(CREATED, changed, (4, 5, event("back", expected="b")), (6, 7, event("read", "a")))
    assert not check(CREATED, (4, 5, event("back", expected="a")))


def test_it_says_how_far_it_came() -> None:
    history = [linearizable.Operation(*CREATED), linearizable.Operation(2, 3, event("read", "b"))]
    assert linearizable.check(history, None, linearizable.register) == history[:1]


def test_it_gives_up_rather_than_to_run_for_ever() -> None:
    history = [linearizable.Operation(0, 9, event("read", "a")) for _ in range(9)]
    with pytest.raises(linearizable.TooHard):
        linearizable.check([linearizable.Operation(*CREATED), *history], None, linearizable.register, steps_max=3)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 6))
def test_it_agrees_with_trying_all_orders(seed: int, length: int) -> None:
    rng = random.Random(seed)
    history: list[linearizable.Operation[linearizable.Event]] = []
    for _ in range(length):
        called = rng.uniform(0, 10)
        answered = UNKNOWN if rng.random() < 0.2 else called + rng.uniform(0, 5)
        kind = rng.choice(("create", "read", "change", "remove", "missing"))
        made = event(kind, rng.choice("ab"), rng.choice("ab"))
        history.append(linearizable.Operation(called, answered, made))
    found = linearizable.check(history, None, linearizable.register) is None
    assert found == _by_all_orders(history)


def _by_all_orders(history: list[linearizable.Operation[linearizable.Event]]) -> bool:
    known = [each for each in history if each.answered_at != UNKNOWN]
    unknown = [each for each in history if each.answered_at == UNKNOWN]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            if any(_explains(order) for order in itertools.permutations([*known, *chosen])):
                return True
    return False


def _explains(order: tuple[linearizable.Operation[linearizable.Event], ...]) -> bool:
    state: linearizable.Register = None
    for number, each in enumerate(order):
        if any(later.answered_at < each.called_at for later in order[number + 1 :]):
            return False
        after = linearizable.register(state, each.event)
        if after is None:
            return False
        (state,) = after
    return True
