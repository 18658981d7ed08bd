"""A runtime without processes: tasks are entries in a dictionary. For tests, simulation and load.

Owns delays and failures as its `MemoryBehaviour`s say, in loop time only; no threads, files or sockets, so thousands of
tasks cost little and a virtual-time loop can drive it.
"""

import asyncio
import builtins
import collections
import dataclasses
from collections.abc import AsyncIterator, Callable, Collection

from agent.runtime import access, base, bell, refuse
from skep import clock, errors, ids, pb, stamps

LOG_ENTRIES_MAX = 1000  # per task
KILLED = 137


@dataclasses.dataclass(frozen=True)
class MemoryBehaviour:
    """How tasks of an image or service act. Times in seconds; the defaults succeed at once and run for ever."""

    prepare_s: float = 0.0
    start_s: float = 0.0
    stop_s: float = 0.0
    fail_prepare: str = ""  # TaskFatal with this text
    fail_prepare_times: int = -1  # temporary instead: fail so often, then succeed; negative = always, and fatal
    fail_start: str = ""
    exit_after_s: float | None = None  # ends by itself
    exit_code: int = 0
    healthy_after_s: float | None = None  # with a health check in the specification: the first good verdict
    unhealthy_after_s: float | None = None  # counted from the start as well
    stop_exit_code: int = 143  # after the stop signal


@dataclasses.dataclass
class _Entry:
    workload: base.Workload
    behaviour: MemoryBehaviour
    container_id: str
    ports: tuple[pb.PortConfig, ...]
    phase: base.Phase = base.Phase.CREATED
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    healthy: bool | None = None
    timers: list[asyncio.TimerHandle] = dataclasses.field(default_factory=list)
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    logs: "collections.deque[pb.LogEntry]" = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=LOG_ENTRIES_MAX)
    )
    followers: "list[asyncio.Queue[pb.LogEntry | None]]" = dataclasses.field(default_factory=list)


