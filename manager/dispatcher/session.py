"""One agent's session as the leader holds it: what goes out to the agent, in which order.

Nothing is buffered per change: the session notes what is due (tasks, node, managers, a heartbeat's answer) and builds
each message from the store when the agent is ready to take it. What it reads is the dispatcher's business.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from manager.dispatcher import assignments, metrics
from manager.store import store
from skep import channel, errors, link, pb, race, stamps

log = structlog.get_logger(__name__)

ASSIGNMENT_DELAY_S = 0.02  # changes that are committed together travel together
OUTBOX_MAX = 2000  # log requests and their cancellations on the way; beyond that the agent does not read
UNREAD_S = 12.0  # an answer to a heartbeat waits this long for an agent that reads nothing
LOG_CREDIT = 4  # chunks of one log request on the way
FRAMES_PER_TURN = 16  # of channels, before what the session is there for gets its turn
CLOSE_TIMEOUT_S = 1.0  # for the last words to an agent that may not read any more

Deliver = Callable[[pb.LogChunk], None]


class _Log:
    """A log request that the agent is answering."""

    def __init__(self, deliver: Deliver) -> None:
        self.deliver = deliver
        self.credit = LOG_CREDIT


class Session:
    """The way out to one agent."""

    def __init__(
        self,
        *,
        session_id: str,
        node: pb.Node,
        stream: link.ManagerLink,
        target: store.Store,
        period: Callable[[], float],
        spread: Callable[[], float],
        managers: Callable[[], Sequence[str]],
        metrics: metrics.Metrics,
    ) -> None:
        """`period` gives the time to the next heartbeat in seconds, `managers` the managers' addresses.

        `spread` gives over how many seconds agents are to come back when they lose their sessions together.
        """
        self.id = session_id
        self.node_id = node.id
        self._stream = stream
        self._store = target
        self._period = period
        self._spread = spread
        self._managers = managers
        self._metrics = metrics
        self._assigner = assignments.Assigner(node.id)
        self._outbox: deque[pb.ManagerMessage] = deque()
        self._outbox.append(
            pb.ManagerMessage(
                registered=pb.Registered(
                    session_id=session_id,
                    heartbeat_period=stamps.to_nanos(period()),
                    node=node,
                    spread=stamps.to_nanos(spread()),
                )
            )
        )
        self._dirty: dict[str, None] = {}
        self._ripe = False  # the dirty tasks have waited for others to come along
        self._heartbeat_due = False
        self._heartbeat_due_since = 0.0
        self._heartbeat_number = 0  # of the latest that was a sign of life and is not answered yet
        self._managers_due = True
        self._node_due = False
        self._credits_due: dict[int, int] = {}
        self._logs: dict[int, _Log] = {}
        self._log_ids = 0
        self._wake = asyncio.Event()
        self.channels = channel.Mux(self._wake.set)
        self._over = asyncio.Event()
        self._error: errors.SkepError | None = None
        self._last_words: pb.ManagerMessage | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._over.is_set()

    # ---------------------------------------------------------------- what is due

    def heartbeat(self, number: int) -> None:
        """The agent sent a heartbeat; `number` is 0 when it is no sign of life that its tasks may live on.

        An agent that speaks and does not listen is of no use: its session is ended.
        """
        self._heartbeat_number = max(number, self._heartbeat_number)
        now = asyncio.get_running_loop().time()
        if not self._heartbeat_due:
            self._heartbeat_due, self._heartbeat_due_since = True, now
        elif now - self._heartbeat_due_since > UNREAD_S:
            self.end(errors.Unavailable(f"node {self.node_id} does not read its session"))
        self._wake.set()

    def mark(self, task_id: str) -> None:
        """A task of this node has changed."""
        if not self._dirty and not self._ripe:
            asyncio.get_running_loop().call_later(ASSIGNMENT_DELAY_S, self._ripen)
        self._dirty[task_id] = None

    def mark_all(self) -> None:
        """Changes have been missed: look at every task of this node."""
        for task_id in self._assigner.everything(self._store.view()):
            self.mark(task_id)

    def managers_changed(self) -> None:
        """The list of managers has changed."""
        self._managers_due = True
        self._wake.set()

    def node_changed(self) -> None:
        """The node's own object has changed in a way that the agent should know."""
        self._node_due = True
        self._wake.set()

    def end(self, error: errors.SkepError | None = None, *, redirect: str | None = None) -> None:
        """Ends the session: with the address of the leader, with an error, or without a word."""
        if self._over.is_set():
            return
        if redirect is not None:
            self._last_words = pb.ManagerMessage(redirect=pb.Redirect(addr=redirect))
        self._error = error
        self._over.set()

    def _ripen(self) -> None:
        self._ripe = True
        self._wake.set()

    # ---------------------------------------------------------------- logs

    def open_log(self, request: pb.LogRequest, deliver: Deliver) -> int:
        """Asks the agent for the output of a task; `deliver` gets every chunk, and one with `end` in any case.

        At most LOG_CREDIT chunks come before `credit_log` is called. Returns the request's ID.
        """
        self._log_ids += 1
        request.id = self._log_ids
        request.credit = LOG_CREDIT
        self._logs[request.id] = _Log(deliver)
        self._push(pb.ManagerMessage(log_request=request))
        return request.id

    def credit_log(self, request_id: int) -> None:
        """A chunk has been taken by the reader."""
        log_request = self._logs.get(request_id)
        if log_request is not None:
            log_request.credit += 1
            self._credits_due[request_id] = self._credits_due.get(request_id, 0) + 1
            self._wake.set()

    def cancel_log(self, request_id: int) -> None:
        """The reader has gone."""
        if self._logs.pop(request_id, None) is not None:
            self._credits_due.pop(request_id, None)
            self._push(pb.ManagerMessage(log_cancel=pb.LogCancel(id=request_id)))

    def take_log(self, chunk: pb.LogChunk) -> None:
        """Hands a chunk from the agent to its reader."""
        log_request = self._logs.get(chunk.request_id)
        if log_request is None:
            return  # cancelled while it was under way
        if log_request.credit == 0 and not chunk.end:
            self.cancel_log(chunk.request_id)
            chunk = pb.LogChunk(end=True, error=f"node {self.node_id} sent more than it was asked for")
        log_request.credit -= 1
        if chunk.end:
            self._logs.pop(chunk.request_id, None)
        log_request.deliver(chunk)

    def _end_logs(self) -> None:
        waiting, self._logs = self._logs, {}
        for log_request in waiting.values():
            log_request.deliver(pb.LogChunk(end=True, error=f"node {self.node_id} disconnected unexpectedly"))

    # ---------------------------------------------------------------- the way out

    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Serves the agent until it or this manager ends the session; `reading` is the loop that reads from it."""
        try:
            await race.race(self._write(), reading, self._until_over())
        except errors.SkepError as error:
            self.end(error)
        finally:
            self._over.set()
            self._end_logs()
            self.channels.close(errors.Unavailable(f"node {self.node_id} disconnected unexpectedly"))
            await self._close()

    async def _until_over(self) -> None:
        await self._over.wait()

    async def _close(self) -> None:
        if self._last_words is not None:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._stream.send(self._last_words)
            except (errors.SkepError, TimeoutError):
                log.debug("session.last_words_lost", node=self.node_id)
        await self._stream.close(self._error)

    def _push(self, message: pb.ManagerMessage) -> None:
        if len(self._outbox) >= OUTBOX_MAX:
            self.end(errors.Unavailable(f"node {self.node_id} does not read its session"))
            return
        self._outbox.append(message)
        self._wake.set()

    async def _write(self) -> None:
        await self._flush_outbox()
        for part in self._assigner.full(self._store.view()):
            self._metrics.assigned.inc(len(part.tasks))
            await self._stream.send(pb.ManagerMessage(assignments=part))
        while True:
            await self._flush_outbox()
            if self._heartbeat_due:
                self._heartbeat_due = False
                answers, self._heartbeat_number = self._heartbeat_number, 0
                reply = pb.HeartbeatReply(
                    heartbeat_period=stamps.to_nanos(self._period()),
                    spread=stamps.to_nanos(self._spread()),
                    answers=answers,
                )
                await self._stream.send(pb.ManagerMessage(heartbeat=reply))
            if self._managers_due:
                self._managers_due = False
                await self._stream.send(pb.ManagerMessage(managers=pb.ManagerList(addrs=self._managers())))
            if self._node_due:
                self._node_due = False
                await self._send_node()
            if self._ripe:
                await self._send_difference()
            while self._credits_due:
                request_id, chunks = self._credits_due.popitem()
                await self._stream.send(pb.ManagerMessage(log_credit=pb.LogCredit(id=request_id, chunks=chunks)))
            await self._send_frames()
            await self._wake.wait()
            self._wake.clear()

    async def _flush_outbox(self) -> None:
        while self._outbox:
            await self._stream.send(self._outbox.popleft())

    async def _send_frames(self) -> None:
        for _ in range(FRAMES_PER_TURN):
            frame = self.channels.next()
            if frame is None:
                return
            await self._stream.send(pb.ManagerMessage(channel=frame))
        self._wake.set()

    async def _send_difference(self) -> None:
        """Sends the next part of what is dirty; what is left comes with the next turn of the loop."""
        parts = self._assigner.difference(self._store.view(), self._dirty)
        if not self._dirty:
            self._ripe = False
        else:
            self._wake.set()
        for part in parts:
            self._metrics.assigned.inc(len(part.tasks))
            await self._stream.send(pb.ManagerMessage(assignments=part))

    async def _send_node(self) -> None:
        node = self._store.view().nodes.get(self.node_id)
        if node is not None:
            await self._stream.send(pb.ManagerMessage(node=node))
