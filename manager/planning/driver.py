"""Runs deciders on a private store to a fixed point, as the leader's loop would, with model agents and model time.

Decisions come at once, agents act when the managers have come to rest, and time jumps to the next moment that a
decider waits for when nobody has anything left to do. Everything is a function of its arguments.
"""

import dataclasses
from collections.abc import Callable, Sequence

from manager import plan
from manager.orchestrator import tasks
from manager.planning import agents, silence
from manager.store import store, views, watching
from skep import errors, ids, pb, stamps

HORIZON_S = 24 * 3600.0  # what waits for longer is not waited for
IDLE_WAKES_MAX = 2000  # moments in a row at which nothing was to be done after all
PASSES_MAX = 100  # of all deciders without anything from outside: beyond that they quarrel, which is a bug
ROWS_MAX = 10_000_000  # rows looked at, roughly: bounds the time that a plan may take to some seconds
ROUNDS_MIN, ROUNDS_MAX = 50, 20_000
WATCH_MAX = 10_000_000  # changes between two looks: never lags
_PENDING = str(pb.TASK_STATE_PENDING)
NOT_AWAITED = frozenset({"reaper"})  # deciders whose due moments change nothing that a plan tells of


@dataclasses.dataclass(slots=True, eq=False)
class _Seat:
    """One decider and what it has to look at."""

    decider: plan.Decider
    everything: bool
    keys: dict[str, None] = dataclasses.field(default_factory=dict)
    due_keys: dict[str, float] = dataclasses.field(default_factory=dict)
    due: float | None = None

    def take(self, now: float) -> frozenset[str] | None:
        """What to decide now; empty for nothing, None for everything."""
        if self.everything or (self.due is not None and self.due <= now):
            self.everything, self.due = False, None
            self.keys.clear()
            self.due_keys.clear()
            return None
        for key in [key for key, at in self.due_keys.items() if at <= now]:
            self.keys[key] = None
        taken = frozenset(self.keys)
        for key in self.keys:
            self.due_keys.pop(key, None)
        self.keys.clear()
        return taken

    def schedule(self, result: plan.Plan) -> None:
        """Notes when the plan wants to be thought over."""
        if result.wake_keys:
            self.due_keys.update(result.wake_keys)
        elif result.wake_at is not None:
            self.due = result.wake_at if self.due is None else min(self.due, result.wake_at)

    def next_due(self) -> float | None:
        """When something is due, epoch seconds."""
        return min([*self.due_keys.values(), *([] if self.due is None else [self.due])], default=None)


class Driver:
    """One run, or several one after another."""

    def __init__(
        self,
        target: store.Store,
        deciders: Sequence[plan.Decider],
        *,
        now: float,
        rng: ids.Rng,
    ) -> None:
        self.store = target
        self.now = now
        self.complete = True  # False: cut short, the outcome is only a part
        self.active = False  # something was decided or reported
        self.stuck: dict[str, tuple[str, str]] = {}  # slot: task that had no node when only time could help, and why
        self._started = now
        self._rng = rng
        self.observe: Callable[[], None] = lambda: None  # called when the managers rest, before the agents act
        self._seats = [_Seat(decider, everything=True) for decider in deciders]
        self._watch = target.watch((), lambda: None, limit=WATCH_MAX)
        view = target.view()
        self._silence = silence.Silence(view)
        self._candidates: dict[str, None] = {
            task.id: None for task in view.tasks if task.status.state <= pb.TASK_STATE_RUNNING and task.node_id
        }
        self._rounds_left = max(
            ROUNDS_MIN, min(ROUNDS_MAX, ROWS_MAX // (1 + len(view.tasks) + len(view.nodes) + len(view.services)))
        )

    @property
    def took_s(self) -> float:
        """Model time spent: delays and monitoring, not pulling and starting."""
        return self.now - self._started

    def apply(self, operations: Sequence[pb.Op]) -> None:
        """Commits one transaction of the caller's. Raises the store's refusal."""
        transaction = pb.Transaction(ops=operations, at=stamps.stamp(self.now))
        (refusal,) = self.store.apply(self.store.index + 1, [transaction])
        if refusal is not None:
            raise refusal

    def _own(self, operations: Sequence[pb.Op]) -> None:
        """The same with operations that nobody else will look at again: they need no copy."""
        refusal = self.store.apply_local(operations, stamps.stamp(self.now))
        if refusal is not None:
            raise refusal

    def run(self) -> None:
        """Goes on until nothing is left to do, or as far as the limits allow (`complete`)."""
        idle = 0
        while True:
            if self._decide():
                idle = 0
            self.observe()
            self._rounds_left -= 1
            if self._rounds_left < 0:
                self.complete = False
                return
            if self._agents():
                idle = 0
                continue
            due = self._next_due()
            if due is None:
                return
            self._note_stuck()
            idle += 1
            if idle > IDLE_WAKES_MAX or due > self._started + HORIZON_S:
                self.complete = False
                return
            self.now = max(self.now, due)

    def _decide(self) -> bool:
        """Every decider in turn until none has anything to do; whether any had."""
        acted = False
        for _ in range(PASSES_MAX):
            acted_now = False
            for seat in self._seats:
                self._collect()
                dirty = seat.take(self.now)
                if dirty is not None and not dirty:
                    continue
                result = seat.decider.decide(self.store.view(), self.now, self._rng, dirty)
                seat.schedule(result)
                if result.ops:
                    self._own(result.ops)
                    acted_now = True
            if not acted_now:
                self.active |= acted
                return acted
            acted = True
        raise errors.Bug("the deciders never come to rest on this state")

    def _collect(self) -> None:
        changes = self._watch.take()
        if not changes:
            return
        view = self.store.view()
        for change in changes:
            if change.kind == "task" and change.new is not None:
                self._candidates[change.id] = None
            self._silence.look(change)
        for seat in self._seats:
            if not seat.everything:
                self._mark(seat, view, changes)

    @staticmethod
    def _mark(seat: _Seat, view: views.View, changes: Sequence[watching.Change]) -> None:
        for change in changes:
            if change.kind in seat.decider.kinds:
                for key in seat.decider.touches(view, change):
                    seat.keys[key] = None

    def _agents(self) -> bool:
        """Every agent takes its tasks one step further; whether any did."""
        chosen, self._candidates = self._candidates, {}
        view = self.store.view()
        found = agents.reports(view, chosen, self.now) + self._silence.reports(view, self.now)
        if not found:
            return False
        self._own(found)
        self.active = True
        return True

    def _note_stuck(self) -> None:
        for task in self.store.view().tasks.where("state", _PENDING):
            if tasks.runnable(task) and task.status.err:
                self.stuck[tasks.slot_key(task)] = (task.id, task.status.err)

    def _next_due(self) -> float | None:
        times = [
            due for seat in self._seats if seat.decider.name not in NOT_AWAITED and (due := seat.next_due()) is not None
        ]
        counted = self._silence.next_due(self.store.view())
        return min(times if counted is None else [*times, counted], default=None)