class MemoryRuntime:
    """See the module. `behaviours` go by service name first, then by image; `default` is for all others."""

    name = "memory"

    def __init__(
        self,
        *,
        node_id: str,
        clock: clock.Clock,
        rng: ids.Rng,
        default: MemoryBehaviour = MemoryBehaviour(),
        nano_cpus: int = 4_000_000_000,
        memory_bytes: int = 8 << 30,
    ) -> None:
        self._node_id = node_id
        self._clock = clock
        self._rng = rng
        self.default = default
        self.behaviours: dict[str, MemoryBehaviour] = {}
        self._resources = pb.Resources(nano_cpus=nano_cpus, memory_bytes=memory_bytes)
        self._entries: dict[str, _Entry] = {}
        self.access: access.Access = access.NoAccess()
        self._prepare_failures: collections.Counter[str] = collections.Counter()
        self._bell = bell.Bell()
        self._next_pid = 1000
        self._next_port = 32768
        self.hung = False  # a test's switch: every call waits until it is taken back
        self._resumed = asyncio.Event()

    async def open(self) -> None:
        """Always succeeds; opens again after `close`, with all its tasks, as an engine outlives an agent."""
        self._bell = bell.Bell()

    async def close(self) -> None:
        """Ends `events`; tasks go on."""
        self._bell.close()

    async def describe(self) -> pb.NodeDescription:
        """The resources it was made with."""
        return pb.NodeDescription(
            platform=pb.Platform(architecture="x86_64", os="linux"),
            resources=self._resources,
            engine=pb.EngineDescription(engine_version="memory", runtime=self.name),
        )

    async def prepare(self, workload: base.Workload, progress: Callable[[str], None]) -> None:
        """See base.Runtime."""
        await self._responsive()
        task_id = workload.task.id
        if task_id in self._entries:
            return
        behaviour = self._behaviour(workload)
        progress(f"preparing {workload.container.image}")
        await self._sleep(behaviour.prepare_s)
        if behaviour.fail_prepare:
            self._fail_prepare(task_id, behaviour)
        if task_id not in self._entries:  # another call may have been faster
            self._entries[task_id] = _Entry(workload, behaviour, ids.new_id(self._rng), tuple(self._publish(workload)))
            self._bell.ring(task_id)

    async def start(self, workload: base.Workload) -> None:
        """See base.Runtime."""
        await self._responsive()
        entry = self._entries.get(workload.task.id)
        if entry is None:
            raise base.TaskTemporary(f"task {workload.task.id} is not prepared")
        if entry.phase is not base.Phase.CREATED:
            return
        await self._sleep(entry.behaviour.start_s)
        if entry.phase is not base.Phase.CREATED:
            return
        if entry.behaviour.fail_start:
            self._exit(workload.task.id, entry, exit_code=127, error=entry.behaviour.fail_start)
            raise base.TaskFatal(entry.behaviour.fail_start)
        self._run(workload.task.id, entry)

    async def stop(self, workload: base.Workload) -> None:
        """See base.Runtime. Takes `stop_s`, at most the grace period."""
        await self._responsive()
        task_id = workload.task.id
        entry = self._entries.get(task_id)
        if entry is None or entry.phase is not base.Phase.RUNNING:
            return
        container = workload.container
        grace_s = stamps.from_nanos(container.stop_grace_period) if container.HasField("stop_grace_period") else 10.0
        killed = entry.behaviour.stop_s > grace_s
        try:
            async with asyncio.timeout(min(entry.behaviour.stop_s, grace_s)):
                await entry.ended.wait()
        except TimeoutError:
            self._exit(task_id, entry, exit_code=KILLED if killed else entry.behaviour.stop_exit_code, error="")

    async def remove(self, task_id: str) -> None:
        """See base.Runtime."""
        await self._responsive()
        entry = self._entries.pop(task_id, None)
        if entry is not None:
            self._end(entry)
            self._bell.ring(task_id)

    async def tidy(self, needed: Collection[str]) -> None:
        """There are no images here."""

    async def observe(self, task_id: str) -> base.Observation:
        """See base.Runtime."""
        await self._responsive()
        entry = self._entries.get(task_id)
        if entry is None:
            return base.ABSENT
        return base.Observation(
            entry.phase,
            container_id=entry.container_id,
            pid=entry.pid,
            exit_code=entry.exit_code,
            healthy=entry.healthy,
            health_checked=_health_checked(entry.workload),
            error=entry.error,
            ports=entry.ports,
        )

    async def list(self) -> list[str]:
        """See base.Runtime."""
        await self._responsive()
        return list(self._entries)

    def events(self) -> AsyncIterator[str]:
        """See base.Runtime."""
        return self._bell.listen()

    async def logs(self, task_id: str, options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
        """What `print_line` noted."""
        entry = self._entries.get(task_id)
        if entry is None:
            raise errors.NotFound(f"task {task_id} has no output on this node")
        wanted = [line for line in entry.logs if stamps.seconds(line.timestamp) >= options.since]
        fresh: asyncio.Queue[pb.LogEntry | None] = asyncio.Queue()
        entry.followers.append(fresh)
        try:
            for line in wanted[len(wanted) - options.tail :] if 0 <= options.tail < len(wanted) else wanted:
                yield line
            if entry.ended.is_set():
                fresh.put_nowait(None)
            while options.follow and (printed := await fresh.get()) is not None:
                yield printed
        finally:
            entry.followers.remove(fresh)

    # What tests do to it.

    def crash(self, task_id: str, *, exit_code: int = 1, error: str = "") -> None:
        """The task's process ends by itself. Raises KeyError when nothing runs."""
        entry = self._entries[task_id]
        if entry.phase is not base.Phase.RUNNING:
            raise KeyError(f"task {task_id} is {entry.phase.value}, not running")
        self._exit(task_id, entry, exit_code=exit_code, error=error)

    def set_healthy(self, task_id: str, *, healthy: bool) -> None:
        """The health check gives its verdict."""
        self._entries[task_id].healthy = healthy
        self._bell.ring(task_id)

    def print_line(self, task_id: str, text: str) -> None:
        """The task writes a line to its standard output."""
        line = pb.LogEntry(
            timestamp=stamps.stamp(self._clock.now()), stream=pb.LOG_STREAM_STDOUT, data=text.encode() + b"\n"
        )
        self._entries[task_id].logs.append(line)
        for follower in self._entries[task_id].followers:
            follower.put_nowait(line)

    def running(self) -> builtins.list[str]:
        """IDs of the tasks that run, in the order of their preparation."""
        return [task_id for task_id, entry in self._entries.items() if entry.phase is base.Phase.RUNNING]

    def hang(self) -> None:
        """From now on no call is answered."""
        self.hung = True

    def resume(self) -> None:
        """Calls are answered again, also those that wait; readers of `events` look at all."""
        self.hung = False
        self._resumed.set()
        self._resumed = asyncio.Event()
        self._bell.ring("")

    def reboot(self) -> None:
        """Everything that ran has ended, as after a power cut."""
        for task_id, entry in self._entries.items():
            if entry.phase is base.Phase.RUNNING:
                self._exit(task_id, entry, exit_code=255, error="the machine was restarted")
        self._bell.ring("")

    async def _responsive(self) -> None:
        while self.hung:
            await self._resumed.wait()

    async def _sleep(self, delay_s: float) -> None:
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    def _behaviour(self, workload: base.Workload) -> MemoryBehaviour:
        by_image = self.behaviours.get(workload.container.image, self.default)
        return self.behaviours.get(workload.task.service_name, by_image)

    def _fail_prepare(self, task_id: str, behaviour: MemoryBehaviour) -> None:
        if behaviour.fail_prepare_times < 0:
            raise base.TaskFatal(behaviour.fail_prepare)
        if self._prepare_failures[task_id] < behaviour.fail_prepare_times:
            self._prepare_failures[task_id] += 1
            raise base.TaskTemporary(behaviour.fail_prepare)
        del self._prepare_failures[task_id]

    def _publish(self, workload: base.Workload) -> builtins.list[pb.PortConfig]:
        published: list[pb.PortConfig] = []
        for port in refuse.host_ports(workload):
            copy = pb.PortConfig()
            copy.CopyFrom(port)
            if not copy.published_port:
                copy.published_port = self._next_port
                self._next_port = self._next_port + 1 if self._next_port < 2**16 - 1 else 32768
            published.append(copy)
        return published

    def _run(self, task_id: str, entry: _Entry) -> None:
        loop, behaviour = asyncio.get_running_loop(), entry.behaviour
        self._next_pid += 1
        entry.phase, entry.pid = base.Phase.RUNNING, self._next_pid
        if behaviour.exit_after_s is not None:
            self._later(entry, loop, behaviour.exit_after_s, lambda: self._exit_by_itself(task_id, entry))
        if _health_checked(entry.workload):
            self._later(entry, loop, behaviour.healthy_after_s or 0.0, lambda: self._verdict(task_id, healthy=True))
            if behaviour.unhealthy_after_s is not None:
                self._later(entry, loop, behaviour.unhealthy_after_s, lambda: self._verdict(task_id, healthy=False))
        self._bell.ring(task_id)

    def _later(self, entry: _Entry, loop: asyncio.AbstractEventLoop, delay_s: float, call: Callable[[], None]) -> None:
        entry.timers.append(loop.call_later(delay_s, call))

    def _verdict(self, task_id: str, *, healthy: bool) -> None:
        self._entries[task_id].healthy = healthy  # timers end with the task: it is there and runs
        self._bell.ring(task_id)

    def _exit_by_itself(self, task_id: str, entry: _Entry) -> None:
        self._exit(task_id, entry, exit_code=entry.behaviour.exit_code, error="")

    def _exit(self, task_id: str, entry: _Entry, *, exit_code: int, error: str) -> None:
        if entry.phase is base.Phase.EXITED:
            return
        entry.phase, entry.exit_code, entry.error, entry.pid = base.Phase.EXITED, exit_code, error, 0
        self._end(entry)
        self._bell.ring(task_id)

    def _end(self, entry: _Entry) -> None:
        for timer in entry.timers:
            timer.cancel()
        entry.timers.clear()
        entry.ended.set()
        for follower in entry.followers:
            follower.put_nowait(None)


def _health_checked(workload: base.Workload) -> bool:
    test = workload.container.healthcheck.test
    return bool(test) and test[0] != "NONE"
