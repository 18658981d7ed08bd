"""Picks the runtime of this machine. The only place that knows all drivers."""

import asyncio
import pathlib
from collections.abc import Callable
from typing import Literal

import structlog

from agent.runtime import base, docker, memory, process
from skep import clock, errors, ids

log = structlog.get_logger(__name__)

Kind = Literal["auto", "docker", "process", "memory"]
PATIENCE_S = 2.0  # for an engine that may come later: it must not keep the machine from anything else
CHOSEN = "runtime"  # file in the runtime's directory that keeps what `auto` once chose


async def choose(
    kind: Kind,
    *,
    node_id: str,
    directory: pathlib.Path,
    docker_socket: str,
    clock: clock.Clock,
    rng: ids.Rng,
    stirred: Callable[[], None] = lambda: None,
    away: Callable[[str], None] | None = None,
) -> base.Runtime:
    """An opened runtime, which calls `stirred` when its engine goes away or comes back.

    With `away`, an engine that does not answer is no error: `away` is told why, and the runtime goes on once it does.

    `auto` is Docker when an engine answers at `docker_socket`, else the process runtime.
    `auto` keeps to its first choice: an engine that is late at boot must not have the node's tasks looked for among
    processes. Raises Unavailable when the chosen one does not answer, Invalid for an unknown kind.
    """
    if kind == "auto":
        return await _automatic(
            node_id=node_id, directory=directory, docker_socket=docker_socket, clock=clock, rng=rng, stirred=stirred,
            away=away,
        )  # fmt: skip
    runtime: base.Runtime
    if kind == "docker":
        notes = directory / "images.json"
        runtime = docker.DockerRuntime(
            node_id=node_id, socket=docker_socket, clock=clock, rng=rng, notes=notes, stirred=stirred
        )
    elif kind == "process":
        runtime = process.ProcessRuntime(node_id=node_id, directory=directory, clock=clock, rng=rng)
    elif kind == "memory":
        runtime = memory.MemoryRuntime(node_id=node_id, clock=clock, rng=rng)
    else:
        raise errors.Invalid(f"unknown runtime {kind!r}: there are auto, docker, process and memory")
    try:
        async with asyncio.timeout(None if away is None or kind != "docker" else PATIENCE_S):
            await runtime.open()
    except (errors.SkepError, TimeoutError) as error:
        if away is not None and kind == "docker":
            away(str(error) or f"the container engine at {docker_socket} does not answer in time")
            return runtime
        await runtime.close()
        raise
    return runtime


async def _automatic(
    *,
    node_id: str,
    directory: pathlib.Path,
    docker_socket: str,
    clock: clock.Clock,
    rng: ids.Rng,
    stirred: Callable[[], None],
    away: Callable[[str], None] | None,
) -> base.Runtime:
    async def one(kind: Kind, away: Callable[[str], None] | None = None) -> base.Runtime:
        return await choose(
            kind, node_id=node_id, directory=directory, docker_socket=docker_socket, clock=clock, rng=rng,
            stirred=stirred, away=away,
        )  # fmt: skip

    note = directory / CHOSEN
    earlier = _read(note)
    if earlier == "process":
        return await one("process")
    try:
        runtime = await one("docker", away if earlier == "docker" else None)
    except errors.Unavailable as error:
        if earlier == "docker":
            raise errors.Unavailable(
                f"this node ran its tasks on the container engine, which does not answer now: {error}. Start the "
                f"engine, or remove {note} to have tasks run as processes from now on"
            ) from error
        log.info("runtime.no_engine", socket=docker_socket, reason=str(error))
        runtime = await one("process")
    _write(note, runtime.name)
    return runtime


def _read(note: pathlib.Path) -> str:
    try:
        return note.read_text().strip()
    except OSError:
        return ""


def _write(note: pathlib.Path, name: str) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(name + "\n")
    except OSError as error:
        raise errors.Unavailable(f"cannot note the choice of runtime in {note}: {error}") from error
