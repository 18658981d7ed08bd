"""The store as the core's state machine: applies batches, is replaced by snapshots, has snapshots taken."""

import asyncio
from collections.abc import Callable, Sequence

from manager.raft import log, offload, snapshot
from manager.store import store
from skep import errors, pb


class StoreMachine:
    """Between core and store. Snapshots are encoded from a frozen view, outside the event loop."""

    def __init__(
        self,
        target: store.Store,
        backend: log.Log,
        worker: offload.Offload,
    ) -> None:
        self._store = target
        self._log = backend
        self._worker = worker
        self.finished: Callable[[asyncio.Task[snapshot.Snapshot]], None] = lambda _: (
            None
        )  # a snapshot was stored, or not
        self._running: asyncio.Task[snapshot.Snapshot] | None = None

    def apply(self, index: int, body: bytes) -> tuple[int, Sequence[errors.SkepError | None]]:
        """The index, and for each transaction in the batch its refusal or None."""
        encoded = pb.Batch.FromString(body).transactions
        return index, self._store.apply(index, [pb.Transaction.FromString(each) for each in encoded])

    def restore(self, taken: snapshot.Snapshot, body: Sequence[bytes] | None) -> None:
        """Replaces the store's content."""
        if body is not None:
            self._store.restore(snapshot.decode(body))
            return
        reader = self._log.open_snapshot(taken)
        try:
            self._store.restore(snapshot.decode(reader.blocks()))
        finally:
            reader.close()

    def take_snapshot(self, wanted: snapshot.Snapshot) -> None:
        """Freezes the store now and stores the picture in the background."""
        frozen = self._store.freeze()

        def save() -> snapshot.Snapshot:
            return self._log.save_snapshot(wanted, snapshot.reblock(snapshot.encode(frozen.records())))

        self._running = asyncio.get_running_loop().create_task(self._worker.run(offload.SNAPSHOT, save))
        self._running.add_done_callback(self.finished)

    async def stop(self) -> None:
        """Waits for a snapshot in the making, or gives it up."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
