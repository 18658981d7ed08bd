"""Tasks' output from their agents: in order, with credit, and with a word about what is missing."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent import logs as agent_logs
from agent.runtime import base
from manager.dispatcher import logs
from manager.http import backend
from skep import errors, pb
from tests import virtual_time
from tests.agent import joined

until = virtual_time.until


async def gather(cluster: joined.Cluster, query: backend.LogQuery) -> list[tuple[str, str]]:
    source = logs.Logs(store=cluster.store, session_of=cluster.dispatcher.session_of, clock=cluster.clock)
    return [(task_id, entry.data.decode()) async for task_id, entry in source.read(query)]


def test_lines_of_several_tasks_on_several_nodes() -> None:
    async def main() -> None:
        async with joined.joined("n1", "n2") as (_, cluster, (one, two)):
            await cluster.create(joined.task("t1", "n1"), joined.task("t2", "n2"))
            await until(lambda: cluster.state("t1") == joined.RUN and cluster.state("t2") == joined.RUN)
            for number in range(900):
                one.runtime.print_line("t1", f"one {number}")
            two.runtime.print_line("t2", "two")
            found = await gather(cluster, backend.LogQuery(["t1", "t2"]))
            assert [text for name, text in found if name == "t1"] == [f"one {number}\n" for number in range(900)]
            assert ("t2", "two\n") in found
            assert await gather(cluster, backend.LogQuery(["t1"], tail=1)) == [("t1", "one 899\n")]

    virtual_time.run(main)


def test_what_cannot_be_read_is_said_on_stderr() -> None:
    async def main() -> None:
        async with joined.joined("n1", "n2") as (network, cluster, (one, two)):
            await cluster.create(
                joined.task("t1", "n1"), joined.task("t2", "n2"), joined.task("t3", "", state=pb.TASK_STATE_PENDING)
            )
            await until(lambda: cluster.state("t1") == joined.RUN and cluster.state("t2") == joined.RUN)
            one.runtime.print_line("t1", "fine")
            network.cut["n2"] = None
            await two.stop()
            await until(lambda: cluster.dispatcher.session_of("n2") is None)
            await one.runtime.remove("t1")
            found = dict(await gather(cluster, backend.LogQuery(["t1", "t2", "t3", "t4"])))
            assert found["t1"] == "skep: task t1 has no output on this node\n"
            assert found["t2"] == "skep: node n2 is not available\n"
            assert found["t3"] == "skep: task t3 has not been scheduled\n"
            assert found["t4"] == "skep: task t4 is not there any more\n"

    virtual_time.run(main)


class Flood:
    """Endless output that counts how far it was read."""

    def __init__(self) -> None:
        self.read = 0

    async def __call__(self, _task_id: str, _options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
        while True:
            self.read += 1
            yield pb.LogEntry(stream=pb.LOG_STREAM_STDOUT, data=b"x" * 1000)
            await asyncio.sleep(0)


def test_a_slow_reader_stalls_its_request_and_nothing_else() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            flood = Flood()
            agent.worker.logs = flood  # type: ignore[method-assign, assignment]
            await agent.stop()
            agent._worker = lambda: agent.worker  # type: ignore[method-assign]
            await agent.start()
            await until(lambda: bool(agent.session.manager))
            await cluster.create(joined.task("t1", "n1"))
            source = logs.Logs(store=cluster.store, session_of=cluster.dispatcher.session_of, clock=cluster.clock)
            reading = source.read(backend.LogQuery(["t1"], follow=True))
            await anext(reading)
            await until(lambda: cluster.state("t1") == joined.RUN)  # the session is as quick as ever
            await virtual_time.holds(lambda: flood.read < 1000, for_s=120, every_s=1)
            before = flood.read
            for _ in range(2000):
                await anext(reading)
            assert flood.read > before
            await reading.aclose()
            await virtual_time.holds(lambda: True, for_s=1)
            after = flood.read
            await virtual_time.holds(lambda: flood.read == after, for_s=5)  # the agent was told to stop
            assert agent.session.manager

    virtual_time.run(main)


def test_a_followed_task_is_read_on_once_its_node_is_back() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"))
            await until(lambda: cluster.state("t1") == joined.RUN)
            agent.runtime.print_line("t1", "one")
            agent.runtime.print_line("t1", "two, at the same moment")
            source = logs.Logs(store=cluster.store, session_of=cluster.dispatcher.session_of, clock=cluster.clock)
            reading = source.read(backend.LogQuery(["t1"], follow=True))
            assert (await anext(reading))[1].data == b"one\n"
            assert (await anext(reading))[1].data == b"two, at the same moment\n"
            network.cut["n1"] = None
            await network.open["n1"].close()
            _, entry = await anext(reading)
            assert entry.stream == pb.LOG_STREAM_STDERR
            assert (entry.data, entry.origin) == (b"skep: node n1 is not available\n", pb.LOG_ORIGIN_SKEP)
            agent.runtime.print_line("t1", "three")
            following = asyncio.ensure_future(anext(reading))
            await asyncio.sleep(20)
            del network.cut["n1"]
            assert (await following)[1].data == b"three\n"
            await reading.aclose()

    virtual_time.run(main)


def test_a_session_that_is_back_soon_is_not_missed() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"))
            await until(lambda: cluster.state("t1") == joined.RUN)
            agent.runtime.print_line("t1", "one")
            source = logs.Logs(store=cluster.store, session_of=cluster.dispatcher.session_of, clock=cluster.clock)
            reading = source.read(backend.LogQuery(["t1"], follow=True))
            assert (await anext(reading))[1].data == b"one\n"
            await network.open["n1"].close()
            following = asyncio.ensure_future(anext(reading))
            await until(lambda: cluster.dispatcher.session_of("n1") is None)
            assert [text for _, text in await gather(cluster, backend.LogQuery(["t1"]))] == ["one\n"]
            agent.runtime.print_line("t1", "two")
            assert (await following)[1].data == b"two\n"
            await reading.aclose()

    virtual_time.run(main)


def test_lines_come_in_the_order_of_their_time_across_nodes() -> None:
    async def main() -> None:
        async with joined.joined("n1", "n2") as (_, cluster, (one, two)):
            await cluster.create(joined.task("t1", "n1"), joined.task("t2", "n2"))
            await until(lambda: cluster.state("t1") == joined.RUN and cluster.state("t2") == joined.RUN)
            for number in range(600):
                (one if number % 3 else two).runtime.print_line("t1" if number % 3 else "t2", str(number))
                await asyncio.sleep(0.001)
            whole = [f"{number}\n" for number in range(600)]
            assert [text for _, text in await gather(cluster, backend.LogQuery(["t1", "t2"]))] == whole
            source = logs.Logs(store=cluster.store, session_of=cluster.dispatcher.session_of, clock=cluster.clock)
            reading = source.read(backend.LogQuery(["t2", "t1"], follow=True))
            began = asyncio.get_running_loop().time()
            assert [(await anext(reading))[1].data.decode() for _ in range(600)] == whole
            assert asyncio.get_running_loop().time() - began < 1
            one.runtime.print_line("t1", "live")
            assert (await anext(reading))[1].data == b"live\n"
            await reading.aclose()

    virtual_time.run(main)


def test_a_task_that_died_with_its_node_has_its_last_words() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            dead = joined.task("t1", "n1", state=pb.TASK_STATE_FAILED, desired=pb.TASK_STATE_SHUTDOWN)
            dead.status.last_output = "first\nlast\n"
            network.cut["n1"] = None
            await agent.stop()
            await until(lambda: cluster.node("n1").status.state == pb.NODE_STATE_DOWN)
            await cluster.create(dead)
            words = ["first\n", "last\n", "skep: node n1 is not available\n"]
            for follow in (False, True):
                assert [text for _, text in await gather(cluster, backend.LogQuery(["t1"], follow=follow))] == words
            assert [text for _, text in await gather(cluster, backend.LogQuery(["t1"], tail=1))] == words[1:]

    virtual_time.run(main)


def test_a_manager_that_loses_the_lead_breaks_off() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (network, cluster, (agent,)):
            await cluster.create(joined.task("t1", "n1"))
            await until(lambda: cluster.state("t1") == joined.RUN)
            agent.runtime.print_line("t1", "hello")
            sessions = cluster.dispatcher
            source = logs.Logs(
                store=cluster.store, session_of=sessions.session_of, clock=cluster.clock,
                leading=lambda: sessions.leading,
            )  # fmt: skip
            reading = source.read(backend.LogQuery(["t1"], follow=True))
            assert (await anext(reading))[1].data == b"hello\n"
            await sessions.stop()
            with pytest.raises(errors.Unavailable, match="does not lead any more"):
                await anext(reading)
            assert network.dialled

    virtual_time.run(main)


def test_an_agent_serves_so_many_requests_and_no_more() -> None:
    async def main() -> None:
        sent: list[pb.AgentMessage] = []

        async def send(message: pb.AgentMessage) -> None:
            sent.append(message)

        async def silent(_task_id: str, _options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
            await asyncio.Event().wait()
            yield pb.LogEntry()

        server = agent_logs.LogServer(read=silent, send=send)
        for number in range(agent_logs.REQUESTS_MAX + 1):
            await server.start(pb.LogRequest(id=number + 1, task_id="t1"))
        assert [(each.log.request_id, each.log.end) for each in sent] == [(agent_logs.REQUESTS_MAX + 1, True)]
        assert "too many" in sent[0].log.error
        await server.close()

    virtual_time.run(main)


def test_a_runtime_that_fails_half_way_is_reported() -> None:
    async def main() -> None:
        sent: list[pb.LogChunk] = []

        async def send(message: pb.AgentMessage) -> None:
            sent.append(message.log)

        async def failing(_task_id: str, _options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
            yield pb.LogEntry(data=b"one\n")
            raise errors.Unavailable("the engine went away")

        server = agent_logs.LogServer(read=failing, send=send)
        await server.start(pb.LogRequest(id=1, task_id="t1", credit=1))
        await until(lambda: bool(sent) and sent[-1].end)
        assert sent[-1].error == "the engine went away"
        assert [entry.data for chunk in sent for entry in chunk.entries] == [b"one\n"]
        await server.close()

    virtual_time.run(main)
