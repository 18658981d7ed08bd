"""Agents and dispatcher joined in memory: registration, assignments, statuses, loss and return."""

import asyncio

import pytest

from agent import session
from agent.tasks import record
from manager.store import ops
from skep import errors, ids, link, pb
from tests import virtual_time
from tests.agent import joined

until = virtual_time.until
RUNNING, SHUTDOWN, REMOVE = pb.TASK_STATE_RUNNING, pb.TASK_STATE_SHUTDOWN, pb.TASK_STATE_REMOVE
READY, DOWN, UNKNOWN = pb.NODE_STATE_READY, pb.NODE_STATE_DOWN, pb.NODE_STATE_UNKNOWN


def test_an_agent_registers_and_its_node_is_ready() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            found = cluster.node("n1")
            assert found.status.state == READY
            assert found.status.addr == "10.0.0.1"
            assert found.description.hostname == "n1"
            assert found.description.resources.nano_cpus == 4_000_000_000
            assert [each.id for each in agent.nodes] == ["n1"]
            assert agent.worker.node.id == "n1"

    virtual_time.run(main)


def test_a_task_is_assigned_runs_and_stops() -> None:
    async def main() -> None:
        async with joined.joined("n1", "n2") as (_, cluster, (one, two)):
            await cluster.create(joined.task("t1", "n1"), joined.task("t2", "n2"))
            await until(lambda: cluster.state("t1") == RUNNING and cluster.state("t2") == RUNNING)
            assert (one.runtime.running(), two.runtime.running()) == (["t1"], ["t2"])
            known = cluster.task("t1").status
            assert known.message == "started"
            assert known.container.container_id
            assert known.HasField("applied_at")
            assert cluster.task("t1").HasField("running_at")

            await cluster.wish("t1", SHUTDOWN)
            await until(lambda: cluster.state("t1") == SHUTDOWN)
            assert one.runtime.running() == []
            assert await one.runtime.list() == ["t1"]  # kept for its logs until the task is removed

            await cluster.committer.commit([ops.delete(cluster.task("t1"))])
            await until(lambda: one.worker.statuses() == {})
            assert await one.runtime.list() == []
            assert one.record.tasks() == []
            assert one.record.revisions() == {}

    virtual_time.run(main)


def test_a_task_waits_prepared_until_it_may_run() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1", desired=pb.TASK_STATE_READY))
            await until(lambda: cluster.state("t1") == pb.TASK_STATE_READY)
            await virtual_time.holds(lambda: agent.runtime.running() == [], for_s=5)
            await cluster.wish("t1", RUNNING)
            await until(lambda: cluster.state("t1") == RUNNING)

    virtual_time.run(main)


def test_nothing_is_written_while_nothing_happens() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, _agents):
            await cluster.create(joined.task("t1", "n1"))
            await until(lambda: cluster.state("t1") == RUNNING)
            before = cluster.committer.commits
            await virtual_time.holds(lambda: cluster.node("n1").status.state == READY, for_s=600, every_s=10)
            assert cluster.committer.commits == before

    virtual_time.run(main)


def test_a_crash_is_reported_with_its_exit_code() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"))
            await until(lambda: cluster.state("t1") == RUNNING)
            agent.runtime.crash("t1", exit_code=3)
            await until(lambda: cluster.state("t1") == pb.TASK_STATE_FAILED)
            status = cluster.task("t1").status
            assert status.err == "task: non-zero exit (3)"
            assert status.container.exit_code == 3

    virtual_time.run(main)


def test_a_silent_node_is_down_and_comes_back() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"))
            await until(lambda: cluster.state("t1") == RUNNING)
            loop = asyncio.get_running_loop()
            network.cut["n1"] = None
            await network.open["n1"].close()
            started = loop.time()
            await until(lambda: cluster.node("n1").status.state == DOWN)
            assert 14.0 < loop.time() - started < 16.0
            assert cluster.node("n1").status.message == "heartbeat failure"
            assert agent.runtime.running() == ["t1"]  # nobody to talk to is no reason to stop
            assert agent.session.error

            agent.runtime.crash("t1", exit_code=9)  # noticed, remembered, reported later
            network.cut.clear()
            await until(lambda: cluster.node("n1").status.state == READY)
            await until(lambda: cluster.state("t1") == pb.TASK_STATE_FAILED)

    virtual_time.run(main)


def test_a_new_leader_takes_ready_nodes_over_without_writing() -> None:
    async def main() -> None:
        async with joined.joined("n1", "n2") as (network, cluster, agents):
            await cluster.create(joined.task("t1", "n1"))
            await until(lambda: cluster.state("t1") == RUNNING)
            before = cluster.committer.commits
            await cluster.dispatcher.stop()
            assert not cluster.dispatcher.leading
            await cluster.dispatcher.start()
            await until(lambda: all(each.session.manager for each in agents))
            await virtual_time.holds(lambda: cluster.node("n2").status.state == READY, for_s=60)
            assert cluster.committer.commits == before
            assert network.dialled

    virtual_time.run(main)


