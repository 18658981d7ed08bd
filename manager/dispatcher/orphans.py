"""Tasks on nodes that have been down for a day are given up: nobody will ever report on them.

Level-triggered: the store says since when a node is down, so a change of leader starts no clock anew.
"""

import asyncio

import structlog

from manager.store import commit, ops, store
from skep import clock, errors, pb, stamps

log = structlog.get_logger(__name__)

DOWN_S = 24 * 3600.0
LOOK_S = 60.0  # between two looks
BATCH_MAX = 1000  # tasks per transaction


class Orphans:
    """Marks tasks ORPHANED."""

    def __init__(self, *, target: store.Store, committer: commit.Committer, clock: clock.Clock) -> None:
        self._store = target
        self._committer = committer
        self._clock = clock

    async def run(self) -> None:
        """Looks for as long as it runs."""
        while True:
            await asyncio.sleep(LOOK_S)
            updates = self._updates()
            if not updates:
                continue
            try:
                await self._committer.commit(updates)
            except (errors.Conflict, errors.Unavailable) as error:
                log.warning("orphans.not_written", error=str(error))
            else:
                log.warning("orphans.written", tasks=len(updates))

    def _updates(self) -> list[pb.Op]:
        now = self._clock.now()
        view = self._store.view()
        updates: list[pb.Op] = []
        for node in view.nodes:
            # The node's last change is its going down or something later, which only makes this wait longer.
            if node.status.state != pb.NODE_STATE_DOWN or now - stamps.seconds(node.updated_at) < DOWN_S:
                continue
            for task in view.tasks.where("node", node.id):
                if not pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING:
                    continue
                wanted = pb.Task()
                wanted.CopyFrom(task)
                wanted.status.state = pb.TASK_STATE_ORPHANED
                wanted.status.timestamp.CopyFrom(stamps.stamp(now))
                wanted.status.applied_at.CopyFrom(stamps.stamp(now))
                updates.append(ops.update(wanted))
                if len(updates) >= BATCH_MAX:
                    return updates
        return updates
