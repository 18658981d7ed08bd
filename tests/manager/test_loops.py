"""The leader's loop: what it runs, when, and what it survives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import prometheus_client
import pytest
import structlog

from manager import loops, plan
from manager.store import commit, ops, store, views, watching
from skep import clock, errors, ids, pb
from tests import virtual_time

DEADLINE_S = 10.0


class Recorder:
    """A decider that does what a test says and remembers what it was asked."""

    name = "recorder"
    kinds = frozenset({"task"})

    def __init__(self, act: Callable[[views.View, float], plan.Plan] = lambda view, now: plan.Plan()) -> None:
        self.act = act
        self.asked: list[frozenset[str] | None] = []

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        return (change.id,)

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        self.asked.append(dirty)
        return self.act(state, now)


class Committer(commit.LocalCommitter):
    """Applies, unless a test has it refuse first."""

    def __init__(self, target: store.Store) -> None:
        super().__init__(target, clock.SystemClock())
        self.refusals: list[errors.SkepError] = []
        self.sizes: list[int] = []

    async def commit(self, ops: Sequence[pb.Op]) -> int:  # type: ignore[explicit-override]
        if self.refusals:
            raise self.refusals.pop(0)
        self.sizes.append(len(ops))
        return await super().commit(ops)


class Setting:
    """A store, a committer, and the loop over them."""

    def __init__(self, *deciders: plan.Decider) -> None:
        self.store = store.Store(checking=True)
        self.committer = Committer(self.store)
        self.registry = prometheus_client.CollectorRegistry()
        self.loop = loops.LeaderLoop(
            store=self.store,
            committer=self.committer,
            deciders=deciders,
            clock=clock.SystemClock(),
            rng=ids.seeded_rng(1),
            metrics=loops.Metrics(self.registry),
        )
        self.failure: BaseException | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.loop.run())
        try:
            yield
        finally:
            if not task.done():
                task.cancel()
            (self.failure,) = await asyncio.gather(task, return_exceptions=True)

    async def put(self, *rows: ops.AnyRow) -> None:
        await self.committer.commit([ops.create(row) for row in rows])

    def metric(self, name: str, decider: str = "recorder") -> float:
        return self.registry.get_sample_value(f"skep_decider_{name}", {"decider": decider}) or 0.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # conditions on a store, which has no event for each
            await asyncio.sleep(0.001)


def task(name: str) -> pb.Task:
    return pb.Task(id=name, service_id="s", revision_id="r", slot=1)


@pytest.fixture(autouse=True)
def _quiet() -> Iterable[None]:
    with structlog.testing.capture_logs():
        yield


def test_starts_with_everything_then_takes_what_changed() -> None:
    async def main() -> None:
        decider = Recorder()
        s = Setting(decider)
        async with s.running():
            await until(lambda: decider.asked == [None])
            await s.put(task("a"), task("b"))
            await until(lambda: len(decider.asked) == 2)
            await s.put(pb.Node(id="n"))  # of no concern to it
            await s.put(task("c"))
            await until(lambda: len(decider.asked) == 3)
        assert decider.asked == [None, frozenset({"a", "b"}), frozenset({"c"})]
        assert s.metric("passes_total") == 3

    asyncio.run(main())


def test_a_whole_service_goes_through_all_deciders() -> None:
    async def main() -> None:
        s = Setting(*loops.default_deciders())
        node = pb.Node(id="n1")
        node.status.state = pb.NODE_STATE_READY
        revision = pb.Revision(id="r1", service_id="s1", number=1)
        revision.spec.mode.replicated.replicas = 2500
        async with s.running():
            await s.put(node, pb.Service(id="s1", name="web", revision_id="r1"), revision)
            await until(lambda: s.store.view().tasks.count("state", str(pb.TASK_STATE_ASSIGNED)) == 2500)
        assert max(s.committer.sizes) <= loops.OPS_MAX
        assert s.metric("ops_total", "services") == 2500
        assert s.metric("ops_total", "scheduler") == 2500

    asyncio.run(main())


def test_wakes_for_one_key_or_for_everything_when_due() -> None:
    async def main() -> None:
        moments = [plan.Plan(), plan.Plan(), plan.Plan()]
        now = clock.SystemClock().now()
        moments[0].wake(now + 0.05, "x")
        moments[0].wake(now + 3600.0, "y")
        moments[1].wake(now + 0.1, "z")
        decider = Recorder(lambda view, at: moments.pop(0) if moments else plan.Plan())
        s = Setting(decider)
        async with s.running():
            await until(lambda: len(decider.asked) == 3)
        assert decider.asked == [None, frozenset({"x"}), frozenset({"z"})]

    asyncio.run(main())


def test_wakes_for_everything() -> None:
    async def main() -> None:
        first = plan.Plan()
        first.wake(clock.SystemClock().now() + 0.03)
        plans = [first]
        decider = Recorder(lambda view, at: plans.pop(0) if plans else plan.Plan())
        s = Setting(decider)
        async with s.running():
            await until(lambda: decider.asked == [None, None])

    asyncio.run(main())


def test_a_conflict_is_decided_again_in_smaller_parts() -> None:
    async def main() -> None:
        def act(view: views.View, now: float) -> plan.Plan:
            missing = [name for name in (f"t{number}" for number in range(40)) if view.tasks.get(name) is None]
            return plan.Plan(ops=[ops.create(task(name)) for name in missing])

        decider = Recorder(act)
        s = Setting(decider)
        s.committer.refusals = [errors.Conflict("moved")]
        async with s.running():
            await until(lambda: len(s.store.view().tasks) == 40)
        assert s.committer.sizes == [20, 20]
        assert decider.asked[:2] == [None, None]
        assert s.metric("conflicts_total") == 1

    asyncio.run(main())


def test_a_loop_that_may_not_write_any_more_ends() -> None:
    async def main() -> None:
        s = Setting(Recorder(lambda view, now: plan.Plan(ops=[ops.create(task("a"))])))
        s.committer.refusals = [errors.Unavailable("not the leader")]
        async with s.running():
            await asyncio.sleep(0)
            await until(lambda: not s.committer.refusals)
            await asyncio.sleep(0.01)
        assert isinstance(s.failure, errors.Unavailable)

    asyncio.run(main())


def test_cancelling_stops_watching() -> None:
    async def main() -> None:
        decider = Recorder()
        s = Setting(decider)
        async with s.running():
            await until(lambda: decider.asked)
        assert isinstance(s.failure, asyncio.CancelledError)
        await s.put(task("a"))
        assert s.store._watches == []

    asyncio.run(main())


def test_a_failing_decider_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "RETRY_S", 0.01)

    async def main() -> None:
        def fail(view: views.View, now: float) -> plan.Plan:
            if len(broken.asked) < 3:
                raise ZeroDivisionError("out of luck")
            return plan.Plan()

        broken, sound = Recorder(fail), Recorder()
        broken.name = "broken"
        s = Setting(broken, sound)
        with structlog.testing.capture_logs() as logs:
            async with s.running():
                await s.put(task("a"))
                await until(lambda: len(broken.asked) >= 3 and sound.asked)
                await s.put(task("b"))
                await until(lambda: broken.asked[-1] == frozenset({"b"}) and sound.asked[-1] == frozenset({"b"}))
        assert broken.asked[:3] == [None, None, None]
        assert s.metric("failures_total", "broken") == 2
        assert s.metric("failures_total") == 0
        assert [entry["event"] for entry in logs if entry.get("decider") == "broken"] == [
            "decider.failed",
            "decider.failed_again",
        ]

    asyncio.run(main())


def test_a_plan_the_store_calls_invalid_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "RETRY_S", 0.01)

    async def main() -> None:
        made = Recorder(lambda view, now: plan.Plan(ops=[] if view.tasks.get("a") else [ops.create(task("a"))]))
        s = Setting(made)
        s.committer.refusals = [errors.Invalid("too large")]
        async with s.running():
            await until(lambda: s.store.view().tasks.get("a"))
        assert s.metric("failures_total") == 1

    asyncio.run(main())


def test_a_watcher_that_lags_has_everything_decided() -> None:
    async def main() -> None:
        decider = Recorder()
        s = Setting(decider)
        async with s.running():
            await until(lambda: decider.asked == [None])
            s.store.take_over(store.thaw([pb.SnapshotRecord(header=pb.SnapshotHeader(format=1, index=5, objects=0))]))
            await until(lambda: decider.asked == [None, None])

    asyncio.run(main())


def test_parts_are_limited_in_number_and_size() -> None:
    async def main() -> None:
        big = [task(f"t{number}") for number in range(4)]
        for row in big:
            row.status.message = "x" * (loops.BYTES_MAX // 2)
        s = Setting(
            Recorder(
                lambda view, now: plan.Plan(ops=[ops.create(row) for row in big if view.tasks.get(row.id) is None])
            )
        )
        async with s.running():
            await until(lambda: len(s.store.view().tasks) == 4)
        assert s.committer.sizes == [1, 1, 1, 1]

    asyncio.run(main())


def test_plans_merge() -> None:
    one, other = plan.Plan(reasons=["a"]), plan.Plan(reasons=["b"])
    one.wake(5.0, "x")
    other.wake(3.0, "x")
    other.wake(4.0, "y")
    one.merge(other)
    assert (one.wake_at, one.wake_keys, one.reasons) == (3.0, {"x": 3.0, "y": 4.0}, ["a", "b"])


def test_decisions_that_take_long_leave_half_of_the_time_to_others() -> None:
    async def main() -> None:
        def slow(view: views.View, now: float) -> plan.Plan:
            virtual_time.stall(0.2)
            return plan.Plan()

        decider = Recorder(slow)
        target = store.Store()
        committer = commit.LocalCommitter(target, virtual_time.LoopClock())
        loop = loops.LeaderLoop(
            store=target,
            committer=committer,
            deciders=[decider],
            clock=virtual_time.LoopClock(),
            rng=ids.seeded_rng(1),
        )
        running = asyncio.create_task(loop.run())
        number = 0
        while asyncio.get_running_loop().time() < 20.0:  # changes never cease
            number += 1
            await committer.commit([ops.create(task(f"t{number}"))])
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert 40 <= len(decider.asked) <= 51  # 20 s / (0.2 s + 0.2 s)
        assert decider.asked[-1] is not None
        assert len(decider.asked[-1]) > 10  # what came in the meantime is decided together

    virtual_time.run(main)
