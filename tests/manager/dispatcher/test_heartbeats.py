"""How often agents speak, and how long their silence is borne."""

from manager.dispatcher import heartbeats, metrics, nodes
from manager.store import commit, store
from skep import ids
from tests import virtual_time


def make(count: int) -> heartbeats.Heartbeats:
    """For a cluster of so many nodes, all heard of."""
    clock = virtual_time.LoopClock()
    target = store.Store()
    writer = nodes.NodeWriter(target=target, committer=commit.LocalCommitter(target, clock), clock=clock)
    made = heartbeats.Heartbeats(
        target=target, rng=ids.seeded_rng(1), writer=writer, counters=metrics.Metrics(), silenced=lambda _: None
    )
    for number in range(count):
        made.heard(f"n{number}")
    return made


def test_in_a_very_large_cluster_each_agent_speaks_less_often() -> None:
    async def main() -> None:
        assert make(2000).period_s() == heartbeats.PERIOD_DEFAULT_S
        assert make(4000).period_s() == 4000 / heartbeats.RATE_PER_S
        assert make(50_000).period_s() == heartbeats.PERIOD_DEFAULT_S * heartbeats.STRETCH_MAX

    virtual_time.run(main)


def test_a_node_that_was_told_to_speak_seldom_is_not_given_up_when_the_others_leave() -> None:
    async def main() -> None:
        large = make(50_000)
        longest_s = max(large.next_s() for _ in range(1000))
        for number in range(1, 50_000):
            large.drop(f"n{number}")
        assert longest_s < heartbeats.SILENT_PERIODS * large.period_s()

    virtual_time.run(main)
