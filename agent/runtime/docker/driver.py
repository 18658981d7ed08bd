"""The Docker runtime: each task is a container of the machine's engine, found again by its labels.

Owns no state but a cache of container IDs, which spares the engine most questions: a task costs it three calls to start
and three to end. Touches only containers that carry this node's ID and a task's, and the task's name: labels are
inherited by images that are made of containers. Engines are made to restart nothing by themselves and, with
live-restore, to keep containers through their own restarts.

Podman's service answers the same calls. Known differences: health checks are run by systemd timers, so without
systemd a check stays "starting"; restart policies need a service of its own (none is used here); event attributes may
lack labels, which then means "look at all"; short image names become localhost/NAME.
"""

import asyncio
import builtins
import contextlib
import pathlib
import re
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import structlog

from agent.runtime import base, vault
from agent.runtime.docker import access, cleaning, client, events, images, logs, spec
from skep import clock, errors, ids, pb, policies

log = structlog.get_logger(__name__)

CREATE_S = 120.0  # new volumes are filled from the image before the call returns
START_S = 120.0
STOP_SLACK_S = 30.0  # on top of the grace period: the engine kills and tidies up
REMOVE_S = 60.0
CREATES_MAX, STARTS_MAX = 16, 16  # at the same time; apart, as either may hang on a volume
ENDINGS_MAX = 8  # containers stopped or removed at the same time: an engine that gets more at once takes longer for all
STUBBORN_S = 1.0  # a call that takes longer waits for its container, not for the engine, so others may go ahead
# An engine in trouble says these; the same call may succeed later.
PASSING = ("context deadline exceeded", "context canceled", "connection refused", "transport is closing",
           "code = unavailable", "removal of container")  # fmt: skip
WRONG_PLATFORM = "does not match the specified platform"
BIND_SOURCE = re.compile(r"bind source path does not exist: (.*)")


def failure(error: errors.SkepError, *, doing: str) -> base.TaskFatal | base.TaskTemporary:
    """The engine's refusal as the task's fate, in the engine's words."""
    text = " ".join(str(error).split())
    missing = BIND_SOURCE.search(text)
    if missing:
        return base.TaskFatal(f"invalid bind mount source, source path not found: {missing.group(1)}")
    if isinstance(error, client.EngineFailed) and any(word in text.lower() for word in PASSING):
        return base.TaskTemporary(f"{doing}: {text}")
    return base.TaskFatal(f"{doing}: {text}")


