"""What this node is at the moment: the runtime's description, with disk, memory and ports, and what is wrong with them.

Owns the judgement. Figures are kept as they were until they have moved by a step, and a condition ends only well above
the line at which it began: every difference travels through the managers' log.
"""

import asyncio
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence

import structlog

from agent.network import listening
from agent.runtime import base
from skep import errors, pb

log = structlog.get_logger(__name__)

DESCRIBE_TIMEOUT_S = 10.0
MEASURE_TIMEOUT_S = 5.0  # a network file system can hang
DISK_SHARE, DISK_BYTES = 0.10, 5 << 30  # low below the smaller of the two; images are removed long before
MEMORY_SHARE, MEMORY_BYTES = 0.05, 256 << 20
RECOVERED = 1.25  # times the line, before it is over
ENGINE = "engine"  # the kind of the condition that it does not answer
STEPS = 50  # figures move in so many steps of the whole
HOST_PORTS_MAX = 256
MEMINFO = pathlib.Path("/proc/meminfo")
_GB, _MB = 1000**3, 1000**2


@dataclasses.dataclass(frozen=True)
class Space:
    """Something of which there is only so much, in bytes."""

    total: int
    free: int


@dataclasses.dataclass(frozen=True)
class Machine:
    """How a machine is measured; tests bring their own. `disk` raises OSError."""

    disk: Callable[[str], Space]
    memory: Callable[[], Space | None]
    ports: Callable[[], list[int]]


def disk_space(path: str) -> Space:
    """Of the file system of `path`; what is kept for root does not count."""
    usage = shutil.disk_usage(path)
    return Space(usage.used + usage.free, usage.free)


def memory_space(path: pathlib.Path = MEMINFO) -> Space | None:
    """What programs can have without swapping; None where the kernel does not say."""
    try:
        rows = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return Space(*(int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")))
    except (OSError, ValueError, KeyError, IndexError):
        return None


THIS_MACHINE = Machine(disk=disk_space, memory=memory_space, ports=listening.ports)


def is_low(space: Space, *, share: float, most: int, was: bool) -> bool:
    """Whether too little is free. Pure."""
    line = min(space.total * share, most)
    return space.free < (line * RECOVERED if was else line)


def steady(before: int, now: int, *, total: int) -> int:
    """`before` while the figure has moved by less than a step. Pure."""
    step = max(1, total // STEPS)
    return before if before and abs(now - before) < step else now


def conditions(disk: Space | None, memory: Space | None, *, path: str, before: Sequence[str]) -> list[pb.NodeCondition]:
    """What is wrong; `before` are the kinds that were. Pure."""
    found: list[pb.NodeCondition] = []
    if disk is not None and is_low(disk, share=DISK_SHARE, most=DISK_BYTES, was="disk" in before):
        text = f"{disk.free / _GB:.1f} GB of {disk.total / _GB:.0f} GB are free on the disk of {path}"
        found.append(pb.NodeCondition(kind="disk", summary="low on disk", message=text))
    if memory is not None and is_low(memory, share=MEMORY_SHARE, most=MEMORY_BYTES, was="memory" in before):
        text = f"{memory.free / _MB:.0f} MB of {memory.total / _MB:.0f} MB memory are available"
        found.append(pb.NodeCondition(kind="memory", summary="low on memory", message=text))
    return found


def _without_engine(known: pb.NodeDescription, reason: str) -> pb.NodeDescription:
    made = pb.NodeDescription()
    made.CopyFrom(known)
    made.conditions.add(kind=ENGINE, summary="without container engine", message=reason)
    return made


class Facts:
    """The description of one node."""

    def __init__(
        self,
        *,
        runtime: base.Runtime,
        machine: Machine = THIS_MACHINE,
        known: pb.NodeDescription | None = None,
        remember: Callable[[pb.NodeDescription], None] = lambda _: None,
    ) -> None:
        """`known` is what an agent before this one gave to `remember`, which is told whatever differs from it."""
        self._runtime = runtime
        self._machine = machine
        self._known = known
        self._remember = remember

    async def describe(self) -> pb.NodeDescription:
        """As it is now; with a runtime that does not answer, as it was, and what is wrong.

        Raises what the runtime does while it has never answered.
        """
        made = pb.NodeDescription()
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                made.CopyFrom(await self._runtime.describe())
        except (errors.SkepError, TimeoutError, OSError) as error:
            if self._known is None:
                raise
            reason = str(error) or f"no answer within {DESCRIBE_TIMEOUT_S:g} s"
            log.warning("node.runtime_silent", error=reason)
            return _without_engine(self._known, reason)
        if made.disk.path:  # a runtime without a place on a disk is none of a machine
            await self._measure(made)
        if made != self._known:
            self._known = pb.NodeDescription()
            self._known.CopyFrom(made)  # whoever asks adds to it
            self._remember(made)
        return made

    def without_engine(self, reason: str) -> pb.NodeDescription | None:
        """What is known of a machine whose engine does not answer; None when it never has."""
        return _without_engine(self._known, reason) if self._known is not None else None

    async def _measure(self, made: pb.NodeDescription) -> None:
        before = self._known or pb.NodeDescription()
        disk = await self._disk(made.disk.path)
        memory = self._machine.memory()
        kinds = [each.kind for each in before.conditions]
        found = conditions(disk, memory, path=made.disk.path, before=kinds)
        if kinds == [each.kind for each in found]:
            found = list(before.conditions)  # the same words as long as it lasts
        made.conditions.extend(found)
        made.host_ports.extend(self._machine.ports()[:HOST_PORTS_MAX])
        if disk is not None:
            made.disk.total_bytes = disk.total
            made.disk.free_bytes = steady(before.disk.free_bytes, disk.free, total=disk.total)
            made.disk.image_bytes = steady(before.disk.image_bytes, made.disk.image_bytes, total=disk.total)

    async def _disk(self, path: str) -> Space | None:
        try:
            async with asyncio.timeout(MEASURE_TIMEOUT_S):
                return await asyncio.to_thread(self._machine.disk, path)
        except (OSError, TimeoutError) as error:  # an engine whose files are on another machine, or in a container
            log.debug("node.disk_unknown", path=path, error=str(error))
            return None
