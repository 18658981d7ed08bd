"""Commands, files, figures and connections of tasks that are processes. See `agent.runtime.access`.

A command is started by `enter` as the task's user, in its directory, control groups and environment; it ends with the
task, and with whoever has asked for it.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from agent.network import listening
from agent.runtime import access, base
from agent.runtime.process import enter, files, proof, spec, streams, usage
from skep import channel, clock, errors, pb

ENTER = pathlib.Path(enter.__file__)
SAMPLE_S = 1.0
HANGUP_S = 1.0  # for a command whose user has gone, before it is killed
END_OF_INPUT = b"\x04"  # what a terminal has in place of the end of a file


class ProcessAccess:
    """Enters tasks."""

    def __init__(
        self,
        *,
        directory: Callable[[str], files.TaskDirectory],
        ended: Callable[[str], Awaitable[None]],
        clock: clock.Clock,
    ) -> None:
        """`directory` gives a task's, `ended` returns once its supervisor has ended."""
        self._directory = directory
        self._ended = ended
        self._clock = clock

    def _task(self, task_id: str) -> files.Task:
        task = self._directory(task_id).read_task()
        if task is None:
            raise errors.NotFound(f"task {task_id} is not on this node")
        return task

    def _running(self, task_id: str) -> tuple[files.Task, files.Run]:
        task = self._task(task_id)
        directory = self._directory(task_id)
        run = directory.read_run()
        if run is None or not proof.alive(run.shim_pid, start=run.shim_start, boot=run.boot_id):
            raise errors.FailedPrecondition(f"task {task_id} is not running")
        return task, run

    # ---------------------------------------------------------------- commands

    async def exec(self, task_id: str, what: pb.ExecStart, pipe: channel.Channel) -> int:
        """See Access."""
        task, _ = self._running(task_id)
        plan = _plan_of(task, what)
        with streams.Streams(tty=what.tty, stdin=what.stdin) as ours:
            if what.tty:
                _resize(ours.terminal, what.size)
            process = await _start(plan, ours)
            pipe.say_ready()
            feeding = asyncio.ensure_future(_feed(ours, pipe))
            dying = asyncio.ensure_future(self._end_with_task(task_id, process))
            try:
                return await ours.copy_until_exit(process, pipe)
            finally:
                for future in (feeding, dying):
                    future.cancel()
                await asyncio.gather(feeding, dying, return_exceptions=True)
                await _end(process)

    async def _end_with_task(self, task_id: str, process: asyncio.subprocess.Process) -> None:
        await self._ended(task_id)
        _signal(process, signal.SIGKILL)

    # ---------------------------------------------------------------- files

    async def archive_out(self, task_id: str, path: str, pipe: channel.Channel) -> None:
        """See Access. Paths are those of the machine; relative ones begin in the task's directory."""
        plan = {**_entry(self._task(task_id)), "what": "pack", "path": path}
        with streams.Streams(tty=False, stdin=False) as ours:
            process = await _start(plan, ours)
            try:
                complaint = await ours.copy_main_until_exit(process, pipe)
            finally:
                await _end(process)
        _check(process, complaint)

    async def archive_in(self, task_id: str, path: str, pipe: channel.Channel) -> None:
        """See Access."""
        plan = {**_entry(self._task(task_id)), "what": "unpack", "path": path}
        with streams.Streams(tty=False, stdin=True) as ours:
            process = await _start(plan, ours)
            pipe.say_ready()
            feeding = asyncio.ensure_future(_feed(ours, pipe))
            try:
                complaint = await ours.copy_main_until_exit(process, pipe)
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
                await _end(process)
        _check(process, complaint)

    # ---------------------------------------------------------------- figures and connections

    async def stats(self, task_id: str) -> AsyncIterator[pb.TaskStats]:
        """See Access. The network is the machine's, so what goes over it is not known per task."""
        task, run = self._running(task_id)
        limit = usage.limit_bytes(task.cgroups)
        before = await asyncio.to_thread(usage.sample, run.shim_pid, at=self._clock.now())
        while True:
            await asyncio.sleep(SAMPLE_S)
            if not proof.alive(run.shim_pid, start=run.shim_start, boot=run.boot_id):
                return
            after = await asyncio.to_thread(usage.sample, run.shim_pid, at=self._clock.now())
            yield usage.between(before, after, limit_bytes=limit)
            before = after

    async def connect(self, task_id: str, port: int) -> access.Connection:
        """See Access. `port` is the one that the service publishes (its target), or one that the task has opened."""
        task, run = self._running(task_id)
        own = next((each.published_port for each in task.ports if each.target_port == port), port)
        pids = await asyncio.to_thread(usage.tree, run.shim_pid)
        held = await asyncio.to_thread(listening.ports_of, pids)
        if held is not None and own not in held:  # it would be somebody else's
            raise errors.FailedPrecondition(f"task {task_id} does not listen on port {own}")
        problem: OSError | None = None
        for host in ("127.0.0.1", "::1"):
            try:
                return await asyncio.open_connection(host, own)
            except OSError as error:
                problem = problem or error
        raise errors.FailedPrecondition(f"task {task_id} takes no connection to port {own}: {problem}")


