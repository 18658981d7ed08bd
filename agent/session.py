"""The agent's side of the session with the managers: register, heartbeats, assignments in, statuses out, logs.

Tries the managers in turn, follows redirects, and opens a new session whenever something is wrong with the old one;
the tasks run on meanwhile. What the assignments mean is the worker's business.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from agent import backoff, channels, logs, managers, worker
from agent.runtime import access as entering
from skep import errors, ids, link, pb, race, stamps

log = structlog.get_logger(__name__)

RETRY_FIRST_S = 0.1  # a new leader is there within a second or two
RETRY_MAX_S = 8.0
CONNECT_TIMEOUT_S = 5.0  # doubled with each that runs out, up to
CONNECT_TIMEOUT_MAX_S = 20.0  # a manager that is swamped is not helped by callers who hang up and dial again
REGISTER_TIMEOUT_S = 10.0  # the manager commits the registration before it answers
SILENT_PERIODS_MAX = 2  # heartbeats without any answer before the manager counts as dead
LISTENS_PER_PERIOD = 4
PERIOD_MIN_S = 0.05  # whatever a manager says, heartbeats must not become a flood
SEND_TIMEOUT_S = 15.0  # a manager that does not read is as good as dead
REDIRECTS_MAX = 3  # in a row; managers that point at each other have no leader
DESCRIBE_S = 15.0
DESCRIBE_TIMEOUT_S = 20.0  # whoever describes has time limits of its own
LATER_MAX_S = 60.0  # whatever a manager says
STATUS_DELAY_S = 0.02  # statuses that come up together travel together
STATUSES_MAX = 500  # per message

Connect = Callable[[str], Awaitable[link.AgentLink]]
Describe = Callable[[], Awaitable[pb.NodeDescription]]


class _Redirected(Exception):
    def __init__(self, addr: str) -> None:
        super().__init__(addr)
        self.addr = addr


class _Later(Exception):
    """The manager lets no more agents in at the moment."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"the manager asked this agent to come back in {wait_s:.1f} s")
        self.wait_s = wait_s


