"""The store as the core's state machine: applies batches, is replaced by snapshots, has snapshots taken.

Snapshots are large. Everything about them that takes long runs outside the event loop: encoding one from a frozen view,
storing and decoding a received one, freeing what it replaces.
"""

import asyncio
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from manager.raft import log, offload, snapshot
from manager.store import store
from skep import errors, pb

T = TypeVar("T")
Stored = asyncio.Task[snapshot.Snapshot]
Received = asyncio.Task[tuple[snapshot.Snapshot, store.Content | None]]


class StoreMachine:
    """Between core and store. `stored` and `received` are called with what was begun, when it is done or has failed."""

    def __init__(
        self,
        target: store.Store,
        backend: log.Log,
        worker: offload.Offload,
    ) -> None:
        self.stored: Callable[[Stored], None] = lambda _: None
        self.received: Callable[[Received], None] = lambda _: None
        self._store = target
        self._log = backend
        self._worker = worker
        self._running: set[asyncio.Task[Any]] = set()

    def apply(self, index: int, body: bytes) -> tuple[int, Sequence[errors.SkepError | None]]:
        """The index, and for each transaction in the batch its refusal or None."""
        encoded = pb.Batch.FromString(body).transactions
        return index, self._store.apply(index, [pb.Transaction.FromString(each) for each in encoded])

    async def load(self, taken: snapshot.Snapshot) -> None:
        """Fills the store from the snapshot on disk, before anything is applied. Raises Damaged."""

        def decode() -> store.Content:
            reader = self._log.open_snapshot(taken)
            try:
                return store.thaw(snapshot.decode(reader.blocks()))
            finally:
                reader.close()

        self._store.take_over(await self._worker.run(offload.SNAPSHOT, decode))

    def receive(self, taken: snapshot.Snapshot, blocks: Sequence[bytes]) -> None:
        """Begins to store and decode a received snapshot; None for its content says that it was damaged on the way."""

        def keep() -> tuple[snapshot.Snapshot, store.Content | None]:
            if functools.reduce(lambda digest, block: zlib.crc32(block, digest), blocks, 0) != taken.digest:
                return taken, None
            self._log.save_snapshot(taken, blocks)
            return taken, store.thaw(snapshot.decode(blocks))

        self._begin(keep).add_done_callback(self.received)

    def install(self, content: store.Content) -> None:
        """Replaces the store's content, at once."""
        self.discard(self._store.take_over(content))

    def discard(self, content: store.Content) -> None:
        """Frees what is of no use any more."""
        _ = self._begin(content.discard)

    def take_snapshot(self, wanted: snapshot.Snapshot) -> None:
        """Freezes the store now and stores the picture in the background."""
        frozen = self._store.freeze()

        def save() -> snapshot.Snapshot:
            return self._log.save_snapshot(wanted, snapshot.reblock(snapshot.encode(frozen.records())))

        self._begin(save).add_done_callback(self.stored)

    async def stop(self) -> None:
        """Waits for what is under way, or gives it up."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _begin(self, call: Callable[[], T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(self._worker.run(offload.SNAPSHOT, call))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: when this manager is stopping meanwhile, nobody else asks
