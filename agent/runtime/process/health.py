"""Runs a task's health check and gives the verdict, by Docker's rules.

`Verdict` is pure: it counts. `Checker` starts the check's command as the task's user, in its directory and with its
environment; or it asks a port of this machine, which Docker's checks cannot: ["HTTP", path, port], ["TCP", port]. What
to do about an unhealthy task is not decided here.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
from collections.abc import Callable, Sequence

import structlog

from agent.runtime import base
from agent.runtime.process import files
from skep import pb, stamps

log = structlog.get_logger(__name__)

INTERVAL_S, TIMEOUT_S, RETRIES, START_INTERVAL_S = 30.0, 30.0, 3, 5.0  # Docker's defaults
SHELL = "/bin/sh"
PORT_MAX = 65_535
STATUS_BYTES_MAX = 1024  # of an HTTP answer's first line
GOOD = range(200, 400)


def parse(config: pb.HealthConfig, *, ports: Sequence[pb.PortConfig] = ()) -> files.Health | None:
    """The check in seconds with defaults filled in; None when there is none. Raises TaskFatal.

    A port in the check that is the target of a published one means the published number: that is where it listens.
    """
    if not config.test or config.test[0] == "NONE":
        return None
    kind, *rest = config.test
    test: list[str] = []
    path, port = "", 0
    if kind == "CMD" and rest:
        test = rest
    elif kind == "CMD-SHELL" and len(rest) == 1:
        test = [SHELL, "-c", rest[0]]
    elif kind == "HTTP" and len(rest) == 2 and rest[0].startswith("/") and rest[0].isprintable():  # noqa: PLR2004
        path, port = rest[0], _port(rest[1], ports)
    elif kind == "TCP" and len(rest) == 1:
        port = _port(rest[0], ports)
    else:
        raise base.TaskFatal(
            f"health check {list(config.test)}: write CMD with arguments, CMD-SHELL with one line, HTTP with path and "
            "port, or TCP with a port"
        )
    return files.Health(
        kind="exec" if test else kind.lower(),
        port=port,
        path=path,
        test=test,
        interval_s=stamps.from_nanos(config.interval) or INTERVAL_S,
        timeout_s=stamps.from_nanos(config.timeout) or TIMEOUT_S,
        retries=config.retries or RETRIES,
        start_period_s=stamps.from_nanos(config.start_period),
        start_interval_s=stamps.from_nanos(config.start_interval) or START_INTERVAL_S,
    )


def _port(text: str, ports: Sequence[pb.PortConfig]) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= PORT_MAX):
        raise base.TaskFatal(f"health check port {text!r} must be a number from 1 to {PORT_MAX}")
    published = [port.published_port for port in ports if port.target_port == int(text)]
    return published[0] if published else int(text)


class Verdict:
    """Counts results. `healthy` is None until there is a verdict."""

    def __init__(self, check: files.Health, *, started_at: float) -> None:
        self._check = check
        self._started_at = started_at  # on the same clock as `now` below
        self._failures = 0
        self.healthy: bool | None = None

    def record(self, *, passed: bool, now: float) -> bool:
        """Takes one result; returns whether the verdict changed."""
        before = self.healthy
        if passed:
            self._failures = 0
            self.healthy = True
        elif self.healthy is not None or now - self._started_at >= self._check.start_period_s:
            self._failures += 1  # failures while starting up do not count until it was healthy once
            if self._failures >= self._check.retries:
                self.healthy = False
        return self.healthy is not before

    def next_delay_s(self, *, now: float) -> float:
        """Seconds until the next check."""
        starting = self.healthy is None and now - self._started_at < self._check.start_period_s
        return self._check.start_interval_s if starting else self._check.interval_s


class Checker:
    """Checks one running task until it is closed."""

    def __init__(self, task: files.Task, check: files.Health, *, age_s: float, changed: Callable[[str], None]) -> None:
        now = asyncio.get_running_loop().time()
        self._task = task
        self._check = check
        self._changed = changed
        self._verdict = Verdict(check, started_at=now - age_s)
        self._runner = asyncio.create_task(self._run(), name=f"health {task.task_id}")

    @property
    def healthy(self) -> bool | None:
        """See Observation.healthy."""
        return self._verdict.healthy

    async def close(self) -> None:
        """Stops checking and kills a check that runs."""
        self._runner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._runner

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._verdict.next_delay_s(now=loop.time()))
            passed, reason = await self._once()
            if not passed:
                log.info("health.failed", task=self._task.task_id, reason=reason)
            if self._verdict.record(passed=passed, now=loop.time()):
                self._changed(self._task.task_id)

    async def _once(self) -> tuple[bool, str]:
        if self._check.kind == "exec":
            return await self._exec()
        try:
            async with asyncio.timeout(self._check.timeout_s):
                return await _ask(self._check)
        except TimeoutError:
            return False, f"no answer within {self._check.timeout_s:g} s"
        except (OSError, ValueError) as error:
            return False, str(error)

    async def _exec(self) -> tuple[bool, str]:
        plan = self._task.plan
        try:
            process = await asyncio.create_subprocess_exec(
                *self._check.test,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                cwd=plan.cwd,
                env=plan.env,
                start_new_session=True,
                user=plan.uid,
                group=plan.gid if plan.uid is not None else None,
                extra_groups=plan.groups if plan.uid is not None else None,
            )
        except OSError as error:
            return False, str(error)
        _confine(process.pid, plan.cgroup_procs)
        try:
            async with asyncio.timeout(self._check.timeout_s):
                code = await process.wait()
        except TimeoutError:
            return False, f"no answer within {self._check.timeout_s:g} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # ours and not reaped: asyncio is the one that waits
                await process.wait()
        return code == 0, f"exit code {code}"


def _confine(pid: int, procs_files: Sequence[str]) -> None:
    """The check takes from what its task may use. From outside, a moment late: an interpreter would cost more."""
    for name in procs_files:
        try:
            pathlib.Path(name).write_text(str(pid))
        except ProcessLookupError:
            return  # it has ended
        except OSError as error:
            log.warning("health.not_confined", cgroup=name, error=str(error))


async def _ask(check: files.Health) -> tuple[bool, str]:
    """One connection to the task's port; for HTTP also one request, which any status below 400 answers well."""
    reader, writer = await asyncio.open_connection("127.0.0.1", check.port, limit=STATUS_BYTES_MAX)
    try:
        if check.kind == "tcp":
            return True, ""
        lines = (f"GET {check.path} HTTP/1.1", f"Host: localhost:{check.port}", "Connection: close", "", "")
        writer.write("\r\n".join(lines).encode())
        words = (await reader.readline()).decode(errors="replace").split()
        if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():  # noqa: PLR2004
            return False, "the answer is no HTTP"
        return int(words[1]) in GOOD, f"HTTP status {words[1]}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
