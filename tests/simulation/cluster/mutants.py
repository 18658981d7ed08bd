"""Known faults of managers and agents, put back one at a time, to show that the simulation of clusters finds them."""

import asyncio
import contextlib
import dataclasses
from typing import Any

from agent import worker
from agent.runtime import base
from agent.tasks import lease
from agent.tasks import machine as task_machine
from manager.dispatcher import statuses
from manager.orchestrator import handover, leaving, starting, update_settings
from manager.raft import node
from manager.scheduler import filters, nodes
from manager.store import ops, store
from skep import pb, stamps
from tests.simulation import mutants


def _unchecked(self: Any, op: Any, transaction: Any) -> Any:
    """A transaction takes effect whatever it was based on."""
    kind = op.object.WhichOneof("kind")
    stored = self._tables[kind].rows.get(getattr(op.object, kind).id)
    waved_through = pb.Op()
    waved_through.CopyFrom(op)
    if stored is not None:
        waved_through.based_on = stored.version.index
    return _APPLY_OP(self, waved_through, transaction)


def _backwards(self: Any, view: Any, batch: Any) -> Any:
    """Reports are written as they come in, also older ones."""
    updates = []
    for task_id, status in batch.items():
        stored = view.tasks.get(task_id)
        if stored is not None and stored.status != status:
            wanted = pb.Task()
            wanted.CopyFrom(stored)
            wanted.status.CopyFrom(status)
            wanted.status.applied_at.CopyFrom(stamps.stamp(self._clock.now()))
            updates.append(ops.update(wanted))
    return updates


def _anything(stored: Any, row: Any) -> None:
    """Tasks may go back."""


def _impatient(state: Any, other: Any, waiting: Any) -> float:
    """What replaces starts beside what it replaces."""
    return 0.0


def _forgetful(self: Any) -> None:
    """An agent that starts again knows nothing of what runs on its machine."""


async def _blind(self: Any) -> None:
    """What nobody has assigned is left alone."""


def _restarting(now: Any) -> Any:
    """An agent starts what has ended once more, instead of saying so."""
    if now.observation.phase is base.Phase.EXITED and now.desired < task_machine.SHUTDOWN:
        return task_machine.Step(now.state, task_machine.Action.START)
    return _STARTED(now)


def _anywhere(node_object: Any) -> str:
    """Nodes take tasks, whatever is wished of them."""
    return ""


def _everyone(state: Any) -> list[str]:
    """Nodes take tasks, whatever is wished of them."""
    return [row.id for row in state.nodes]


def _crowded(load: Any, service_id: str, need: Any) -> bool:
    """There is always room."""
    return True


def _all_at_once(spec: Any, state: Any) -> Any:
    """Updates know no parallelism."""
    found = _SETTINGS(spec, state)
    return dataclasses.replace(found, parallelism=0)


def _hasty(now: Any, keeper: Any, running: Any) -> bool:
    """What runs may go before its successor is there."""
    return True


async def _no_barrier(self: Any) -> None:
    """Reads are answered by whoever believes to lead."""
    self._leading()


async def _too_early(self: Any, operations: Any) -> int:
    """A change counts as done once it is proposed."""
    running = self._leading()
    transaction = pb.Transaction(ops=operations, at=stamps.stamp(self._clock.now()))
    running.proposals.add(transaction.SerializeToString()).add_done_callback(lambda done: done.exception())
    running.wake()
    return 0


def _never(state: Any, task: Any, wished: Any) -> float:
    """Tasks on lost nodes are waited for, whatever their service says."""
    return _FAR_OFF_S


def _endless(self: Any, lease_s: float) -> bool:
    """An agent lets its tasks run on, whoever it has not heard of."""
    return False


def _at_once(state: Any, task: Any) -> bool:
    """A node that is down counts as one whose tasks have stopped."""
    return True


def _anew(self: Any) -> None:
    """An agent that starts again makes its containers anew."""
    for known in self._record.tasks():
        status = pb.TaskStatus()
        status.CopyFrom(known.status)
        if task_machine.STARTING <= status.state <= task_machine.RUNNING:
            status.state = task_machine.ACCEPTED
            self._making_anew = asyncio.ensure_future(_removed(self._runtime, known.task.id))
        self._drive(known.task, self._revisions[known.task.revision_id].spec, status)


async def _removed(runtime: Any, task_id: str) -> None:
    with contextlib.suppress(base.TaskTemporary):
        await runtime.remove(task_id)


_APPLY_OP = store.Store._apply_op
_STARTED = task_machine._started
_SETTINGS = update_settings.of
_FAR_OFF_S = 2e9  # since the epoch

MUTANTS: dict[str, mutants.Patches] = {
    "versions are not checked": ((store.Store, "_apply_op", _unchecked),),
    "statuses go backwards": ((statuses.StatusWriter, "_updates", _backwards), (store, "_check_forward", _anything)),
    "successors do not wait": ((starting, "_gone_at", _impatient),),
    "agents forget what runs": ((worker.Worker, "_resume", _forgetful), (worker.Worker, "_sweep", _blind)),
    "ended tasks are started again": ((task_machine, "_started", _restarting),),
    "drained nodes get tasks": ((filters, "unready", _anywhere), (nodes, "takers", _everyone)),
    "nodes are overcommitted": ((filters, "room", _crowded),),
    "updates know no parallelism": ((update_settings, "of", _all_at_once),),
    "old tasks go too early": ((handover, "_ready", _hasty),),
    "reads without a barrier": ((node.RaftNode, "barrier", _no_barrier),),
    "writes are acknowledged too early": ((node.RaftNode, "commit", _too_early),),
    "what is lost is not replaced": ((leaving, "replaceable_at", _never),),
    "agents ignore their leases": ((lease.Lease, "over", _endless),),
    "silence is not waited for": ((leaving, "certainly_stopped", _at_once),),
    "agents make anew what runs": ((worker.Worker, "_resume", _anew),),
}
