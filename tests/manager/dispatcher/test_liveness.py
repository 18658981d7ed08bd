"""Who is silent, and since when: sans-IO, against a plain model."""

from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher import liveness

Verdict = liveness.Verdict


def test_a_node_is_down_when_its_deadline_passes() -> None:
    watch = liveness.Liveness()
    watch.heard("n1", down_at=15.0)
    watch.heard("n1", down_at=20.0)
    assert watch.alive("n1")
    assert watch.due(19.9) == []
    assert watch.next_at() == 20.0
    assert watch.due(20.0) == [("n1", Verdict.DOWN)]
    assert watch.due(1000.0) == []
    assert not watch.alive("n1")
    assert watch.next_at() is None


def test_an_expected_node_is_unknown_first() -> None:
    watch = liveness.Liveness()
    watch.expect("n1", unknown_at=5.0, down_at=30.0)
    watch.expect("n2", unknown_at=5.0, down_at=30.0)
    assert not watch.alive("n1")
    watch.heard("n2", down_at=17.0)
    assert watch.due(10.0) == [("n1", Verdict.UNKNOWN)]
    assert watch.due(30.0) == [("n2", Verdict.DOWN), ("n1", Verdict.NEVER_CAME)]


def test_a_shorter_period_counts_at_once() -> None:
    watch = liveness.Liveness()
    watch.heard("n1", down_at=300.0)
    watch.heard("n1", down_at=3.0)
    assert watch.due(3.0) == [("n1", Verdict.DOWN)]


def test_a_dropped_node_is_forgotten() -> None:
    watch = liveness.Liveness()
    watch.heard("n1", down_at=3.0)
    watch.drop("n1")
    assert watch.due(10.0) == []
    watch.heard("n1", down_at=30.0)
    assert watch.due(29.0) == []
    assert watch.due(30.0) == [("n1", Verdict.DOWN)]


EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 5.0), st.floats(0.0, 3.0)), max_size=40)


@given(EVENTS)
def test_like_a_table_of_deadlines(events: list[tuple[str, float, float]]) -> None:
    watch = liveness.Liveness()
    model: dict[str, float] = {}
    now = 0.0
    for name, grace_s, passes_s in events:
        watch.heard(name, down_at=now + grace_s)
        model[name] = now + grace_s
        now += passes_s
        expected = sorted(each for each, at in model.items() if at <= now)
        assert sorted(node for node, _ in watch.due(now)) == expected
        for each in expected:
            del model[each]
        at = watch.next_at()
        if model:  # it may say too early, never too late
            assert at is not None
            assert at <= min(model.values())
