"""Tasks that must never run twice, agents and leader joined: each side by its own steady clock."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.tasks import machine
from manager.dispatcher import heartbeats
from manager.orchestrator import leaving
from skep import pb, policies
from tests import virtual_time
from tests.agent import joined

until, holds = virtual_time.until, virtual_time.holds
LEASE_S = 20.0


def revision(lease: str = f"{LEASE_S:.0f}s") -> pb.Revision:
    made = joined.revision("once")
    made.spec.labels[policies.AT_MOST_ONCE] = lease
    return made


async def running(cluster: joined.Cluster, *task_ids: str) -> None:
    await until(lambda: all(cluster.state(each) == joined.RUN for each in task_ids))


@contextlib.asynccontextmanager
async def running_once() -> AsyncIterator[tuple[joined.Network, joined.Cluster, joined.Agent]]:
    """A node that runs one task which must never run twice, named a."""
    async with joined.joined("n1") as (network, cluster, (agent,)):
        await cluster.create(revision(), joined.task("a", "n1", revision_id="once"))
        await running(cluster, "a")
        yield network, cluster, agent


async def drop_out(network: joined.Network, agent: joined.Agent) -> None:
    """The node reaches nobody and nobody reaches it."""
    network.cut[agent.node_id] = None
    await network.open[agent.node_id].close()


def test_only_the_task_that_must_never_run_twice_ends_when_no_manager_is_heard_of() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await cluster.create(revision(), joined.task("a", "n1", revision_id="once"), joined.task("b", "n1"))
            await running(cluster, "a", "b")
            await drop_out(network, agent)
            await holds(lambda: len(agent.runtime.running()) == 2, for_s=LEASE_S - joined.PERIOD_S - 1.0)
            await until(lambda: agent.runtime.running() == ["b"], within_s=joined.PERIOD_S + 2.0)
            status = agent.worker.statuses()["a"]
            assert (status.state, status.err) == (machine.FAILED, machine.LEASE_OVER)

    virtual_time.run(main)


def test_the_leader_counts_the_silence_for_longer_than_the_agent_lets_the_task_run() -> None:
    async def main() -> None:
        async with running_once() as (network, cluster, agent):
            await drop_out(network, agent)
            ended_at: list[float] = []

            def certain() -> bool:
                if not agent.runtime.running() and not ended_at:
                    ended_at.append(virtual_time.LoopUptime().now())
                return leaving.certainly_stopped(cluster.store.view(), cluster.task("a"))

            await until(certain, within_s=200.0)
            needed_s = policies.certainly_stopped_s(revision().spec)
            assert ended_at
            assert virtual_time.LoopUptime().now() > ended_at[0] + policies.KILL_S
            assert cluster.node("n1").status.silent == pytest.approx(needed_s * 1e9)

    virtual_time.run(main)


def test_a_leader_whose_wall_clock_jumps_counts_no_faster() -> None:
    async def main() -> None:
        async with running_once() as (network, cluster, agent):
            await drop_out(network, agent)
            await until(lambda: cluster.node("n1").status.state == pb.NODE_STATE_DOWN)
            now = cluster.clock.now
            cluster.clock.now = lambda: now() + 3600.0  # type: ignore[method-assign]
            needed_s = policies.certainly_stopped_s(revision().spec)
            await holds(
                lambda: not leaving.certainly_stopped(cluster.store.view(), cluster.task("a")), for_s=needed_s - 1.0
            )
            await until(lambda: leaving.certainly_stopped(cluster.store.view(), cluster.task("a")), within_s=2.0)

    virtual_time.run(main)


def test_a_new_leader_goes_on_from_what_is_certain_and_not_from_stamps() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            short, long = revision("5s"), revision("60s")
            long.id = "longer"
            await cluster.create(short, long)
            await cluster.create(
                joined.task("a", "n1", revision_id="once"), joined.task("b", "n1", revision_id="longer")
            )
            await running(cluster, "a", "b")
            await drop_out(network, agent)
            view = cluster.store.view
            await until(lambda: leaving.certainly_stopped(view(), cluster.task("a")), within_s=200.0)
            await cluster.dispatcher.stop()
            await cluster.dispatcher.start()
            certain_s = cluster.node("n1").status.silent / 1e9
            left_s = policies.certainly_stopped_s(long.spec) - certain_s
            await holds(lambda: not leaving.certainly_stopped(view(), cluster.task("b")), for_s=left_s - 0.5)
            await until(lambda: leaving.certainly_stopped(view(), cluster.task("b")), within_s=1.0)

    virtual_time.run(main)


def test_silence_is_counted_anew_when_the_node_has_been_back() -> None:
    async def main() -> None:
        async with running_once() as (network, cluster, agent):
            await drop_out(network, agent)
            view = cluster.store.view
            await until(lambda: leaving.certainly_stopped(view(), cluster.task("a")), within_s=200.0)
            network.cut.clear()
            await until(lambda: cluster.node("n1").status.state == pb.NODE_STATE_READY)
            assert cluster.node("n1").status.silent == 0
            await until(lambda: cluster.state("a") == machine.FAILED)  # nobody has replaced it here; it is reported
            assert cluster.task("a").status.err == machine.LEASE_OVER

    virtual_time.run(main)


def test_what_waits_to_start_does_not_while_no_manager_is_heard_of_and_does_afterwards() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            agent.runtime.default = dataclasses.replace(agent.runtime.default, prepare_s=LEASE_S + 10.0)
            await cluster.create(revision(), joined.task("a", "n1", revision_id="once"))
            await until(lambda: cluster.state("a") == machine.PREPARING)
            await drop_out(network, agent)
            await until(lambda: agent.worker.statuses()["a"].state == machine.READY)
            await holds(lambda: not agent.runtime.running(), for_s=60.0)
            network.cut.clear()
            await running(cluster, "a")

    virtual_time.run(main)


def test_a_short_lease_makes_the_agent_speak_often_enough() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await cluster.create(revision("2s"), joined.task("a", "n1", revision_id="once"))
            await running(cluster, "a")
            await holds(lambda: agent.runtime.running() == ["a"], for_s=60.0)

    virtual_time.run(main)


def test_a_leader_that_is_not_sure_to_lead_renews_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running_once() as (_, cluster, agent):
            cluster.dispatcher._sure_to_lead = lambda: False
            await until(lambda: not agent.runtime.running(), within_s=LEASE_S + 2.0)
            assert agent.session.manager  # the session itself is none the worse

    virtual_time.run(main)


def test_a_word_that_comes_while_the_node_is_given_up_renews_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats.Heartbeats, "doubted", lambda self, node_id: True)

    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            await cluster.create(revision(), joined.task("a", "n1", revision_id="once"))
            await until(lambda: cluster.state("a") == machine.READY)
            await holds(lambda: not agent.runtime.running(), for_s=30.0)

    virtual_time.run(main)


def test_an_agent_that_was_killed_goes_on_with_the_lease_it_had() -> None:
    async def main() -> None:
        async with running_once() as (network, _, agent):
            await agent.stop()
            network.cut[agent.node_id] = None
            began: Any = virtual_time.LoopUptime().now()
            await agent.start()
            await holds(lambda: agent.runtime.running() == ["a"], for_s=LEASE_S - joined.PERIOD_S - 2.0)
            await until(lambda: not agent.runtime.running(), within_s=joined.PERIOD_S + 3.0)
            assert virtual_time.LoopUptime().now() - began <= LEASE_S + 1.0

    virtual_time.run(main)
