"""Agents' reports into the store: the latest of each task, from all agents together, in few transactions."""

import asyncio

import structlog

from manager.dispatcher import metrics
from manager.orchestrator import enforcer
from manager.store import commit, ops, store, views
from skep import clock, errors, pb, stamps

log = structlog.get_logger(__name__)

DELAY_S = 0.03  # reports that come in together are written together
BATCH_MAX = 1000  # per transaction
RETRY_S = 0.25  # after Unavailable, while this manager leads

_AGENTS_OWN = range(pb.TASK_STATE_ACCEPTED, pb.TASK_STATE_REJECTED + 1)


class StatusWriter:
    """Collects reports and writes them. What it has not written when it is stopped, agents report again."""

    def __init__(
        self,
        *,
        target: store.Store,
        committer: commit.Committer,
        clock: clock.Clock,
        metrics: metrics.Metrics,
    ) -> None:
        self._store = target
        self._committer = committer
        self._clock = clock
        self._metrics = metrics
        self._pending: dict[str, pb.TaskStatus] = {}  # by task ID, of tasks in the store: bounded by their number
        self._filled = asyncio.Event()

    def forget(self) -> None:
        """Drops what has not been written: agents report to the next leader again."""
        self._pending.clear()

    def offer(self, node_id: str, report: pb.StatusReport) -> None:
        """Takes a report of a node. What it may not say, or says too late, is dropped."""
        view = self._store.view()
        for update in report.updates:
            task = view.tasks.get(update.task_id)
            if task is None:
                self._metrics.statuses.labels("unknown_task").inc()
            elif task.node_id != node_id:
                self._metrics.statuses.labels("denied").inc()
                log.warning("status.denied", node=node_id, task=update.task_id, belongs_to=task.node_id)
            elif update.status.state not in _AGENTS_OWN:
                self._metrics.statuses.labels("denied").inc()
                log.warning("status.not_the_agents", node=node_id, task=update.task_id, state=update.status.state)
            elif not self._outdated(update):
                self._pending[update.task_id] = update.status
        if self._pending:
            self._filled.set()

    def _outdated(self, update: pb.TaskStatusUpdate) -> bool:
        waiting = self._pending.get(update.task_id)
        return waiting is not None and waiting.state > update.status.state

    async def run(self) -> None:
        """Writes for as long as it runs."""
        limit = BATCH_MAX
        while True:
            await self._filled.wait()
            await asyncio.sleep(DELAY_S)
            while self._pending:
                limit = await self._write(limit)
            self._filled.clear()

    async def _write(self, limit: int) -> int:
        """Writes up to `limit` statuses; returns the limit for the next attempt."""
        batch = dict(list(self._pending.items())[:limit])
        updates = self._updates(self._store.view(), batch)
        try:
            if updates:
                await self._committer.commit(updates)
        except errors.Conflict:
            # Somebody wrote one of these tasks meanwhile. Smaller transactions meet fewer others.
            self._metrics.statuses.labels("conflict").inc()
            return max(len(batch) // 2, 1)
        except errors.Unavailable:
            await asyncio.sleep(RETRY_S)
            return limit
        except errors.Invalid:
            if len(batch) > 1:
                return len(batch) // 2  # too large for one transaction
            log.exception("status.refused", task=next(iter(batch)))
        self._metrics.statuses.labels("written").inc(len(updates))
        for task_id, status in batch.items():
            if self._pending.get(task_id) is status:
                del self._pending[task_id]
        return min(limit * 2, BATCH_MAX)

    def _updates(self, view: views.View, batch: dict[str, pb.TaskStatus]) -> list[pb.Op]:
        applied_at = stamps.stamp(self._clock.now())
        updates: list[pb.Op] = []
        for task_id, status in batch.items():
            stored = view.tasks.get(task_id)
            if stored is None or status.state < stored.status.state:
                self._metrics.statuses.labels("outdated").inc()
                continue
            wanted = pb.Task()
            wanted.CopyFrom(stored)
            wanted.status.CopyFrom(status)
            enforcer.in_swarm_words(wanted)
            wanted.status.applied_at.CopyFrom(stored.status.applied_at)
            if wanted.status == stored.status:
                continue  # reported again, as every new session does
            wanted.status.applied_at.CopyFrom(applied_at)
            if status.state == pb.TASK_STATE_RUNNING and not wanted.HasField("running_at"):
                wanted.running_at.CopyFrom(applied_at)
            updates.append(ops.update(wanted))
        return updates