def test_nodes_that_do_not_find_the_new_leader_become_unknown_then_down() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, _agents):
            network.cut["n1"] = None
            await cluster.dispatcher.stop()
            await cluster.dispatcher.start()
            started = asyncio.get_running_loop().time()
            await until(lambda: cluster.node("n1").status.state == UNKNOWN)
            assert asyncio.get_running_loop().time() - started < 7
            await until(lambda: cluster.node("n1").status.state == DOWN)
            assert 29 < asyncio.get_running_loop().time() - started < 31
            assert cluster.node("n1").status.message == 'heartbeat failure for node in "unknown" state'

    virtual_time.run(main)


def test_a_follower_redirects_to_the_leader() -> None:
    async def main() -> None:
        async with joined.joined() as (network, cluster, _agents):
            follower = joined.Cluster(network, addr="m2:4000")
            follower.leader = "m1:4000"
            await cluster.create(joined.node("n1"))
            agent = joined.Agent(network, "n1", seeds=["m2:4000"])
            await agent.start()
            await until(lambda: agent.session.manager == "m1:4000")
            assert network.dialled == ["m2:4000", "m1:4000"]
            assert agent.book.addresses() == ["m1:4000"]  # as the leader's list says
            cluster.addrs.append("m3:4000")
            cluster.dispatcher.managers_changed()
            await until(lambda: agent.book.addresses() == ["m1:4000", "m3:4000"])
            await agent.stop()

    virtual_time.run(main)


def test_a_manager_that_worked_is_kept_although_it_is_not_listed() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            cluster.addrs = ["nowhere:1"]
            cluster.dispatcher.managers_changed()
            await until(lambda: agent.book.addresses() == ["nowhere:1"])
            await network.open["n1"].close()
            await until(lambda: not agent.session.manager)
            await until(lambda: agent.session.manager == "m1:4000")
            assert "nowhere:1" in network.dialled

    virtual_time.run(main)


def test_managers_without_a_leader_do_not_make_an_agent_spin() -> None:
    async def main() -> None:
        network = joined.Network()
        one = joined.Cluster(network, addr="m1:4000")
        two = joined.Cluster(network, addr="m2:4000")
        one.leader, two.leader = "m2:4000", "m1:4000"
        agent = joined.Agent(network, "n1", seeds=["m1:4000", "m2:4000"])
        await agent.start()
        await virtual_time.holds(lambda: agent.session.manager == "", for_s=60)
        assert 10 < len(network.dialled) < 150
        await agent.stop()
        await network.close()

    virtual_time.run(main)


def test_an_agent_that_starts_again_goes_on_before_it_has_a_manager() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"), joined.task("t2", "n1"))
            await until(lambda: cluster.state("t1") == RUNNING and cluster.state("t2") == RUNNING)
            containers = [cluster.task(each).status.container.container_id for each in ("t1", "t2")]
            await agent.stop()
            assert agent.runtime.running() == ["t1", "t2"]
            agent.runtime.crash("t2", exit_code=5)

            network.cut["n1"] = None
            await agent.start()
            await until(lambda: agent.worker.statuses()["t2"].state == pb.TASK_STATE_FAILED)
            assert agent.worker.statuses()["t1"].state == RUNNING
            network.cut.clear()
            await until(lambda: cluster.state("t2") == pb.TASK_STATE_FAILED)
            assert [cluster.task(each).status.container.container_id for each in ("t1", "t2")] == containers

    virtual_time.run(main)


def test_without_its_record_an_agent_adopts_what_the_full_set_names_and_removes_the_rest() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"), joined.task("t2", "n1"))
            await until(lambda: cluster.state("t1") == RUNNING and cluster.state("t2") == RUNNING)
            container = cluster.task("t1").status.container.container_id
            await agent.stop()
            agent.record = record.Record(record.IN_MEMORY)
            await cluster.committer.commit([ops.delete(cluster.task("t2"))])
            await agent.start()
            await until(lambda: agent.runtime.running() == ["t1"])
            assert await agent.runtime.list() == ["t1"]
            assert cluster.state("t1") == RUNNING
            assert cluster.task("t1").status.container.container_id == container

    virtual_time.run(main)


def test_a_lost_message_costs_the_session_not_the_state() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            served = cluster.dispatcher.session_of("n1")
            assert served is not None
            stream = network.open["n1"]
            original = stream.send

            async def lossy(message: pb.ManagerMessage) -> None:
                if not message.HasField("assignments"):
                    await original(message)

            stream.send = lossy  # type: ignore[method-assign]
            await cluster.create(joined.task("t1", "n1"))
            await virtual_time.holds(lambda: agent.runtime.running() == [], for_s=3)
            stream.send = original  # type: ignore[method-assign]
            await cluster.create(joined.task("t2", "n1"))
            await until(lambda: cluster.state("t1") == RUNNING and cluster.state("t2") == RUNNING)
            assert cluster.dispatcher.session_of("n1") is not served

    virtual_time.run(main)


def test_a_manager_that_falls_silent_is_left() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            served = cluster.dispatcher.session_of("n1")

            async def swallowed(_message: pb.ManagerMessage) -> None:
                return

            network.open["n1"].send = swallowed  # type: ignore[method-assign, assignment]
            await until(lambda: cluster.dispatcher.session_of("n1") not in {served, None}, within_s=14)
            assert agent.session.manager

    virtual_time.run(main)


