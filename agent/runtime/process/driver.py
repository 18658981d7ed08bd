"""The process runtime: see `shim` for what runs a task, `files` for what is kept of it.

Owns the tasks' directories below its own. Holds nothing in memory that it could not find again there, except health
verdicts; so an agent that was killed goes on where it was. Never signals a process that is not proven to be ours.
"""

import asyncio
import dataclasses
import functools
import json
import os
import pathlib
import platform
import signal
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from typing import Any

import structlog

from agent.network import ports
from agent.runtime import base, bell, refuse, vault
from agent.runtime.process import access, cgroups, files, health, leftovers, logs, proof, spec, watch
from skep import clock, errors, ids, pb

log = structlog.get_logger(__name__)

SHIM = pathlib.Path(__file__).with_name("shim.py")
START_S = 30.0  # for the supervisor to report; it takes 30 ms on an idle machine
STOP_SLACK_S = 10.0  # on top of the grace period, before the supervisor itself is taken for hung
REMOVE_S = 10.0  # from SIGUSR1 until the tree must be gone
LOST_EXIT_CODE = 137  # the supervisor was killed, and its command with it


class ProcessRuntime:
    """Runs tasks as supervised process groups of this machine. Needs no privileges; with root it also limits them."""

    name = "process"

    def __init__(self, *, node_id: str, directory: pathlib.Path, clock: clock.Clock, rng: ids.Rng) -> None:
        self._node_id = node_id
        self._root = directory
        self._clock = clock
        self._rng = rng
        self._boot_id = ""
        self._bell = bell.Bell()
        self._ports = ports.PortPicker()
        self._cgroups = cgroups.Cgroups(node_id=node_id)
        self._vault = vault.Vault(node_id=node_id)
        self._watcher = watch.Watcher(self._supervisor_ended)
        self.access = access.ProcessAccess(directory=self._directory, ended=self._watcher.wait, clock=clock)
        self._checkers: dict[str, health.Checker] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Finds the tasks of an earlier agent again and watches those that run."""
        try:
            self._root.mkdir(mode=files.TRAVERSABLE, parents=True, exist_ok=True)
            self._boot_id = proof.boot_id()
        except OSError as error:
            raise errors.Unavailable(f"the process runtime cannot work in {self._root}: {error}") from error
        self._cgroups.open()
        task_ids = await self.list()
        for task_id in self._cgroups.stale():
            if task_id not in task_ids:  # an agent died between the two
                await asyncio.to_thread(self._cgroups.kill_and_remove, self._cgroups.of(task_id))
        for task_id in task_ids:
            directory = self._directory(task_id)
            task = directory.read_task()
            if task is None:
                continue
            if directory.read_exit() is None:
                self._ports.remember(task_id, task.ports)
            self._adopt(directory, task)
        self._bell.ring("")

    async def close(self) -> None:
        """Lets go of everything; tasks and their supervisors run on."""
        self._bell.close()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._watcher.close()
        self._cgroups.close()
        await asyncio.gather(*(checker.close() for checker in self._checkers.values()))
        self._checkers.clear()

    async def describe(self) -> pb.NodeDescription:
        """What this machine has; the limits that can be enforced stand in an engine label."""
        cpus = len(os.sched_getaffinity(0))
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pb.NodeDescription(
            platform=pb.Platform(architecture=platform.machine(), os=platform.system().lower()),
            resources=pb.Resources(nano_cpus=cpus * 1_000_000_000, memory_bytes=memory_bytes),
            engine=pb.EngineDescription(
                engine_version=platform.release(),
                labels={spec.LABEL_LIMITS: cgroups.described(self._cgroups.controllers)},
                runtime=self.name,
            ),
            disk=pb.DiskUsage(path=str(self._root)),
        )

    async def prepare(self, workload: base.Workload, progress: Callable[[str], None]) -> None:
        """Writes the task's directory; what cannot be honoured is TaskFatal."""
        await self._whole(self._prepare(workload, progress))

    async def _prepare(self, workload: base.Workload, progress: Callable[[str], None]) -> None:
        task_id = workload.task.id
        directory = self._directory(task_id)
        async with self._lock(task_id):
            if directory.read_task() is not None:
                return
            progress("preparing the task's directory")
            try:
                await asyncio.to_thread(directory.write_task, self._plan(workload, directory))
            except errors.Invalid as error:
                raise base.TaskFatal(str(error)) from error
            except errors.Unavailable as error:
                raise base.TaskTemporary(str(error)) from error
            except OSError as error:
                raise base.TaskTemporary(f"preparing {directory.path}: {error}") from error

    def _plan(self, workload: base.Workload, directory: files.TaskDirectory) -> files.Task:
        task_id = workload.task.id
        health.parse(workload.container.healthcheck)  # refuse before taking ports
        plan_it = functools.partial(
            spec.plan, workload, work_dir=directory.work, euid=os.geteuid(), controllers=self._cgroups.controllers
        )
        dry = plan_it(ports=[])
        published = self._ports.assign(task_id, refuse.host_ports(workload))
        check = health.parse(workload.container.healthcheck, ports=published)
        plan = plan_it(ports=published)
        directory.create(uid=dry.uid, gid=dry.gid)
        if workload.files:
            kept = self._vault.write(
                task_id, workload.files, names=spec.file_names(workload.files), as_owner=True,
                directory_owner=None if dry.uid is None else (dry.uid, dry.gid),
            )  # fmt: skip
            plan.env.update(spec.file_environment(kept))
        groups = self._cgroups.create(task_id, workload.spec.task.resources.limits)
        plan.cgroup_procs.extend(cgroups.procs_files(groups))
        plan.oom_files.extend(cgroups.oom_files(groups))
        return files.Task(
            node_id=self._node_id, task_id=task_id, plan=plan, ports=published, health=check, cgroups=groups
        )

    async def start(self, workload: base.Workload) -> None:
        """Starts the supervisor and returns when it has started the command."""
        await self._whole(self._start(workload))

    async def _start(self, workload: base.Workload) -> None:
        task_id = workload.task.id
        directory = self._directory(task_id)
        async with self._lock(task_id):
            if directory.read_run() is None and directory.read_exit() is None:
                prepared = directory.read_task()
                if prepared is None:
                    raise base.TaskTemporary(f"task {task_id} is not prepared")
                try:
                    ports.check_free(prepared.ports)
                except errors.Conflict as error:
                    raise base.TaskFatal(str(error)) from error
                try:
                    await self._launch(directory)
                except base.TaskFatal:
                    await self._end(directory, prepared)  # nobody else will: there is no supervisor to be watched
                    raise
            task = directory.read_task()
            if task is not None:
                self._adopt(directory, task)
        self._bell.ring(task_id)

    async def _launch(self, directory: files.TaskDirectory) -> None:
        try:
            with (directory.path / "shim.err").open("ab") as complaints:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-S", "-B", str(SHIM), str(directory.path),
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=complaints, env={},
                    start_new_session=True,
                )  # fmt: skip
            async with asyncio.timeout(START_S):
                answer, _ = await process.communicate()
        except TimeoutError:
            raise base.TaskTemporary(f"the supervisor did not report within {START_S:g} s") from None
        except OSError as error:
            raise base.TaskTemporary(f"starting the supervisor: {error}") from error
        try:
            report = json.loads(answer)
        except ValueError:
            said = (directory.path / "shim.err").read_text(errors="replace").strip().splitlines()[-1:]
            raise base.TaskTemporary(f"the supervisor died at its start: {said}") from None
        if report["error"]:
            raise (base.TaskFatal if report["fatal"] else base.TaskTemporary)(report["error"])

    async def stop(self, workload: base.Workload) -> None:
        """Leaves signal and grace period to the supervisor, which also keeps them when the agent dies."""
        task_id = workload.task.id
        directory = self._directory(task_id)
        task = directory.read_task()
        if task is None:
            return
        async with self._lock(task_id):
            self._watcher.signal(task_id, signal.SIGTERM)
            try:
                async with asyncio.timeout(task.plan.stop_grace_s + STOP_SLACK_S):
                    await self._watcher.wait(task_id)
            except TimeoutError:
                log.warning("process.supervisor_hung", task=task_id)
            await self._end(directory, task)

    async def remove(self, task_id: str) -> None:
        """Kills what is left and deletes the directory."""
        directory = self._directory(task_id)
        async with self._lock(task_id):
            task = directory.read_task()
            if task is not None:
                self._watcher.signal(task_id, signal.SIGUSR1)
                try:
                    async with asyncio.timeout(REMOVE_S):
                        await self._watcher.wait(task_id)
                except TimeoutError:
                    log.warning("process.supervisor_hung", task=task_id)
                await self._end(directory, task)
            groups = self._cgroups.of(task_id) if task is None else task.cgroups
            await asyncio.to_thread(self._cgroups.kill_and_remove, groups)
            try:
                await asyncio.to_thread(self._vault.drop, task_id)
                await asyncio.to_thread(directory.delete)
            except OSError as error:
                raise base.TaskTemporary(f"removing {directory.path}: {error}") from error
        self._ports.release(task_id)
        self._locks.pop(task_id, None)
        self._bell.ring(task_id)

    async def _end(self, directory: files.TaskDirectory, task: files.Task) -> None:
        """Afterwards nothing of the task runs, whatever became of its supervisor."""
        self._ports.release(task.task_id)
        checker = self._checkers.pop(task.task_id, None)
        if checker is not None:
            await checker.close()
        run = directory.read_run()
        if run is not None and directory.read_exit() is None:
            await asyncio.to_thread(leftovers.kill, run, task, node_id=self._node_id)
        await asyncio.to_thread(self._vault.drop, task.task_id)

    async def tidy(self, needed: Collection[str]) -> None:
        """There are no images here."""

    async def observe(self, task_id: str) -> base.Observation:
        """Read from the task's directory and /proc each time."""
        directory = self._directory(task_id)
        task = directory.read_task()
        if task is None:
            return base.ABSENT
        run = directory.read_run()
        alive = run is not None and proof.alive(run.shim_pid, start=run.shim_start, boot=run.boot_id)
        ended = directory.read_exit()  # read after the look at the supervisor: it writes this last
        seen = base.Observation(
            base.Phase.CREATED, container_id=task_id, ports=tuple(task.ports), health_checked=task.health is not None
        )
        if ended is not None:
            error = "out of memory" if ended.oom else ended.error
            return dataclasses.replace(seen, phase=base.Phase.EXITED, exit_code=ended.exit_code, error=error)
        if run is None:
            return seen
        if not alive:
            lost = "the machine was restarted" if run.boot_id != self._boot_id else "its supervisor was killed"
            return dataclasses.replace(seen, phase=base.Phase.EXITED, exit_code=LOST_EXIT_CODE, error=lost)
        checker = self._checkers.get(task_id)
        verdict = checker.healthy if checker is not None else None
        return dataclasses.replace(seen, phase=base.Phase.RUNNING, pid=run.pid, healthy=verdict)

    async def list(self) -> list[str]:
        """Tasks with a directory here, also a half-made one; not those of a node that used this directory before."""
        found = sorted(entry.name for entry in self._root.iterdir() if entry.is_dir() and entry.name.isalnum())
        tasks = [(task_id, self._directory(task_id).read_task()) for task_id in found]
        return [task_id for task_id, task in tasks if task is None or task.node_id == self._node_id]

    def events(self) -> AsyncIterator[str]:
        """See base.Runtime."""
        return self._bell.listen()

    async def logs(self, task_id: str, options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
        """See base.Runtime."""
        directory = self._directory(task_id)
        if directory.read_task() is None:
            raise errors.NotFound(f"task {task_id} has no output on this node")

        def ended() -> bool:
            run = directory.read_run()
            if directory.read_exit() is not None or directory.read_task() is None:
                return True
            return run is not None and not proof.alive(run.shim_pid, start=run.shim_start, boot=run.boot_id)

        async for entry in logs.read(directory.path, options, ended=ended):
            yield entry

    def _directory(self, task_id: str) -> files.TaskDirectory:
        if not task_id.isalnum():
            raise errors.Bug(f"task ID {task_id!r} is no name for a directory")
        return files.TaskDirectory(self._root, task_id)

    async def _whole(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for `work`, which goes on to its end, holding the task's lock, even when the caller is cancelled.

        A start that was broken off half way would let `remove` delete the directory under a supervisor being born.
        """
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        await asyncio.shield(task)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # seen, though the caller may be gone

    def _lock(self, task_id: str) -> asyncio.Lock:
        return self._locks.setdefault(task_id, asyncio.Lock())

    def _adopt(self, directory: files.TaskDirectory, task: files.Task) -> None:
        """Watches a running task and checks its health; sees to what is left of one that has ended, however quickly."""
        run = directory.read_run()
        ended = directory.read_exit() is not None
        if run is None and not ended:
            return
        if ended or run is None or not self._watcher.add(task.task_id, run):
            self._sweep(directory, task)
            return
        if task.health is not None and task.task_id not in self._checkers:
            age_s = max(0.0, self._clock.now() - run.started_at)
            self._checkers[task.task_id] = health.Checker(task, task.health, age_s=age_s, changed=self._bell.ring)

    def _supervisor_ended(self, task_id: str) -> None:
        directory = self._directory(task_id)
        task = directory.read_task()
        if task is not None:
            self._sweep(directory, task)
        self._bell.ring(task_id)

    def _sweep(self, directory: files.TaskDirectory, task: files.Task) -> None:
        """In the background: no process of an ended task may live on and, say, keep its port."""
        sweep = asyncio.create_task(self._end(directory, task), name=f"sweep {task.task_id}")
        self._background.add(sweep)
        sweep.add_done_callback(self._done)
