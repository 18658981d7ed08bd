"""What really runs: every engine tells, and no slot may have two tasks running beyond what its update order allows.

And no task is ever started a second time: what ended is replaced, what runs is left alone, whatever its agent goes
through. But for a power cut: what an agent has not yet written to its disk for good, it may do again.

How many tasks of one slot of a replicated service, or of a global one on a node, may run at the same moment, as the
engines see it:

- with order stop-first: one;
- with order start-first, or while one of them is on the move (a drain, rebalancing): two that are wished to run (the
  old and the new one), besides those told to stop.

Not counted, because nobody could know better:

- a task *written off*: at some entry it was wished to stop while its node was DOWN or deleted. The managers wait for
  nothing on such a node; when it comes back its agent stops the task.
- a task wished REMOVE: its slot was scaled away or its service deleted. A new slot of the same number waits for nobody.
- a task that its engine has lied about: it said that it had stopped it, or that it was gone.
- a task on a machine that stands still, or did until just now: nobody could stop it.
- a task that was told to stop a minute (the Starter's patience, by the leaders' own clocks)
  before its successor was let go.

Tasks of a service that must never run twice (at-most-once) are excused by their own engine's lies and hangs and
machine's pauses alone, and by whoever removes their node by force: that says that they do not run any more
(docs/service-modes.md).
"""

import asyncio
from collections.abc import Callable, Sequence

from agent.runtime import memory
from manager.orchestrator import starting
from skep import pb, policies
from tests.simulation import shadow
from tests.simulation.cluster import ledger

CATCHING_UP_S = 15.0  # after a pause: until a machine has stopped what it is told to, or by its clock should have
MARGIN_S = 1.0  # stamps of different leaders' clocks


class Running:
    """All tasks that run, on all engines."""

    def __init__(self, kept: ledger.Ledger) -> None:
        self._ledger = kept
        self.engines: dict[str, memory.MemoryRuntime] = {}
        self.starts = 0
        self._begun: dict[str, str] = {}  # tasks that were started, and where
        self.lied_about: dict[str, None] = {}  # tasks
        self._out_of_reach: dict[str, float] = {}  # tasks nobody could stop, and until when
        self.changed: Callable[[], None] = lambda: None  # called after something started or ended

    def tasks(self) -> dict[str, str]:
        """Machine by task ID."""
        return {task_id: name for name, engine in self.engines.items() for task_id in engine.running()}

    def leased(self) -> list[str]:
        """Machines that run a task that must never run twice."""
        found: dict[str, None] = {}
        for task_id, machine in self.tasks().items():
            task = self._ledger.get("task", task_id)
            if task is not None and self._must_never_run_twice(task):
                found[machine] = None
        return list(found)

    def started(self, machine: str, task_id: str) -> None:
        """An engine has just started a task."""
        self.starts += 1
        shadow.require(task_id not in self._begun, f"{machine} starts task {task_id} a second time")
        self._begun[task_id] = machine
        self.changed()
        task = self._ledger.get("task", task_id)
        if task is None or not self._place(task):
            return
        self._check_at_most_once(machine, task)
        counted: list[pb.Task] = []
        for other_id in self.tasks():
            other = self._ledger.get("task", other_id)
            if other is None or self._place(other) != self._place(task):
                continue
            if other.node_id and not self._excused(other, task):
                counted.append(other)
        overlap = self._order(task) == pb.UPDATE_ORDER_START_FIRST or any(each.move for each in counted)
        if overlap:
            counted = [each for each in counted if each.desired_state <= pb.TASK_STATE_COMPLETE]
        allowed = 2 if overlap else 1
        place = f"slot {task.service_name}.{task.slot or task.node_id}"
        shadow.require(
            len(counted) <= allowed,
            f"{place} runs {len(counted)} times when {machine} starts {task_id}: "
            + "; ".join(f"{each.id} on {each.node_id}, {ledger.states(each)}" for each in counted),
        )

    def _place(self, task: pb.Task) -> tuple[str, int, str] | None:
        """What no two tasks may have at the same moment: a slot of a replicated service, a node of a global one."""
        if task.slot:
            return task.service_id, task.slot, ""
        revision = self._ledger.get("revision", task.revision_id)
        if revision is None or not revision.spec.mode.HasField("global"):
            return None
        return task.service_id, 0, task.node_id

    def _check_at_most_once(self, machine: str, task: pb.Task) -> None:
        if not task.slot or not self._must_never_run_twice(task):
            return
        for other_id, where in self.tasks().items():
            other = self._ledger.get("task", other_id)
            if other is None or other.id == task.id or (other.service_id, other.slot) != (task.service_id, task.slot):
                continue
            shadow.require(
                self._unstoppable(other.id) or self._ledger.get("node", other.node_id) is None,
                f"{task.service_name}.{task.slot} must never run twice: {task.id} starts on {machine} while "
                f"{other.id} runs on {where}, {ledger.states(other)}",
            )

    def _must_never_run_twice(self, task: pb.Task) -> bool:
        revision = self._ledger.get("revision", task.revision_id)
        return revision is not None and policies.lease_s(revision.spec.labels) is not None

    def lost_power(self, machine: str) -> None:
        """Its agent may have forgotten that it started something."""
        self._begun = {task_id: name for task_id, name in self._begun.items() if name != machine}

    def out_of_reach(self, task_ids: Sequence[str], *, until: float) -> None:
        """Nobody can stop these for a while, whoever runs them."""
        for task_id in task_ids:
            self._out_of_reach[task_id] = max(until + CATCHING_UP_S, self._out_of_reach.get(task_id, 0.0))

    def _unstoppable(self, task_id: str) -> bool:
        """Nobody could know that it still runs, or do anything about it."""
        true_time = asyncio.get_running_loop().time()
        return task_id in self.lied_about or self._out_of_reach.get(task_id, 0.0) > true_time

    def ended(self) -> None:
        """Something does not run any more."""
        self.changed()

    def _excused(self, other: pb.Task, starting_task: pb.Task) -> bool:
        if self._unstoppable(other.id):
            return True
        if other.id in self._ledger.written_off or other.desired_state == pb.TASK_STATE_REMOVE:
            return True
        if other.id == starting_task.id or other.desired_state <= pb.TASK_STATE_COMPLETE:
            return False
        waited_s = self._ledger.waited_s.get(starting_task.id, {}).get(other.id, 0.0)
        return waited_s >= starting.PATIENCE_S - MARGIN_S

    def _order(self, task: pb.Task) -> pb.UpdateOrder.ValueType:
        service = self._ledger.get("service", task.service_id)
        revision = self._ledger.get("revision", task.revision_id if service is None else service.revision_id)
        return pb.UPDATE_ORDER_STOP_FIRST if revision is None else revision.spec.update.order
