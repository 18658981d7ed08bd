"""Workloads for runtime tests, and waiting on conditions."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.runtime import base
from skep import ids, pb

RNG = ids.system_rng()
NODE_ID = "testnode0000000000000node1"[:25]
DEADLINE_S = 20.0
T = TypeVar("T")
ALL = base.LogOptions()


def workload(
    *args: str,
    container: pb.ContainerSpec | None = None,
    ports: list[pb.PortConfig] | None = None,
    limits: pb.Resources | None = None,
    task_id: str = "",
    service: str = "web",
    node_id: str = NODE_ID,
    files: tuple[base.File, ...] = (),
) -> base.Workload:
    """A task of a service whose container runs `args`."""
    spec = pb.ServiceSpec(name=service, task=pb.TaskSpec(container=container or pb.ContainerSpec(image="process")))
    if args:
        spec.task.container.args[:] = args
    if not spec.task.container.HasField("stop_grace_period"):
        spec.task.container.stop_grace_period = 5_000_000_000
    if ports:
        spec.endpoint.ports.extend(ports)
    if limits:
        spec.task.resources.limits.CopyFrom(limits)
    task = pb.Task(id=task_id or ids.new_id(RNG), service_id="service1", service_name=service, slot=1, node_id=node_id)
    node = pb.Node(id=node_id, description=pb.NodeDescription(hostname="host1"))
    return base.Workload(task=task, spec=spec, node=node, files=files)


def file(
    target: str, data: bytes, *, kind: str = "secret", path: str = "", uid: int = 0, gid: int = 0, mode: int = 0o444
) -> base.File:
    """A secret or config of a task."""
    return base.File(kind, target, path or f"/run/secrets/{target}", data, uid, gid, mode)


def host_port(target: int, *, published: int = 0) -> pb.PortConfig:
    """A port published on the machine."""
    return pb.PortConfig(
        target_port=target,
        published_port=published,
        protocol=pb.PORT_PROTOCOL_TCP,
        publish_mode=pb.PUBLISH_MODE_HOST,
    )


async def until(look: Callable[[], Awaitable[T]], accept: Callable[[T], bool], *, what: str) -> T:
    """Looks again until `accept` says yes."""
    end = time.monotonic() + DEADLINE_S
    while True:
        seen = await look()
        if accept(seen):
            return seen
        assert time.monotonic() < end, f"{what} did not come about; last seen: {seen}"
        await asyncio.sleep(0.02)


async def phase(runtime: base.Runtime, task_id: str, wanted: base.Phase) -> base.Observation:
    """Waits until the task is in the phase."""
    return await until(lambda: runtime.observe(task_id), lambda seen: seen.phase is wanted, what=f"phase {wanted}")


async def run(runtime: base.Runtime, work: base.Workload) -> base.Observation:
    """Prepares and starts."""
    await runtime.prepare(work, lambda _: None)
    await runtime.start(work)
    return await runtime.observe(work.task.id)


async def output(runtime: base.Runtime, task_id: str, options: base.LogOptions = ALL) -> str:
    """The task's output as text."""
    return "".join([entry.data.decode() async for entry in runtime.logs(task_id, options)])