class DockerRuntime:
    """Runs tasks as containers of the engine behind a unix socket."""

    name = "docker"

    def __init__(
        self,
        *,
        node_id: str,
        socket: str,
        clock: clock.Clock,
        rng: ids.Rng,
        call_s: float = client.CALL_S,
        notes: pathlib.Path | None = None,
        stirred: Callable[[], None] = lambda: None,
    ) -> None:
        """`call_s` is how long the engine may take for what it should answer at once; `notes` is the file that keeps
        which images were pulled. `stirred` is called when the engine goes away and when it is back."""
        self._node_id = node_id
        self._clock = clock
        self._rng = rng
        self._stirred = stirred
        self._engine = client.Client(socket, call_s=call_s)
        self._cleaner = cleaning.Cleaner(self._engine, clock=clock, notes=notes)
        self._images = images.Images(self._engine, self._cleaner)
        self._vault = vault.Vault(node_id=node_id)
        self._containers: dict[str, str] = {}  # task ID -> container ID
        self._complete = False  # whether those are all: nobody else makes containers of this node
        self._doubts = 0  # how often that was called in question
        self._listing = asyncio.Lock()
        self._creating = asyncio.Semaphore(CREATES_MAX)
        self._starting = asyncio.Semaphore(STARTS_MAX)
        self._endings = asyncio.Semaphore(ENDINGS_MAX)
        self._unstarted: dict[str, None] = {}  # tasks whose containers this driver has made, and nobody has started
        self.access = access.DockerAccess(self._engine, self._inspect)

    async def open(self) -> None:
        """Connects. Raises Unavailable (EngineAway) with the reason; is open all the same. See base.Runtime."""
        await self._engine.open()

    async def close(self) -> None:
        """Disconnects; containers run on, layers that were pulled stay."""
        await self._images.close()
        await self._engine.close()

    async def describe(self) -> pb.NodeDescription:
        """What the engine says about its machine."""
        made = spec.describe(await self._engine.get("/info"))
        made.disk.image_bytes = await self._images.used_bytes()
        return made

    async def prepare(self, workload: base.Workload, progress: Callable[[str], None]) -> None:
        """Pulls the image if it is missing and creates the container."""
        task_id, container = workload.task.id, workload.container
        if await self._inspect(task_id) is not None:
            return
        files = await self._keep_files(workload)
        body = spec.create_body(workload, node_id=self._node_id, api=self._engine.version, files=files)
        query = spec.create_query(workload, api=self._engine.version)
        await self._images.ensure(
            container.image, auth=container.registry_auth, revision=workload.task.revision_id, progress=progress
        )
        progress("creating the container")
        try:
            async with self._creating:
                made = await self._engine.labour("/containers/create", query=query, body=body, timeout_s=CREATE_S)
        except errors.Conflict as error:
            # Ours when an earlier call was answered too late; a stranger with this very name is an operator's doing.
            self._doubt()
            if await self._inspect(task_id) is None:
                raise failure(error, doing="creating the container") from error
            return
        except client.EngineAway:
            self._doubt()  # it may have made it all the same
            raise
        except errors.NotFound as error:
            if WRONG_PLATFORM in str(error):
                raise base.TaskFatal(f"creating the container: {error}") from error
            # The image was removed a moment ago: pull again.
            self._images.forget(container.image)
            raise base.TaskTemporary(f"creating the container: {error}") from error
        except (client.EngineFailed, errors.Invalid, errors.Denied) as error:
            raise failure(error, doing="creating the container") from error
        self._containers[task_id] = made["Id"]
        self._unstarted[task_id] = None
        for warning in made.get("Warnings") or []:
            log.warning("container.created_with_warning", task=task_id, warning=warning)

    async def _keep_files(self, workload: base.Workload) -> builtins.list[str]:
        """Paths of the task's secrets and configs on this machine, which the container gets mounted."""
        if not workload.files:
            return []
        names = [str(number) for number in range(len(workload.files))]
        kept = await asyncio.to_thread(self._vault.write, workload.task.id, workload.files, names=names)
        return [str(kept / name) for name in names]

    async def start(self, workload: base.Workload) -> None:
        """Starts the container unless it has run: a task is one attempt."""
        task_id = workload.task.id
        container_id = self._containers.get(task_id, "")
        if task_id in self._unstarted:
            del self._unstarted[task_id]
        else:
            container = await self._inspect(task_id)
            if container is None:
                raise base.TaskTemporary(f"task {task_id} has no container")
            if spec.observation(container).phase is not base.Phase.CREATED:
                return
            container_id = container["Id"]
        try:
            async with self._starting:
                await self._engine.labour(f"/containers/{container_id}/start", timeout_s=START_S)
        except (client.EngineFailed, errors.Invalid, errors.NotFound, errors.Conflict, errors.Denied) as error:
            raise failure(error, doing="starting the container") from error

    async def stop(self, workload: base.Workload) -> None:
        """The engine sends the stop signal, waits and kills."""
        task_id = workload.task.id
        grace_s = spec.grace_s(workload.container)
        container_id = await self._find(task_id)
        if not container_id:
            return
        try:  # one that does not run is left as it is
            async with self._ending(waits=policies.lease_s(workload.spec.labels) is None):
                await self._engine.wait(
                    f"/containers/{container_id}/stop", query={"t": str(grace_s)}, timeout_s=grace_s + STOP_SLACK_S
                )
        except errors.NotFound:
            return
        except client.EngineFailed as error:
            raise base.TaskTemporary(f"stopping the container: {error}") from error

    async def remove(self, task_id: str) -> None:
        """Removes the task's container, running or not, with its anonymous volumes."""
        container_id = await self._find(task_id)
        if container_id:
            async with self._ending():
                await self._remove(container_id)
        await asyncio.to_thread(self._vault.drop, task_id)
        self._forget(task_id)

    @contextlib.asynccontextmanager
    async def _ending(self, *, waits: bool = True) -> AsyncIterator[None]:
        """One of the places for what ends containers; whoever takes long gives it back early.

        A task that must never run twice needs none: managers count on how long it takes at most to stop.
        """
        if not waits:
            yield
            return
        await self._endings.acquire()
        back = contextlib.ExitStack()
        back.callback(self._endings.release)
        early = asyncio.get_running_loop().call_later(STUBBORN_S, back.close)
        try:
            yield
        finally:
            early.cancel()
            back.close()

    def _forget(self, task_id: str) -> None:
        self._containers.pop(task_id, None)
        self._unstarted.pop(task_id, None)

    async def _remove(self, container_id: str) -> None:
        try:
            await self._engine.delete(f"/containers/{container_id}", query={"force": "1", "v": "1"}, timeout_s=REMOVE_S)
        except errors.NotFound:
            return
        except errors.Conflict:  # somebody else is removing it
            with contextlib.suppress(errors.NotFound):
                await self._engine.wait(
                    f"/containers/{container_id}/wait", query={"condition": "removed"}, timeout_s=REMOVE_S
                )
        except client.EngineFailed as error:
            raise base.TaskTemporary(f"removing the container: {error}") from error

    async def tidy(self, needed: Collection[str]) -> None:
        """Removes images that were pulled here and that nothing needs, while the engine's disk is too full."""
        await self._cleaner.tidy(needed)

    async def observe(self, task_id: str) -> base.Observation:
        """Asks the engine, but for a container that was made a moment ago and not touched since."""
        if task_id in self._unstarted:
            return base.Observation(base.Phase.CREATED, container_id=self._containers[task_id])
        container = await self._inspect(task_id)
        if container is None:
            return base.ABSENT
        seen = spec.observation(container)
        if seen.phase is base.Phase.EXITED and task_id in self._vault.tasks():
            await asyncio.to_thread(self._vault.drop, task_id)  # a container that has ended never starts again
        return seen

    async def list(self) -> list[str]:
        """Tasks of which the engine holds a container, or this machine files."""
        self._doubt()
        await self._find("")
        return sorted({**self._containers, **dict.fromkeys(self._vault.tasks())})

    def events(self) -> AsyncIterator[str]:
        """See base.Runtime."""
        return events.listen(
            self._engine, node_id=self._node_id, clock=self._clock, rng=self._rng, stirred=self._reconnected
        )

    def _reconnected(self) -> None:
        self._doubt()
        self._stirred()

    def _doubt(self) -> None:
        """There may be containers that are not known here."""
        self._complete = False
        self._doubts += 1

    async def logs(self, task_id: str, options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
        """See base.Runtime. Raises FailedPrecondition when the container's log driver cannot be read."""
        container = await self._inspect(task_id)
        if container is None:
            raise errors.NotFound(f"task {task_id} has no output on this node")
        parse = logs.lines if (container.get("Config") or {}).get("Tty") else logs.frames
        try:
            async with self._engine.stream(
                "GET",
                f"/containers/{container['Id']}/logs",
                query=logs.query(options),
                idle_s=None if options.follow else client.CALL_S,
            ) as chunks:
                async for entry in parse(chunks):
                    yield entry
        except client.EngineFailed as error:
            raise errors.FailedPrecondition(f"the output of task {task_id} cannot be read: {error}") from error

    async def _inspect(self, task_id: str) -> dict[str, Any] | None:
        container_id = await self._find(task_id)
        container = await self._inspect_id(container_id) if container_id else None
        if container is None:
            self._forget(task_id)
        return container

    async def _find(self, task_id: str) -> str:
        """The ID of the task's container; empty when there is none."""
        if not self._complete and task_id not in self._containers:
            async with self._listing:
                if not self._complete:
                    doubts, before = self._doubts, list(self._containers)
                    listed = await self._list(node=self._node_id)
                    found = spec.tasks(listed)
                    for gone in before:
                        if gone not in found:
                            self._forget(gone)
                    self._containers.update(found)
                    self._complete = doubts == self._doubts
        return self._containers.get(task_id, "")

    async def _inspect_id(self, container_id: str) -> dict[str, Any] | None:
        try:
            container: dict[str, Any] = await self._engine.get(f"/containers/{container_id}/json")
        except errors.NotFound:
            return None
        except client.EngineFailed as error:
            raise base.TaskTemporary(f"looking at the container: {error}") from error
        return container

    async def _list(self, **labels: str) -> builtins.list[dict[str, Any]]:
        try:
            found: builtins.list[dict[str, Any]] = await self._engine.get(
                "/containers/json", query={"all": "1", "filters": spec.label_filter(**labels)}
            )
        except client.EngineFailed as error:
            raise base.TaskTemporary(f"listing containers: {error}") from error
        return found
