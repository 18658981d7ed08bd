"""How many agents register at once, and when the others are to come."""

import heapq

from manager.dispatcher import admission


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def let_in(nodes: int, *, arriving_over_s: float = 0.0) -> list[float]:
    """When each of so many nodes is let in: those that are told to come back do so on time."""
    line = admission.Admission(middle)
    coming = [(number * arriving_over_s / nodes, f"n{number}") for number in range(nodes)]
    heapq.heapify(coming)
    times: list[float] = []
    while coming:
        now, node_id = heapq.heappop(coming)
        wait_s = line.wait_s(node_id, now)
        if wait_s > admission.HOLD_S:
            heapq.heappush(coming, (now + wait_s, node_id))
        else:
            times.append(now + wait_s)
    return sorted(times)


def test_a_small_cluster_is_let_in_at_once() -> None:
    assert let_in(admission.BURST)[-1] < 1e-6


def test_a_storm_is_let_in_at_a_steady_rate_and_nobody_waits_twice() -> None:
    times = let_in(5000)
    assert times[-1] <= 5000 / admission.RATE_PER_S
    for second in range(int(times[-1]) + 1):
        begun = sum(second <= at < second + 1 for at in times)
        assert begun <= admission.RATE_PER_S + admission.BURST


def test_agents_that_spread_out_themselves_hardly_wait() -> None:
    spread_s = admission.spread_s(2000)
    times = let_in(2000, arriving_over_s=spread_s)
    assert times[-1] <= spread_s + 0.5


def test_who_comes_before_its_time_waits_for_it() -> None:
    line = admission.Admission(middle)
    waits = {f"n{number}": line.wait_s(f"n{number}", 0.0) for number in range(1000)}
    told = waits["n999"]
    assert told > admission.HOLD_S

    assert line.wait_s("n999", 0.1) == told - 0.1
    assert line.wait_s("n999", told - 1.0) == 1.0  # in line now
    assert line.wait_s("n998", waits["n998"] + 5.0) == 0.0  # late, and still welcome


def test_while_registrations_do_not_get_done_nobody_else_is_let_in() -> None:
    line = admission.Admission(middle)
    line.registering = admission.REGISTERING_MAX
    assert line.wait_s("n1", 0.0) > admission.HOLD_S
    line.registering -= 1
    assert line.wait_s("n1", 5.0) == 0.0


def test_who_does_not_come_back_is_forgotten() -> None:
    line = admission.Admission(middle)
    for number in range(2000):
        line.wait_s(f"n{number}", 0.0)
    assert line.told > 0
    line.wait_s("n1", 1000.0)
    line.wait_s("n1", 1000.0 + admission.PATIENCE_S)
    assert line.told == 0
