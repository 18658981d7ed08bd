"""What really runs: every engine tells, and no slot may have two tasks running beyond what its update order allows.

How many tasks of one slot of a replicated service may run at the same moment, as the engines see it:

- with order stop-first: one;
- with order start-first, or while one of them is on the move (a drain, rebalancing): two that are wished to run (the
  old and the new one), besides those told to stop.

Not counted, because nobody could know better:

- a task *written off*: at some entry it was wished to stop while its node was DOWN or deleted. The managers wait for
  nothing on such a node; when it comes back its agent stops the task.
- a task wished REMOVE: its slot was scaled away or its service deleted. A new slot of the same number waits for nobody.
- a task that was told to stop a minute (the Starter's patience, by the leaders' own clocks)
  before its successor was let go.
"""

from typing import Any

from typing_extensions import override

from agent.runtime import memory
from manager.orchestrator import starting
from skep import pb, stamps
from tests.simulation import shadow
from tests.simulation.cluster import ledger

MARGIN_S = 1.0  # stamps of different leaders' clocks


class Running:
    """All tasks that run, on all engines."""

    def __init__(self, kept: ledger.Ledger) -> None:
        self._ledger = kept
        self.engines: dict[str, WatchedRuntime] = {}
        self.starts = 0

    def tasks(self) -> dict[str, str]:
        """Machine by task ID."""
        return {task_id: name for name, engine in self.engines.items() for task_id in engine.running()}

    def started(self, machine: str, task_id: str) -> None:
        """An engine has just started a task."""
        self.starts += 1
        task = self._ledger.get("task", task_id)
        if task is None or not task.slot:
            return
        counted: list[pb.Task] = []
        for other_id in self.tasks():
            other = self._ledger.get("task", other_id)
            if other is None or (other.service_id, other.slot) != (task.service_id, task.slot):
                continue
            if other.node_id and not self._excused(other, task):
                counted.append(other)
        overlap = self._order(task) == pb.UPDATE_ORDER_START_FIRST or any(each.move for each in counted)
        if overlap:
            counted = [each for each in counted if each.desired_state <= pb.TASK_STATE_COMPLETE]
        allowed = 2 if overlap else 1
        shadow.require(
            len(counted) <= allowed,
            f"slot {task.service_name}.{task.slot} runs {len(counted)} times when {machine} starts {task_id}: "
            + "; ".join(f"{each.id} on {each.node_id}, {ledger._states(each)}" for each in counted),
        )

    def _excused(self, other: pb.Task, starting_task: pb.Task) -> bool:
        if other.id in self._ledger.written_off or other.desired_state == pb.TASK_STATE_REMOVE:
            return True
        if other.id == starting_task.id or other.desired_state <= pb.TASK_STATE_COMPLETE:
            return False
        let_go = self._ledger.started_at.get(starting_task.id)
        told = max(stamps.seconds(starting_task.created_at), stamps.seconds(other.updated_at))
        return let_go is not None and let_go - told >= starting.PATIENCE_S - MARGIN_S

    def _order(self, task: pb.Task) -> pb.UpdateOrder.ValueType:
        service = self._ledger.get("service", task.service_id)
        revision = self._ledger.get("revision", task.revision_id if service is None else service.revision_id)
        return pb.UPDATE_ORDER_STOP_FIRST if revision is None else revision.spec.update.order


class WatchedRuntime(memory.MemoryRuntime):
    """The memory runtime, which tells what it starts."""

    def __init__(self, watcher: Running, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._watcher = watcher
        watcher.engines[self._node_id] = self

    @override
    def _run(self, task_id: str, entry: memory._Entry) -> None:
        super()._run(task_id, entry)
        self._watcher.started(self._node_id, task_id)