def _entry(task: files.Task) -> dict[str, Any]:
    """What every plan for `enter` has."""
    plan = task.plan
    return {
        "tty": False, "cgroup_procs": plan.cgroup_procs, "ulimits": plan.ulimits, "cwd": plan.cwd, "uid": plan.uid,
        "gid": plan.gid, "groups": plan.groups,
    }  # fmt: skip


def _plan_of(task: files.Task, what: pb.ExecStart) -> dict[str, Any]:
    env = dict(task.plan.env)
    if what.tty:
        env.setdefault("TERM", "xterm")
    for entry in what.env:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise errors.Invalid(f"environment {entry!r}: write KEY=VALUE")
        env[name] = value
    plan = _entry(task) | {"what": "run", "tty": what.tty, "argv": list(what.command), "env": env}
    if what.dir:
        plan["cwd"] = os.path.join(task.plan.cwd, what.dir)
    if what.user:
        try:
            account = spec._account(pb.ContainerSpec(user=what.user), euid=os.geteuid())
        except base.TaskFatal as error:
            raise errors.FailedPrecondition(str(error)) from error
        plan |= dataclasses.asdict(account)
    return plan


async def _start(plan: dict[str, Any], ours: streams.Streams) -> asyncio.subprocess.Process:
    told_r, told_w = os.pipe()
    try:
        # The plan has to fit into the pipe at once: nobody reads before the program is up. It is at most some 100 kB.
        fcntl.fcntl(told_w, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(told_w, False)
        try:
            os.write(told_w, json.dumps(plan).encode())
        except BlockingIOError:
            raise errors.Invalid("the command and its environment are too long") from None
        os.close(told_w)
        told_w = -1
        theirs = ours.theirs()
        return await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-B", str(ENTER), str(told_r),
            stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], env={}, start_new_session=True, pass_fds=(told_r,),
        )  # fmt: skip
    except OSError as error:
        raise errors.FailedPrecondition(f"starting the command: {error}") from error
    finally:
        os.close(told_r)
        if told_w >= 0:
            os.close(told_w)
        ours.close_theirs()


async def _feed(ours: streams.Streams, pipe: channel.Channel) -> None:
    while (piece := await pipe.receive()) is not None:
        if isinstance(piece, pb.TerminalSize):
            _resize(ours.terminal, piece)
        else:
            await ours.write(piece.data)
    if not pipe.is_over:  # else half of it is missing: it must not look whole
        if ours.terminal is not None:
            await ours.write(END_OF_INPUT)
        else:
            ours.close_input()


def _resize(terminal: int | None, size: pb.TerminalSize) -> None:
    if terminal is not None and size.rows and size.columns:
        with contextlib.suppress(OSError):
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    if process.returncode is None:  # ours and not reaped: its number is nobody else's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Whatever still runs ends as when its terminal is closed, then by force."""
    _signal(process, signal.SIGHUP)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HANGUP_S):
            await process.wait()
    _signal(process, signal.SIGKILL)
    await process.wait()


def _check(process: asyncio.subprocess.Process, complaint: bytes) -> None:
    if process.returncode:
        text = complaint.decode(errors="replace").strip() or f"moving files failed with code {process.returncode}"
        raise (errors.NotFound if process.returncode == enter.NO_SUCH_PATH else errors.FailedPrecondition)(text)
