"""The rounds of a running manager: the only code that moves the core, the disk and the network against each other.

One round: take what has come in, let the core tick, send what may leave at once, begin to write what is new, and send
the rest when that is durable. While a write is running the rounds go on; transactions that arrive meanwhile gather for
the next entry (group commit). It owns no decision of Raft; the core does no I/O.
"""

import asyncio
import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from manager.raft import config, core, journal, machine, messages, offload, proposals, transport
from manager.raft import log as logs
from manager.store import commit
from skep import errors, pb

log = structlog.get_logger(__name__)

LOST = "this manager stopped leading while the change was under way; whether it took effect is unknown: read and retry"


class Driver:
    """Queues, rounds and the one write under way. `on_round` is called after each, `on_failure` when it must stop."""

    def __init__(
        self,
        *,
        raft: core.RaftCore,
        entries: journal.Journal,
        backend: logs.Log,
        network: transport.Transport,
        worker: offload.Offload,
        on_round: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.paused = False  # no new entries: a transfer of leadership is under way
        self.dropped_frames = 0
        self.proposals = proposals.Proposals()
        self._raft = raft
        self._entries = entries
        self._log = backend
        self._network = network
        self._worker = worker
        self._on_round = on_round
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._readers: list[asyncio.Future[None]] = []  # for the next round's barrier
        self._reading = 0  # those whose barrier is under way
        self._inbox: collections.deque[tuple[str, pb.RaftFrame]] = collections.deque()
        self._held: collections.deque[tuple[int, str, pb.RaftFrame]] = collections.deque()
        self._writing: tuple[journal.Batch, asyncio.Task[None]] | None = None
        self._stored: machine.Stored | None = None
        self._received: machine.Received | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins the rounds."""
        self._task = self._loop.create_task(self._drive(), name=f"raft {self._raft.node_id}")
        self._event.set()

    async def stop(self, message: str) -> None:
        """Ends the rounds and the running write; everybody who waits gets Unavailable with `message`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._give_up(message)
        if self._writing is not None:
            await asyncio.gather(self._writing[1], return_exceptions=True)

    def wake(self) -> None:
        """There is something to do."""
        self._event.set()

    # ---------------------------------------------------------------- input

    def frame_received(self, peer: str, frame: pb.RaftFrame) -> None:
        """A frame for the next round; dropped when far too much is waiting."""
        if len(self._inbox) >= config.INBOX_FRAMES_MAX:
            self.dropped_frames += 1
            return
        self._inbox.append((peer, frame))
        self._event.set()

    def read(self) -> "asyncio.Future[None]":
        """Done once a read barrier that began after now has been passed. Raises Unavailable when too many wait."""
        if len(self._readers) + self._reading >= config.READERS_MAX:
            raise errors.Unavailable("too many reads are waiting; try again later")
        future: asyncio.Future[None] = self._loop.create_future()
        self._readers.append(future)
        self._event.set()
        return future

    async def until(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Waits until `condition` holds after some round; False when it does not in time.

        Raises Unavailable when the driver ends meanwhile.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((condition, future))
        self._event.set()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        return True

    def change(self, members: Mapping[str, str], done: core.Done) -> None:
        """Proposes a configuration; `done` is called once with the outcome."""
        self._raft.change(self._loop.time(), members, done)
        self._event.set()

    def snapshot_stored(self, task: machine.Stored) -> None:
        """A snapshot of our own was stored, or could not be."""
        if not task.cancelled():
            self._stored = task
            self._event.set()

    def snapshot_received(self, task: machine.Received) -> None:
        """A leader's snapshot was stored and decoded, or could not be."""
        if not task.cancelled():
            self._received = task
            self._event.set()

    # ---------------------------------------------------------------- rounds

    async def _drive(self) -> None:
        try:
            while True:
                timer = self._loop.call_at(self._raft.wake_at, self._event.set)
                if self._event.is_set():
                    await asyncio.sleep(0)  # others get their turn however much comes in
                await self._event.wait()
                timer.cancel()
                self._event.clear()
                self._round()
        except Exception as error:  # whatever it is, this manager must not go on
            log.exception("raft.failed", node=self._raft.node_id)
            self._on_failure(error)
            self._give_up("this manager has failed and takes no changes")

    def _round(self) -> None:
        now = self._loop.time()
        self._receive(now)
        self._finish_snapshots(now)
        self._finish_write()
        self._propose(now)
        self._begin_reads(now)
        self._raft.tick(now)
        if not self._raft.in_charge:
            self.proposals.fail_all("this manager stopped leading before the change was begun; try again")
        if self._raft.restless:
            self._event.set()
        self._flush()
        self._begin_write()
        self._on_round()
        self._wake_waiters()

    def _receive(self, now: float) -> None:
        for _ in range(min(len(self._inbox), config.ROUND_FRAMES_MAX)):
            peer, frame = self._inbox.popleft()
            try:
                message = messages.decode(frame)
            except ValueError as error:
                log.warning("raft.frame_refused", peer=peer, reason=str(error))
                continue
            self._raft.receive(now, peer, message)
        if self._inbox:
            self._event.set()

    def _propose(self, now: float) -> None:
        """Forms entries. While a write is running transactions gather, so that each write carries as many as wait."""
        raft = self._raft
        if not raft.in_charge or self._writing is not None or self.paused:
            return
        while raft.uncommitted_bytes < config.UNCOMMITTED_BYTES_MAX and (batch := self.proposals.next_batch()):
            body, waiting = batch
            raft.propose(now, body, functools.partial(_settle, waiting=waiting))

    def _begin_reads(self, now: float) -> None:
        """All reads that wait share one barrier."""
        if not self._readers:
            return
        readers, self._readers = self._readers, []
        self._reading += len(readers)

        def done(outcome: core.Outcome, _: Any) -> None:
            self._reading -= len(readers)
            for reader in readers:
                if reader.done():
                    continue
                if outcome is core.Outcome.DONE:
                    reader.set_result(None)
                else:
                    reader.set_exception(errors.Unavailable("this manager stopped leading; ask again"))

        self._raft.read_barrier(now, done)

    def _flush(self) -> None:
        """Sends what does not depend on an unfinished write and keeps the rest back."""
        needed = self._entries.needed_batch
        for peer, message in self._raft.outbox.take():
            frame = messages.encode(message)
            if needed <= self._entries.written_number or self._raft.may_leave_early(message):
                self._network.send(peer, frame)
            else:
                self._held.append((needed, peer, frame))

    def _begin_write(self) -> None:
        if self._writing is not None or not self._entries.dirty:
            return
        batch = self._entries.take()
        writing = self._worker.run(offload.LOG, functools.partial(self._log.write, batch.operations))
        task = self._loop.create_task(writing)
        task.add_done_callback(lambda _: self._event.set())
        self._writing = batch, task

    def _finish_write(self) -> None:
        if self._writing is None or not self._writing[1].done():
            return
        (batch, task), self._writing = self._writing, None
        task.result()  # an error ends this manager: what is on the disk is unknown
        self._entries.written(batch)
        while self._held and self._held[0][0] <= batch.number:
            _, peer, frame = self._held.popleft()
            self._network.send(peer, frame)

    def _finish_snapshots(self, now: float) -> None:
        """As with a write, an error ends this manager."""
        if self._stored is not None:
            stored, self._stored = self._stored, None
            taken = stored.result()
            log.info("raft.snapshot", node=self._raft.node_id, index=taken.index, blocks=taken.blocks)
            self._raft.snapshot_done(taken)
        if self._received is not None:
            received, self._received = self._received, None
            taken, content = received.result()
            log.info("raft.snapshot_received", node=self._raft.node_id, index=taken.index, blocks=taken.blocks)
            self._raft.snapshot_received(now, taken, content)

    # ---------------------------------------------------------------- telling others

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for condition, future in waiters:
            if future.done():
                continue
            if condition():
                future.set_result(None)
            else:
                self._waiters.append((condition, future))

    def _give_up(self, message: str) -> None:
        """Gives everybody who waits an answer."""
        self.proposals.fail_all(message)
        self._raft.abandon()
        waiters, self._waiters = self._waiters, []
        readers, self._readers = self._readers, []
        for future in (*readers, *(future for _, future in waiters)):
            if not future.done():
                future.set_exception(errors.Unavailable(message))


def _settle(outcome: core.Outcome, result: Any, waiting: Sequence[proposals.Waiting]) -> None:
    if outcome is core.Outcome.DONE:
        index, refusals = result
        proposals.settle(waiting, index, refusals)
    elif outcome is core.Outcome.UNKNOWN:
        proposals.fail(waiting, errors.Unavailable(LOST))
    else:
        proposals.fail(waiting, commit.NotProposed("this manager does not lead the cluster; try again"))
