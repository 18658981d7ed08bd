"""Transactions that wait to get into the log, and the batches they travel in. Bounded; knows no Raft."""

import asyncio
import collections
import dataclasses
from collections.abc import Sequence

from manager.raft import config
from manager.store import commit
from skep import errors, pb


@dataclasses.dataclass(frozen=True)
class Waiting:
    """An encoded transaction and whoever waits for it."""

    encoded: bytes
    future: "asyncio.Future[int]"


def settle(waiting: Sequence[Waiting], index: int, refusals: Sequence[errors.SkepError | None]) -> None:
    """Tells each caller of an applied batch how its own transaction fared."""
    for each, refusal in zip(waiting, refusals, strict=True):
        if each.future.done():
            continue  # the caller went away
        if refusal is None:
            each.future.set_result(index)
        else:
            each.future.set_exception(refusal)


def fail(waiting: Sequence[Waiting], error: errors.SkepError) -> None:
    """Tells every caller the same."""
    for each in waiting:
        if not each.future.done():
            each.future.set_exception(type(error)(error.message))


class Proposals:
    """A queue with limits on number and size."""

    def __init__(self) -> None:
        self._queue: collections.deque[Waiting] = collections.deque()
        self._size_bytes = 0
        self.rejected = 0  # because too much was waiting

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, encoded: bytes) -> "asyncio.Future[int]":
        """Raises Invalid when the transaction is too large, NotProposed when too much is waiting already."""
        if len(encoded) > config.TRANSACTION_BYTES_MAX:
            raise errors.Invalid(
                f"the change takes {len(encoded)} bytes and may take {config.TRANSACTION_BYTES_MAX}: "
                f"make objects smaller or split it"
            )
        too_large = self._size_bytes + len(encoded) > config.WAITING_BYTES_MAX
        if too_large or len(self._queue) >= config.WAITING_TRANSACTIONS_MAX:
            self.rejected += 1
            raise commit.NotProposed("too many changes are waiting to be committed; try again later")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(encoded, future))
        self._size_bytes += len(encoded)
        return future

    def next_batch(self) -> tuple[bytes, Sequence[Waiting]] | None:
        """The next encoded pb.Batch and who waits for it; None when nobody does."""
        taken: list[Waiting] = []
        size_bytes = 0
        while self._queue and len(taken) < config.BATCH_TRANSACTIONS_MAX:
            head = self._queue[0]
            if taken and size_bytes + len(head.encoded) > config.BATCH_BYTES_MAX:
                break
            self._queue.popleft()
            self._size_bytes -= len(head.encoded)
            if head.future.cancelled():
                continue
            taken.append(head)
            size_bytes += len(head.encoded)
        if not taken:
            return None
        return pb.Batch(transactions=[each.encoded for each in taken]).SerializeToString(), taken

    def fail_all(self, message: str) -> None:
        """Nothing that waits will get into the log."""
        waiting, self._queue = list(self._queue), collections.deque()
        self._size_bytes = 0
        fail(waiting, commit.NotProposed(message))
