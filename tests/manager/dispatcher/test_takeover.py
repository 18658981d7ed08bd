"""The dispatcher's own writes under trouble: races, refused commits, a stalled process, a watcher that lagged."""

import asyncio

import pytest

from manager.dispatcher import nodes
from manager.store import ops
from skep import errors, pb
from tests import virtual_time
from tests.agent import joined

until = virtual_time.until


def test_a_registration_that_races_is_decided_again() -> None:
    async def main() -> None:
        cluster = joined.Cluster(joined.Network())
        await cluster.create(joined.node("n1"))
        drained = pb.Node()
        drained.CopyFrom(cluster.node("n1"))
        drained.spec.availability = pb.NODE_AVAILABILITY_DRAIN
        cluster.committer.before = [ops.update(drained)]
        writer = nodes.NodeWriter(target=cluster.store, committer=cluster.committer, clock=cluster.clock)
        registered = await writer.register("n1", pb.NodeDescription(hostname="h"), "10.0.0.7")
        assert registered.spec.availability == pb.NODE_AVAILABILITY_DRAIN
        assert registered.status.state == pb.NODE_STATE_READY
        assert registered.status.addr == "10.0.0.7"

    virtual_time.run(main)


def test_a_node_that_is_given_up_while_it_registers_is_ready_all_the_same() -> None:
    async def main() -> None:
        cluster = joined.Cluster(joined.Network())
        await cluster.create(joined.node("n1"))
        writer = nodes.NodeWriter(target=cluster.store, committer=cluster.committer, clock=cluster.clock)
        description = pb.NodeDescription(hostname="h")
        registered = await writer.register("n1", description, "10.0.0.7")
        given_up = pb.Node()
        given_up.CopyFrom(registered)
        given_up.status.state = pb.NODE_STATE_UNKNOWN
        cluster.committer.before_barrier = [ops.update(given_up)]
        assert (await writer.register("n1", description, "10.0.0.7")).status.state == pb.NODE_STATE_READY

    virtual_time.run(main)


def test_a_node_that_registers_while_it_is_given_up_registers_again() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await cluster.dispatcher.stop()
            await agent.stop()
            await cluster.dispatcher.start()
            cluster.committer.takes_s = 1.0
            await until(lambda: cluster.committer.waiting > 0)  # on the way: that nothing is known of the node
            await agent.start()
            await until(lambda: cluster.node("n1").status.state == pb.NODE_STATE_UNKNOWN)
            await until(lambda: cluster.node("n1").status.state == pb.NODE_STATE_READY)

    virtual_time.run(main)


def test_a_manager_that_cannot_prove_its_lead_serves_nobody() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            cluster.committer.refusals = [errors.Unavailable("not the leader any more") for _ in range(3)]
            await network.open["n1"].close()
            await until(lambda: "not the leader any more" in agent.session.error)
            await until(lambda: bool(agent.session.manager))

    virtual_time.run(main)


def test_a_verdict_that_cannot_be_written_is_written_later() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await agent.stop()
            cluster.committer.refusals = [errors.Unavailable("no quorum") for _ in range(10)]
            await until(lambda: cluster.node("n1").status.state == pb.NODE_STATE_DOWN)
            assert cluster.committer.refusals == []

    virtual_time.run(main)


@pytest.mark.parametrize("tenths", range(130, 170))
def test_a_node_that_comes_back_while_it_is_pronounced_down_is_ready(tenths: int) -> None:
    """The verdict and the registration are both on their way to the log: whichever comes first, the node is READY."""

    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await agent.stop()
            started = asyncio.get_running_loop().time()
            cluster.committer.takes_s = 0.7
            await asyncio.sleep(tenths / 10)
            back = joined.Agent(network, "n1")
            await back.start()
            await until(lambda: bool(back.session.manager))
            await asyncio.sleep(started + 20 - asyncio.get_running_loop().time())
            await virtual_time.holds(lambda: cluster.node("n1").status.state == pb.NODE_STATE_READY, for_s=10)
            await back.stop()

    virtual_time.run(main)


def test_the_heartbeat_period_of_the_cluster_counts() -> None:
    async def main() -> None:
        async with joined.joined() as (network, cluster, _agents):
            settings = pb.Cluster(id="c")
            settings.spec.dispatcher.heartbeat_period = 1_000_000_000
            await cluster.create(settings, joined.node("n1"))
            agent = joined.Agent(network, "n1")
            await agent.start()
            await until(lambda: bool(agent.session.manager))
            await agent.stop()
            started = asyncio.get_running_loop().time()
            await until(lambda: cluster.node("n1").status.state == pb.NODE_STATE_DOWN)
            assert asyncio.get_running_loop().time() - started < 3.5

    virtual_time.run(main)


def test_after_a_lag_agents_still_get_everything() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"), joined.task("t2", "n1"))
            await until(lambda: agent.runtime.running() == ["t1", "t2"])
            watch = cluster.dispatcher._watch
            assert watch is not None
            await cluster.committer.commit(
                [ops.create(joined.task("t3", "n1")), ops.delete(cluster.task("t1"))],
            )
            watch.reset()  # what it had gathered is lost
            await until(lambda: agent.runtime.running() == ["t2", "t3"])

    virtual_time.run(main)


def test_a_manager_that_was_stopped_for_a_while_does_not_blame_the_nodes() -> None:
    async def main() -> None:
        async with joined.joined("n1", "n2") as (_, cluster, (_one, two)):
            await two.stop()
            virtual_time.stall(90.0)
            await virtual_time.holds(lambda: cluster.node("n1").status.state == pb.NODE_STATE_READY, for_s=60)
            assert cluster.node("n2").status.state == pb.NODE_STATE_DOWN  # this one was really gone

    virtual_time.run(main)


def test_a_description_that_cannot_be_written_holds_up_no_heartbeat() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            cluster.committer.refusals = [errors.Unavailable("no quorum") for _ in range(60)]
            agent.runtime._resources.memory_bytes = 5
            session = agent.session
            await until(lambda: cluster.node("n1").description.resources.memory_bytes == 5, within_s=120)
            assert cluster.node("n1").status.state == pb.NODE_STATE_READY
            assert session.error == ""

    virtual_time.run(main)


def test_stopping_sends_agents_to_the_leader() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            other = joined.Cluster(network, addr="m2:4000")
            other.addrs = ["m1:4000", "m2:4000"]
            await other.create(joined.node("n1"), joined.revision())
            await other.dispatcher.start()
            cluster.leader = "m2:4000"
            await cluster.dispatcher.stop()
            await until(lambda: agent.session.manager == "m2:4000", within_s=1.0)
            assert agent.book.addresses() == ["m1:4000", "m2:4000"]
            await agent.stop()
            await other.dispatcher.stop()

    virtual_time.run(main)
