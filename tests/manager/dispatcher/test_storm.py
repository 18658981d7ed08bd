"""Many agents and one leader: they come back in a spread, silent work costs no transaction, a slow one is alone."""

import asyncio

import pytest

from manager.dispatcher import admission, session
from skep import errors, link, pb
from tests import virtual_time
from tests.agent import joined

until = virtual_time.until
READY, RUNNING = pb.NODE_STATE_READY, pb.TASK_STATE_RUNNING


def names(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


async def everything(stream: link.AgentLink) -> None:
    while await stream.receive() is not None:
        continue


def test_after_a_change_of_leader_all_agents_come_back_and_none_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "RATE_PER_S", 10.0)
    monkeypatch.setattr(admission, "BURST", 5)
    commits_before = 0

    async def main() -> None:
        nonlocal commits_before
        async with joined.joined(*names(5)) as (network, cluster, first):
            more = [joined.Agent(network, name) for name in names(100)[5:]]
            await cluster.create(*(joined.node(each.node_id) for each in more))
            for each in more:
                await each.start()
            agents = [*first, *more]
            await until(lambda: all(each.session.manager for each in agents))
            await asyncio.sleep(6.0)  # everybody has had an answer to a heartbeat, and knows the spread
            commits_before = cluster.committer.commits
            network.dialled.clear()

            await cluster.dispatcher.stop()
            await until(lambda: not any(each.session.manager for each in agents))
            await cluster.dispatcher.start()
            began = asyncio.get_running_loop().time()
            await until(lambda: all(each.session.manager for each in agents))

            took_s = asyncio.get_running_loop().time() - began
            assert admission.spread_s(100) / 2 < took_s < 2 * admission.spread_s(100)
            assert len(network.dialled) < 3 * len(agents)
            assert {cluster.node(each.node_id).status.state for each in agents} == {READY}
            assert cluster.committer.commits == commits_before

    virtual_time.run(main)


def test_while_no_leader_is_known_an_agent_is_kept_waiting_and_does_not_go_round() -> None:
    async def main() -> None:
        network = joined.Network()
        cluster = joined.Cluster(network)
        await cluster.create(joined.node("n1"))
        cluster.leader = ""
        agent = joined.Agent(network, "n1")
        await agent.start()
        await asyncio.sleep(1.5)
        assert network.dialled == [cluster.addr]

        await cluster.dispatcher.start()
        await until(lambda: bool(agent.session.manager))
        assert network.dialled == [cluster.addr]
        await agent.stop()
        await cluster.dispatcher.stop()
        await network.close()

    virtual_time.run(main)


def test_agents_that_only_live_cost_no_transaction() -> None:
    async def main() -> None:
        async with joined.joined(*names(20)) as (_, cluster, agents):
            await asyncio.sleep(10.0)
            before = cluster.committer.commits
            await virtual_time.holds(lambda: all(each.session.manager for each in agents), for_s=300.0)
            assert cluster.committer.commits == before

    virtual_time.run(main)


def test_an_agent_that_reads_nothing_holds_nobody_up_and_is_told_why_its_session_ends() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await cluster.create(joined.node("deaf"))
            stream = await network.connect("deaf", cluster.addr)
            await stream.send(pb.AgentMessage(register=pb.Register(description=pb.NodeDescription(hostname="deaf"))))
            await until(lambda: cluster.node("deaf").status.state == READY)
            for number in range(300):  # more than fits on the way to it
                await cluster.create(joined.task(f"d{number}", "deaf"))
                if number % 3 == 0:
                    await asyncio.sleep(session.ASSIGNMENT_DELAY_S * 2)

            await cluster.create(joined.task("t1", "n1"))
            began = asyncio.get_running_loop().time()
            await until(lambda: cluster.state("t1") == RUNNING)
            assert asyncio.get_running_loop().time() - began < 1.0
            assert agent.session.manager

            for _ in range(4):
                await stream.send(pb.AgentMessage(heartbeat=pb.Heartbeat()))
                await asyncio.sleep(5.0)
            with pytest.raises(errors.Unavailable, match="node deaf does not read its session"):
                await everything(stream)

    virtual_time.run(main)


def test_an_agent_that_did_not_run_for_a_while_keeps_its_session() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, _, (agent,)):
            await asyncio.sleep(7.0)
            for _ in range(5):
                virtual_time.stall(11.0)  # longer than a manager may be silent
                await asyncio.sleep(3.0)
            assert network.dialled == ["m1:4000"]
            assert agent.session.manager

    virtual_time.run(main)
