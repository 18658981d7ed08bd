"""The leader's loop: runs the pure deciders on what changed, commits their plans, sleeps until the next due time.

It decides nothing itself. It keeps no state that a new leader would miss: it starts by deciding everything.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import prometheus_client
import structlog

from manager import plan
from manager.allocator import allocator
from manager.orchestrator import enforcer, reaper, rebalance, services, starting
from manager.scheduler import scheduler
from manager.store import commit, store, watching
from skep import clock as clocks
from skep import errors, ids, pb

log = structlog.get_logger(__name__)

OPS_MAX = 1000  # operations in one transaction; more waits in the next
OPS_MIN = 10  # a plan that keeps meeting conflicts is committed in ever smaller parts, down to this
BYTES_MAX = 512 * 1024  # of operations in one transaction: keeps a Raft entry quick to replicate
REASONS_MAX = 20  # of one plan in the log
KEYS_MAX = 10_000  # dirty keys kept one by one; beyond that, everything is decided
COALESCE_S = 0.01  # changes come in bursts: one pass for all that arrive within this, or ..
COALESCE_SHARE = 1.0  # .. within as much time as the last pass took to decide: agents and users get half of the time ..
COALESCE_MAX_S = 1.0  # .. but no longer than this
YIELD_S = 0.005  # after a decision that took so long others get a turn before the next decider
RETRY_S = 1.0  # pause of a decider after an exception, doubled up to
RETRY_MAX_S = 30.0
CONFLICT_PAUSE_S = 0.02  # lets the writer that was faster finish
_LOG_EVERY_S = 60.0  # the same error of the same decider in full


def default_deciders() -> list[plan.Decider]:
    """All deciders, in the order in which a new service passes through them."""
    return [
        enforcer.Enforcer(),
        services.Services(),
        rebalance.Rebalancer(),
        starting.Starter(),
        allocator.Allocator(),
        scheduler.Scheduler(),
        reaper.Reaper(),
    ]


class Metrics:
    """What the loop counts. One instance for each registry, also when leadership comes and goes."""

    def __init__(self, registry: prometheus_client.CollectorRegistry | None = None) -> None:
        names = ["decider"]
        self.passes = prometheus_client.Counter("skep_decider_passes", "Decisions taken.", names, registry=registry)
        self.ops = prometheus_client.Counter("skep_decider_ops", "Operations committed.", names, registry=registry)
        self.conflicts = prometheus_client.Counter(
            "skep_decider_conflicts", "Transactions refused because an object had moved.", names, registry=registry
        )
        self.failures = prometheus_client.Counter(
            "skep_decider_failures", "Exceptions in a decider.", names, registry=registry
        )
        self.duration = prometheus_client.Histogram(
            "skep_decider_duration_seconds", "Time of one decision, without its commit.", names, registry=registry,
            buckets=(0.0005, 0.002, 0.01, 0.05, 0.2, 1, 5),
        )  # fmt: skip


@dataclasses.dataclass(slots=True, eq=False)
class _Seat:
    """One decider and what it has to look at."""

    decider: plan.Decider
    everything: bool = True
    keys: dict[str, None] = dataclasses.field(default_factory=dict)
    due_keys: dict[str, float] = dataclasses.field(default_factory=dict)  # epoch seconds
    due: float | None = None  # everything again, epoch seconds
    chunk: int = OPS_MAX
    retry_at: float = 0.0  # loop time before which it rests
    retry_s: float = RETRY_S  # the next such rest
    logged_at: float | None = None  # loop time

    def mark(self, key: str) -> None:
        """Has `key` decided anew."""
        self.keys[key] = None
        if len(self.keys) > KEYS_MAX:
            self.mark_all()

    def mark_all(self) -> None:
        """Has everything decided anew."""
        self.everything = True
        self.keys.clear()

    def expire(self, now: float) -> None:
        """Marks whatever is due."""
        if self.due is not None and self.due <= now:
            self.due = None
            self.mark_all()
        for key in [key for key, at in self.due_keys.items() if at <= now]:
            del self.due_keys[key]
            self.mark(key)

    def take(self) -> frozenset[str] | None:
        """What to decide now, as the decider takes it; forgets it."""
        if self.everything:
            self.everything = False
            self.keys.clear()
            self.due_keys.clear()
            self.due = None
            return None
        taken = frozenset(self.keys)
        for key in self.keys:
            self.due_keys.pop(key, None)
        self.keys.clear()
        return taken

    def put_back(self, dirty: frozenset[str] | None) -> None:
        """The decision did not take effect: it is to be taken again."""
        if dirty is None:
            self.mark_all()
        else:
            for key in sorted(dirty):
                self.mark(key)

    def schedule(self, result: plan.Plan) -> None:
        """Notes when the plan wants to be thought over."""
        if result.wake_keys:
            self.due_keys.update(result.wake_keys)
        elif result.wake_at is not None:
            self.due = result.wake_at if self.due is None else min(self.due, result.wake_at)

    @property
    def waiting(self) -> bool:
        """Whether there is something to decide."""
        return self.everything or bool(self.keys)

    @property
    def next_due(self) -> float | None:
        """When something will be due, epoch seconds."""
        times = [*self.due_keys.values()] if self.due is None else [self.due, *self.due_keys.values()]
        return min(times, default=None)


class LeaderLoop:
    """Runs deciders against a store while this manager leads. One instance serves one `run`."""

    def __init__(
        self,
        *,
        store: store.Store,
        committer: commit.Committer,
        deciders: Sequence[plan.Decider],
        clock: clocks.Clock,
        rng: ids.Rng,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._committer = committer
        self._seats = [_Seat(decider, retry_s=RETRY_S) for decider in deciders]
        self._clock = clock
        self._rng = rng
        # Without metrics given, they are counted where nobody looks.
        self._metrics = metrics or Metrics(prometheus_client.CollectorRegistry())
        self._changed = asyncio.Event()
        self._deciding_s = 0.0  # of the last pass, without its commits

    async def run(self) -> None:
        """Decides until cancelled. Raises Unavailable when this manager can no longer write."""
        kinds = {kind: None for seat in self._seats for kind in sorted(seat.decider.kinds)}
        watch = self._store.watch(kinds, self._changed.set)
        try:
            while True:
                await self._rest()
                await self._pass(watch)
        finally:
            watch.close()

    # ---------------------------------------------------------------- when

    async def _rest(self) -> None:
        """Returns when there is something to decide."""
        if not self._changed.is_set():
            rest_s = self._rest_s()
            if rest_s is None or rest_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest_s):
                        await self._changed.wait()
        if self._changed.is_set():
            await asyncio.sleep(max(COALESCE_S, min(self._deciding_s * COALESCE_SHARE, COALESCE_MAX_S)))

    def _rest_s(self) -> float | None:
        """Seconds until some decider must run; None when only a change can make it."""
        now = self._clock.now()
        loop_now = asyncio.get_running_loop().time()
        times: list[float] = []
        for seat in self._seats:
            rests_s = max(0.0, seat.retry_at - loop_now)
            if seat.waiting:
                times.append(rests_s)
            elif seat.next_due is not None:
                times.append(max(rests_s, seat.next_due - now))
        return min(times, default=None)

    # ---------------------------------------------------------------- what

    async def _pass(self, watch: watching.Watch) -> None:
        """Every decider once, each on what the ones before it have changed."""
        self._deciding_s = 0.0
        for seat in self._seats:
            self._collect(watch)
            seat.expire(self._clock.now())
            if not seat.waiting or asyncio.get_running_loop().time() < seat.retry_at:
                continue
            dirty = seat.take()
            began = asyncio.get_running_loop().time()
            result = self._decide(seat, dirty)
            took_s = asyncio.get_running_loop().time() - began
            self._deciding_s += took_s
            if took_s > YIELD_S and (result is None or not result.ops):  # a plan is not kept waiting: it would be stale
                await asyncio.sleep(0)
            if result is None:
                continue
            if not await self._commit(seat, result):
                seat.put_back(dirty)
                await asyncio.sleep(CONFLICT_PAUSE_S)

    def _collect(self, watch: watching.Watch) -> None:
        """Hands out what changed since the last call."""
        self._changed.clear()
        try:
            changes = watch.take()
        except watching.Lagged:
            log.warning("decider.lagged")
            for seat in self._seats:
                seat.mark_all()
            return
        if not changes:
            return
        view = self._store.view()
        for seat in self._seats:
            if seat.everything:
                continue
            with self._guarded(seat):
                for change in changes:
                    if change.kind in seat.decider.kinds:
                        for key in seat.decider.touches(view, change):
                            seat.mark(key)

    def _decide(self, seat: _Seat, dirty: frozenset[str] | None) -> plan.Plan | None:
        """The decider's plan; None when it raised."""
        name = seat.decider.name
        started = asyncio.get_running_loop().time()
        with self._guarded(seat):
            result = seat.decider.decide(self._store.view(), self._clock.now(), self._rng, dirty)
            self._metrics.passes.labels(name).inc()
            self._metrics.duration.labels(name).observe(asyncio.get_running_loop().time() - started)
            seat.schedule(result)
            for reason in result.reasons[:REASONS_MAX]:
                log.debug("decider.reason", decider=name, reason=reason)
            for fault in result.faults[:REASONS_MAX]:
                self._metrics.failures.labels(name).inc()
                log.error("decider.fault", decider=name, fault=fault)
            return result
        return None

    @contextlib.contextmanager
    def _guarded(self, seat: _Seat) -> Iterator[None]:
        """One decider's exception is its own: it rests, then decides everything again; the others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, the other deciders must run
            self._failed(seat, error)

    def _failed(self, seat: _Seat, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        name = seat.decider.name
        self._metrics.failures.labels(name).inc()
        if seat.logged_at is None or now - seat.logged_at >= _LOG_EVERY_S:
            seat.logged_at = now
            log.error("decider.failed", decider=name, retry_s=seat.retry_s, exc_info=error)
        else:
            log.warning("decider.failed_again", decider=name, error=str(error), retry_s=seat.retry_s)
        seat.mark_all()
        seat.retry_at = now + seat.retry_s
        seat.retry_s = min(RETRY_MAX_S, seat.retry_s * 2)

    # ---------------------------------------------------------------- so be it

    async def _commit(self, seat: _Seat, result: plan.Plan) -> bool:
        """Commits a plan in parts; whether all of it took effect. Raises Unavailable.

        Parts are safe because deciders are level-triggered and order their operations so that every prefix is: what
        is missing after an interruption is decided again from the store.
        """
        name = seat.decider.name
        while result.ops:
            part = _first_part(result.ops, seat.chunk)
            try:
                await self._committer.commit(part)
            except errors.Conflict as error:
                self._metrics.conflicts.labels(name).inc()
                seat.chunk = max(OPS_MIN, min(seat.chunk, len(part)) // 2)
                log.debug("decider.conflict", decider=name, error=error.message, ops=len(part))
                return False
            except errors.Invalid as error:  # refused for what it says or for its size: a fault of the decider
                self._failed(seat, error)
                return True
            self._metrics.ops.labels(name).inc(len(part))
            seat.chunk = min(OPS_MAX, seat.chunk * 2)
            del result.ops[: len(part)]
        seat.retry_s = RETRY_S
        return True


def _first_part(ops: Sequence[pb.Op], count_max: int) -> list[pb.Op]:
    """As many operations from the front as one transaction takes, and at least one."""
    part: list[pb.Op] = []
    size_bytes = 0
    for op in ops[:count_max]:
        size_bytes += op.ByteSize()
        if part and size_bytes > BYTES_MAX:
            break
        part.append(op)
    return part