def test_a_second_session_replaces_the_first() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            first = cluster.dispatcher.session_of("n1")
            old_stream = network.open["n1"]
            other = await network.connect("n1", "m1:4000")
            await other.send(pb.AgentMessage(register=pb.Register(description=await agent.describe())))
            answer = await other.receive()
            assert answer is not None
            assert answer.HasField("registered")
            assert network.open["n1"] is not old_stream
            assert cluster.dispatcher.session_of("n1") is not first
            await until(lambda: bool(agent.session.error))  # the old one was closed; it comes back and wins

    virtual_time.run(main)


def test_a_removed_node_is_denied() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await cluster.committer.commit([ops.delete(cluster.node("n1"))])
            await until(lambda: "was removed" in agent.session.error or "not in this cluster" in agent.session.error)
            await until(lambda: "not in this cluster" in agent.session.error)
            stream = await network.connect("n1", "m1:4000")
            await stream.send(pb.AgentMessage(register=pb.Register()))
            with pytest.raises(errors.Denied, match="n1"):
                await stream.receive()

    virtual_time.run(main)


def test_a_session_must_begin_with_a_registration() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, _cluster, (agent,)):
            await agent.stop()
            stream = await network.connect("n1", "m1:4000")
            await stream.send(pb.AgentMessage(heartbeat=pb.Heartbeat()))
            await expect(stream, errors.Invalid)
            silent = await network.connect("n1", "m1:4000")
            await expect(silent, errors.Unavailable)

    async def expect(stream: link.AgentLink, kind: type[errors.SkepError]) -> None:
        with pytest.raises(kind):
            await stream.receive()

    virtual_time.run(main)


def test_the_agent_hears_of_changes_of_its_own_node() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            changed = pb.Node()
            changed.CopyFrom(cluster.node("n1"))
            changed.spec.labels["rack"] = "b"
            await cluster.committer.commit([ops.update(changed)])
            await until(lambda: agent.worker.node.spec.labels.get("rack") == "b")
            assert agent.nodes[-1].spec.labels["rack"] == "b"

    virtual_time.run(main)


def test_a_changed_description_reaches_the_store() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            agent.runtime._resources.memory_bytes = 1 << 40
            await until(lambda: cluster.node("n1").description.resources.memory_bytes == 1 << 40)

    virtual_time.run(main)


def test_a_node_that_was_never_described_waits_for_its_runtime_and_says_why() -> None:
    async def main() -> None:
        network = joined.Network()
        cluster = joined.Cluster(network)
        await cluster.create(joined.node("n1"))
        await cluster.dispatcher.start()
        agent, described = joined.Agent(network, "n1"), joined.Agent.describe
        away = True

        async def describe() -> pb.NodeDescription:
            if away:
                raise errors.Unavailable("cannot connect to the container engine")
            return await described(agent)

        agent.describe = describe  # type: ignore[method-assign]
        await agent.start()
        reason = "this node cannot be described without its runtime: cannot connect to the container engine"
        await until(lambda: agent.session.error == reason)
        assert not agent.session.manager
        away = False
        await until(lambda: bool(agent.session.manager))
        assert cluster.node("n1").description.hostname == "n1"
        await agent.stop()
        await cluster.dispatcher.stop()
        await network.close()

    virtual_time.run(main)


def test_leaving_removes_everything_and_closing_removes_nothing() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"), joined.task("t2", "n1"))
            await until(lambda: agent.runtime.running() == ["t1", "t2"])
            await agent.stop()
            assert agent.runtime.running() == ["t1", "t2"]
            await agent.runtime.open()
            await agent._worker().remove_all()  # one that was never opened
            assert await agent.runtime.list() == []

    virtual_time.run(main)


def test_hundreds_of_tasks_on_one_node() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            names = [f"t{number:03}" for number in range(1200)]
            await cluster.create(*(joined.task(name, "n1") for name in names))
            await until(lambda: len(agent.runtime.running()) == 1200)
            await until(lambda: all(cluster.state(name) == RUNNING for name in names))
            assert cluster.committer.commits < 40

    virtual_time.run(main)


def test_a_session_whose_cancellation_is_swallowed_ends_all_the_same() -> None:
    async def main() -> None:
        agent = joined.Agent(joined.Network(), "n1")
        connecting = asyncio.Event()

        async def connect(addr: str) -> link.AgentLink:  # as gRPC does when the end of a call meets a cancellation
            connecting.set()
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                raise errors.Unavailable(f"cannot reach {addr}: connection refused") from None
            raise AssertionError("was not cancelled")

        opened = session.AgentSession(
            connect=connect, managers=agent.book, worker=agent.worker, describe=agent.describe, rng=ids.seeded_rng(1)
        )
        running = asyncio.create_task(opened.run())
        await connecting.wait()
        running.cancel()
        await asyncio.wait({running}, timeout=30.0)
        assert running.cancelled()

    virtual_time.run(main)
