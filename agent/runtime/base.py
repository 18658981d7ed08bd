"""What the agent asks of a container runtime, and what a runtime may answer.

The interface is level-triggered: `events` only says which task to look at again, `observe` says what there is. Every
method is idempotent, so that an agent that restarts can repeat whatever it was doing. A driver keeps the identity of
its containers on the runtime's side (labels, files), never only in memory.
"""

import dataclasses
import enum
from collections.abc import AsyncIterator, Callable, Collection
from typing import Protocol

from agent.runtime import access as entering
from skep import errors, pb, tasknames


class TaskFatal(errors.SkepError):
    """This task cannot run here, now or later: it is REJECTED before its start and FAILED after it."""


class TaskTemporary(errors.SkepError):
    """It did not work this time (engine away, registry busy): the driver tries again."""


class Phase(enum.Enum):
    """Where a task's container is."""

    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclasses.dataclass(frozen=True)
class File:
    """A secret or config as one file. May only ever be written to memory-backed file systems."""

    kind: str  # "secret" or "config"
    target: str  # as the reference has it: relative or absolute
    path: str  # in a container, absolute
    data: bytes = dataclasses.field(repr=False)
    uid: int
    gid: int
    mode: int


@dataclasses.dataclass(frozen=True)
class Workload:
    """A task with all that a runtime needs to run it. `spec` belongs to the task's revision."""

    task: pb.Task
    spec: pb.ServiceSpec
    node: pb.Node
    files: tuple[File, ...] = ()  # for `prepare` only: empty at other times

    @property
    def container(self) -> pb.ContainerSpec:
        """The container's specification."""
        return self.spec.task.container

    @property
    def name(self) -> str:
        """The task's name, as users and container listings see it: service.slot.task."""
        return tasknames.full(self.task)


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a runtime sees of one task at this moment."""

    phase: Phase
    container_id: str = ""
    pid: int = 0
    exit_code: int = 0
    healthy: bool | None = None  # None: no health check, or no verdict yet while `health_checked`
    health_checked: bool = False  # a health check is configured: RUNNING waits for the first `healthy`
    error: str = ""  # why it ended or did not start, in words ("out of memory", "exec format error")
    ports: tuple[pb.PortConfig, ...] = ()  # host-mode ports with their published numbers


ABSENT = Observation(Phase.ABSENT)


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """Which part of a task's output is wanted."""

    follow: bool = False
    stdout: bool = True
    stderr: bool = True
    tail: int = -1  # last lines; negative = all
    since: float = 0.0  # seconds since the epoch


class Runtime(Protocol):
    """A driver for one kind of container runtime. Sees only containers of its own node ID."""

    name: str  # "docker", "process", "memory"

    @property
    def access(self) -> entering.Access:
        """What can be done in and with its tasks."""
        ...

    async def open(self) -> None:
        """Connects. Raises Unavailable with the reason when the runtime does not answer.

        One that has an engine is open all the same then, and goes on as soon as the engine answers.
        """
        ...

    async def close(self) -> None:
        """Disconnects. Never stops a task: no restart of ours restarts anything of the users'."""
        ...

    async def describe(self) -> pb.NodeDescription:
        """Platform, resources, engine version and labels of this machine (the hostname is the daemon's business)."""
        ...

    async def prepare(self, workload: Workload, progress: Callable[[str], None]) -> None:
        """Brings the task to CREATED: image, volumes, container. `progress` takes one line for the task's status.

        Called for any number of tasks at the same time: bounding what costs much is the runtime's business.
        """
        ...

    async def start(self, workload: Workload) -> None:
        """Starts the created container. Does nothing when it runs or has run."""
        ...

    async def stop(self, workload: Workload) -> None:
        """Stop signal, grace period, SIGKILL; returns once it has ended. Does nothing when nothing runs."""
        ...

    async def remove(self, task_id: str) -> None:
        """Removes whatever is left of the task: container, anonymous volumes, directory, logs."""
        ...

    async def tidy(self, needed: Collection[str]) -> None:
        """Makes room where the runtime's disk is too full; `needed` are the images that must stay."""
        ...

    async def observe(self, task_id: str) -> Observation:
        """What there is of the task now."""
        ...

    async def list(self) -> list[str]:
        """IDs of all tasks of which this node's runtime still holds something."""
        ...

    def events(self) -> AsyncIterator[str]:
        """IDs of tasks that may have changed; "" means that events may have been missed: look at all of them.

        Ends only when closed; reconnects by itself and then yields "".
        """
        ...

    def logs(self, task_id: str, options: LogOptions) -> AsyncIterator[pb.LogEntry]:
        """The task's output, oldest first. Raises NotFound when nothing is kept of it."""
        ...