class AgentSession:
    """Keeps one session with the leader open for as long as it runs."""

    def __init__(
        self,
        *,
        connect: Connect,
        managers: managers.ManagerBook,
        worker: worker.Worker,
        describe: Describe,
        rng: ids.Rng,
        description: pb.NodeDescription | None = None,
        access: entering.Access | None = None,
        stirred: asyncio.Event | None = None,
        on_node: Callable[[pb.Node], None] | None = None,
        on_removed: Callable[[str], None] | None = None,
    ) -> None:
        """`describe` gives the whole description, hostname included; it may raise Unavailable. It is asked now and
        then, and at once when `stirred` is set. Where a `description` is known already, no registration waits for it.

        `on_node` is called with this node's own object at every registration and whenever it changes, `on_removed`
        with the leader's words whenever it says that this node is not in the cluster any more.
        """
        self._connect = connect
        self._managers = managers
        self._worker = worker
        self._describe = describe
        self._access = access or entering.NoAccess()
        self._stirred = stirred or asyncio.Event()
        self._rng = rng
        self._on_node = on_node
        self._on_removed = on_removed
        self._description = description
        self._silence = ""  # why the runtime said nothing when it was last asked
        self._candidates: list[str] = []
        self._worked = ""  # the manager of the last session
        self._retry = backoff.Backoff(first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S, rng=rng)
        self._hurry = asyncio.Event()
        self._outbox: dict[str, pb.TaskStatus] = {}
        self._outbox_filled = asyncio.Event()
        self._period_s = 0.0
        self._heard_at = 0.0  # loop time of the manager's last word
        self._spread_s = 0.0  # over how much time all agents come back, as last heard
        self._spread_due = False  # a session has just been lost
        self._connect_s = CONNECT_TIMEOUT_S
        self._sequence = 0
        self._gathered: pb.Assignments | None = None  # a set or difference while its parts come in
        self._full_due = False  # the session's first assignments are yet to come
        self.manager = ""  # address of the manager that the session is open with; empty = no session
        self.error = ""  # why there is no session, in words

    async def run(self) -> None:
        """Runs until cancelled."""
        self._worker.listen(self._status_changed)
        redirects = 0
        hint = ""
        try:
            while True:
                race.heed_cancellation()
                await self._spread_out()
                addr, hint = hint or self._next_candidate(), ""
                try:
                    await self._one_session(addr)
                except _Later as later:
                    self.error = str(later)
                    await self._pause(later.wait_s)
                    hint = addr
                    continue
                except _Redirected as redirected:
                    redirects += 1
                    self.error = f"manager {addr} does not lead, and knows no leader"
                    if redirected.addr and redirects <= REDIRECTS_MAX:
                        hint = redirected.addr
                        continue
                except (errors.SkepError, TimeoutError, OSError) as error:
                    self._ended(addr, error)
                except Exception as error:
                    log.exception("session.crashed", manager=addr)
                    self._ended(addr, error)
                redirects = 0
                if not self._spread_due:
                    await self._pause(self._retry.next_s())
        finally:
            self._worker.listen(None)

    def retry_now(self, addr: str) -> None:
        """There is reason to believe that the manager at `addr` answers now: it is tried next, without a pause."""
        self._candidates = [addr]
        self._retry.reset()
        self._hurry.set()

    async def _spread_out(self) -> None:
        """After a lost session: all agents may have lost theirs, and must not come back in one moment."""
        if self._spread_due:
            self._spread_due = False
            await self._pause(self._rng.uniform(0.0, self._spread_s) + self._retry.next_s())

    async def _pause(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._hurry.wait()
        self._hurry.clear()

    def _ended(self, addr: str, error: Exception) -> None:
        self.error = str(error) or type(error).__name__
        log.warning("session.ended", manager=addr, error=self.error, kind=type(error).__name__)
        if isinstance(error, errors.Denied) and self._on_removed is not None:
            self._on_removed(self.error)

    def _next_candidate(self) -> str:
        if not self._candidates:
            listed = self._managers.addresses()
            self._candidates = sorted(listed, key=lambda _: self._rng.random())
            if self._worked and self._worked not in listed:
                # Tried last: it worked, though the managers do not say so (a list of addresses that lead nowhere).
                self._candidates.insert(0, self._worked)
        return self._candidates.pop() if self._candidates else ""

    async def _one_session(self, addr: str) -> None:
        if not addr:
            raise errors.Unavailable("no manager is known to this node")
        description = self._description or await self._describe_again()
        if description is None:
            raise errors.Unavailable(f"this node cannot be described without its runtime: {self._silence}")
        stream = await self._connected(addr)
        try:
            await self._send(stream, pb.AgentMessage(register=pb.Register(description=description)))
            async with asyncio.timeout(REGISTER_TIMEOUT_S):
                first = await stream.receive()
            if first is None:
                raise errors.Unavailable(f"manager {addr} closed the session")
            if first.HasField("redirect"):
                raise _Redirected(first.redirect.addr)
            if first.HasField("later"):
                raise _Later(min(max(stamps.from_nanos(first.later.retry_after), 0.0), LATER_MAX_S))
            if not first.HasField("registered"):
                raise errors.Unavailable(f"manager {addr} does not speak this protocol")
            await self._registered(stream, addr, first.registered)
        finally:
            self.manager = ""
            await stream.close()

    async def _connected(self, addr: str) -> link.AgentLink:
        try:
            async with asyncio.timeout(self._connect_s):
                stream = await self._connect(addr)
        except TimeoutError:
            tried_s, self._connect_s = self._connect_s, min(self._connect_s * 2, CONNECT_TIMEOUT_MAX_S)
            raise errors.Unavailable(f"manager {addr} did not answer within {tried_s:.0f} s") from None
        self._connect_s = CONNECT_TIMEOUT_S
        return stream

    async def _registered(self, stream: link.AgentLink, addr: str, registered: pb.Registered) -> None:
        log.info("session.registered", manager=addr, session=registered.session_id)
        self.manager, self.error, self._worked = addr, "", addr
        self._retry.reset()
        self._candidates = []
        self._sequence = 0
        self._gathered, self._full_due = None, True
        self._heartbeat_every(registered.heartbeat_period, registered.spread)
        self._spread_due = True
        self._node_changed(registered.node)
        # Whatever the managers did not get in the session before, they get now: the latest of every task.
        self._outbox = self._worker.statuses()
        if self._outbox:
            self._outbox_filled.set()
        server = logs.LogServer(read=self._worker.logs, send=lambda message: self._send(stream, message))
        opened = channels.ChannelServer(access=self._access, send=lambda message: self._send(stream, message))
        try:
            await race.race(
                self._receive(stream, server, opened),
                self._listen(),
                opened.run(),
                self._heartbeats(stream),
                self._statuses(stream),
                self._descriptions(stream),
            )
        finally:
            await server.close()
            await opened.close()

    # ---------------------------------------------------------------- in

    async def _receive(self, stream: link.AgentLink, server: logs.LogServer, opened: channels.ChannelServer) -> None:
        while True:
            message = await stream.receive()
            if message is None:
                raise errors.Unavailable("the manager closed the session")
            self._heard_at = asyncio.get_running_loop().time()
            if message.HasField("channel"):
                opened.take(message.channel)
            else:
                await self._take(message, server)

    async def _listen(self) -> None:
        """Ends the session when the manager says nothing. Time in which this process did not run does not count."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        while loop.time() - self._heard_at < SILENT_PERIODS_MAX * self._period_s:
            pause_s = self._period_s / LISTENS_PER_PERIOD
            due = loop.time() + pause_s
            await asyncio.sleep(pause_s)
            if loop.time() - due > pause_s:  # what the manager said meanwhile waits to be read
                self._heard_at += loop.time() - due
        raise errors.Unavailable("the manager has fallen silent")

    async def _take(self, message: pb.ManagerMessage, server: logs.LogServer) -> None:
        match message.WhichOneof("body"):
            case "heartbeat":
                self._heartbeat_every(message.heartbeat.heartbeat_period, message.heartbeat.spread)
                # Only once this node knows what belongs here: a task may have been replaced during its silence.
                if message.heartbeat.answers and not self._full_due:
                    self._worker.lease.answered(message.heartbeat.answers)
            case "assignments":
                self._assigned(message.assignments)
            case "managers":
                self._managers.replace(message.managers.addrs)
            case "node":
                self._node_changed(message.node)
            case "redirect":
                raise _Redirected(message.redirect.addr)
            case "log_request":
                await server.start(message.log_request)
            case "log_credit":
                server.grant(message.log_credit)
            case "log_cancel":
                server.cancel(message.log_cancel.id)
            case _:  # a newer manager says something we do not know yet
                log.debug("session.message_unknown")

    def _heartbeat_every(self, period_ns: int, spread_ns: int) -> None:
        self._period_s = max(stamps.from_nanos(period_ns), PERIOD_MIN_S)
        self._spread_s = min(max(stamps.from_nanos(spread_ns), 0.0), LATER_MAX_S)

    def _assigned(self, assignments: pb.Assignments) -> None:
        expected = self._sequence + 1
        if assignments.sequence != expected or assignments.full != self._full_due:
            raise errors.Unavailable(f"assignments {assignments.sequence} came where {expected} was due")
        self._sequence = expected
        whole = assignments
        if self._gathered is not None:
            whole, self._gathered = self._gathered, None
            whole.MergeFrom(assignments)
        if assignments.more:
            self._gathered = whole
            return
        self._full_due = False
        self._worker.apply(whole)

    def _node_changed(self, node: pb.Node) -> None:
        self._worker.set_node(node)
        if self._on_node is not None:
            self._on_node(node)

    # ---------------------------------------------------------------- out

    @staticmethod
    async def _send(stream: link.AgentLink, message: pb.AgentMessage) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await stream.send(message)
        except TimeoutError:
            raise errors.Unavailable("the manager does not take messages any more") from None

    async def _heartbeats(self, stream: link.AgentLink) -> None:
        while True:
            await self._send(stream, pb.AgentMessage(heartbeat=pb.Heartbeat(number=self._worker.lease.sent())))
            await self._worker.lease.pause(self._period_s)

    def _status_changed(self, task_id: str, status: pb.TaskStatus) -> None:
        if self.manager:  # without a session nothing needs to be kept: the next one starts with all of them
            self._outbox[task_id] = status
            self._outbox_filled.set()

    async def _statuses(self, stream: link.AgentLink) -> None:
        while True:
            await self._outbox_filled.wait()
            await asyncio.sleep(STATUS_DELAY_S)
            report = pb.StatusReport()
            for task_id in list(self._outbox)[:STATUSES_MAX]:
                report.updates.append(pb.TaskStatusUpdate(task_id=task_id, status=self._outbox.pop(task_id)))
            if not self._outbox:
                self._outbox_filled.clear()
            if report.updates:
                await self._send(stream, pb.AgentMessage(statuses=report))

    async def _descriptions(self, stream: link.AgentLink) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DESCRIBE_S):
                    await self._stirred.wait()
            self._stirred.clear()
            known = self._description
            fresh = await self._describe_again()
            if fresh is not None and fresh != known:
                await self._send(stream, pb.AgentMessage(description=fresh))

    async def _describe_again(self) -> pb.NodeDescription | None:
        """What this node is now; what it was when the runtime does not answer; None when that was never known."""
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                self._description = await self._describe()
        except (errors.SkepError, TimeoutError, OSError) as error:
            self._silence = str(error) or "no answer in time"
            log.warning("session.runtime_silent", error=self._silence)
        return self._description
