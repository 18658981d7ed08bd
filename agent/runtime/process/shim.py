"""Supervisor of one task of the process runtime: a small program of its own that outlives the agent.

Owns the task's process tree, its output and its exit status, all of it kept in the task's directory (see `files`).
It is started as `python -I -S -B shim.py TASK_DIRECTORY` and must import nothing but cheap modules of the standard
library: one of it runs per task (about 10 MiB, most of it shared pages, up in 20 ms).

Protocol: it daemonises, writes one JSON object `{"error": "..", "fatal": bool}` to its standard output and closes it.
SIGTERM means stop signal, grace period, SIGKILL; SIGUSR1 means SIGKILL now. It ends when the whole tree has ended.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LINE_BYTES_MAX = 16 * 1024  # longer lines are kept in parts, as Docker does
READ_BYTES = 64 * 1024
DRAIN_S = 2.0  # for output that is still in the pipes after the last process has ended
KILL_S = 5.0  # until the tree must be gone after SIGKILL; a process in the kernel's hands may take longer
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # the shell's exit codes
RESET_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT,
                 signal.SIGTSTP, signal.SIGPIPE, signal.SIGXFSZ)  # fmt: skip


def monotonic() -> float:
    """This program has no event loop; it reads the clocks itself."""
    return time.monotonic()  # noqa: TID251


def prctl(option: int, argument: int) -> None:
    """Best effort: without it, grandchildren that leave the group are found by the agent instead."""
    try:
        ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)
    except (OSError, AttributeError):
        return


def write_json(name: str, value: dict[str, Any]) -> None:
    """Writes `name` in the task's directory so that a reader sees all of it or nothing."""
    with open(name + ".tmp", "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name + ".tmp", name)


def start_ticks(pid: int) -> int:
    """When `pid` was started, in clock ticks since boot: with the boot ID it names a process for good."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def kill(pid: int) -> None:
    """SIGKILL to a child that has not been reaped. One that runs as another user (setuid) may refuse it."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def children() -> list[int]:
    """PIDs whose parent is this process."""
    me, found = os.getpid(), []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == me:
            found.append(int(name))
    return found


class Log:
    """Rotated output: log.0 is the newest. One record a line: `seconds stream data`."""

    def __init__(self, *, bytes_max: int, files_max: int) -> None:
        self._bytes_max = bytes_max
        self._files_max = files_max
        self._partial = {b"o": b"", b"e": b""}
        self._fd = os.open("log.0", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    def feed(self, stream: bytes, data: bytes) -> None:
        """Takes output of `stream` (b"o" or b"e") in any portions."""
        at = b"%.6f " % time.time()  # noqa: TID251 - see monotonic()
        lines = (self._partial[stream] + data).split(b"\n")
        rest = lines.pop()
        records = []
        for whole in lines:
            line = whole
            while len(line) > LINE_BYTES_MAX:
                records.append(at + stream.upper() + b" " + line[:LINE_BYTES_MAX] + b"\n")
                line = line[LINE_BYTES_MAX:]
            records.append(at + stream + b" " + line + b"\n")
        while len(rest) >= LINE_BYTES_MAX:
            records.append(at + stream.upper() + b" " + rest[:LINE_BYTES_MAX] + b"\n")
            rest = rest[LINE_BYTES_MAX:]
        self._partial[stream] = rest
        self._write(records)

    def finish(self) -> None:
        """Writes what came without a newline at its end; capital letters mark such records."""
        at = b"%.6f " % time.time()  # noqa: TID251
        self._write([at + stream.upper() + b" " + rest + b"\n" for stream, rest in self._partial.items() if rest])
        self._partial = {b"o": b"", b"e": b""}

    def _write(self, records: list[bytes]) -> None:
        batch: list[bytes] = []
        size = self._size
        for record in records:
            if batch and size + len(record) > self._bytes_max:
                self._append(b"".join(batch))
                batch, size = [], 0
            batch.append(record)
            size += len(record)
        if batch:
            self._append(b"".join(batch))

    def _append(self, data: bytes) -> None:
        try:
            if self._size and self._size + len(data) > self._bytes_max:
                self._rotate()
            self._size += os.write(self._fd, data)
        except OSError:
            return  # a full disk costs output, never the task

    def _rotate(self) -> None:
        for number in range(self._files_max - 1, 0, -1):
            try:
                os.rename(f"log.{number - 1}", f"log.{number}")
            except FileNotFoundError:
                continue
        fd = os.open("log.0", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640)
        os.close(self._fd)
        self._fd, self._size = fd, 0


class StartError(Exception):
    """The command could not be started; `code` is the exit code a shell would give."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def become_command(plan: dict[str, Any], *, stdout: int, stderr: int, go: int) -> NoReturn:
    """In the forked child: takes on the task's identity and limits, then becomes the command. Raises StartError."""
    what = "start"
    try:
        os.setsid()
        for what in plan["cgroup_procs"]:
            with open(what, "w") as file:
                file.write("0")
        if plan["oom_score_adj"]:
            what = "set oom_score_adj"
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(plan["oom_score_adj"]))
        for name, soft, hard in plan["ulimits"]:
            what = f"set ulimit {name}"
            resource.setrlimit(getattr(resource, "RLIMIT_" + name.upper()), (soft, hard))
        what = f"change to directory {plan['cwd']}"
        os.chdir(plan["cwd"])  # before the change of user: the way to the task's own directory belongs to root
        what = "change user"
        if plan["uid"] is not None:
            os.setgroups(plan["groups"])
            os.setgid(plan["gid"])
            os.setuid(plan["uid"])
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the command never runs on unsupervised
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        signal.set_wakeup_fd(-1)
        for number in RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if os.read(go, 1) != b"g":
            os._exit(NOT_FOUND)  # the supervisor died before it had written down who we are
        what = f"exec {plan['argv'][0]}"
        os.execvpe(plan["argv"][0], plan["argv"], plan["env"])  # noqa: S606 - there is no shell on purpose
    except FileNotFoundError as error:
        reason = "executable file not found" if what.startswith("exec") else "no such file or directory"
        raise StartError(f"{what}: {reason}", NOT_FOUND) from error
    except OSError as error:
        raise StartError(f"{what}: {(error.strerror or str(error)).lower()}", NOT_EXECUTABLE) from error
    except ValueError as error:
        raise StartError(f"{what}: {error}", NOT_EXECUTABLE) from error


class Supervisor:
    """The one task of this program, from fork to exit status."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._log = None if plan["log_discard"] else Log(bytes_max=plan["log_bytes"], files_max=plan["log_files"])
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipes: dict[int, bytes] = {}
        self._poll = select.poll()
        self._pid = 0
        self._status: int | None = None  # of the command; None while it runs
        self._kill_at: float | None = None

    def start(self) -> None:
        """Starts the command and writes run.json. Raises StartError."""
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        go_r, go_w = os.pipe2(os.O_CLOEXEC)
        fail_r, fail_w = os.pipe2(os.O_CLOEXEC)
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if not self._pid:
            os.close(go_w)
            try:
                become_command(self._plan, stdout=out_w, stderr=err_w, go=go_r)
            except StartError as error:
                os.write(fail_w, json.dumps([str(error), error.code]).encode())
            finally:
                os._exit(NOT_FOUND)
        for fd in (go_r, fail_w, out_w, err_w):
            os.close(fd)
        self._pipes = {out_r: b"o", err_r: b"e"}
        for fd in (out_r, err_r, self._wake_r):
            self._poll.register(fd, select.POLLIN)
        self._write_run()
        with contextlib.suppress(BrokenPipeError):  # it failed before it got that far and says so below
            os.write(go_w, b"g")
        os.close(go_w)
        failure = os.read(fail_r, 4096)
        os.close(fail_r)
        if failure:
            os.waitpid(self._pid, 0)
            message, code = json.loads(failure)
            raise StartError(message, code)

    def _write_run(self) -> None:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot_id = file.read().strip()
        write_json("run.json", {
            "boot_id": boot_id,
            "shim_pid": os.getpid(),
            "shim_start": start_ticks(os.getpid()),
            "pid": self._pid,
            "pid_start": start_ticks(self._pid),
            "started_at": time.time(),  # noqa: TID251
        })  # fmt: skip

    def run(self) -> None:
        """Returns when every process of the task has ended and its output is written."""
        while self._status is None:
            wait_s = None if self._kill_at is None else max(0.0, self._kill_at - monotonic())
            for fd, _ in self._poll.poll(None if wait_s is None else wait_s * 1000 + 1):
                self._ready(fd)
            if self._kill_at is not None and monotonic() >= self._kill_at:
                self._kill_at = monotonic() + 1.0  # again: a fork may have slipped through
                self._kill_all()
        self._end_tree()
        end = monotonic() + DRAIN_S
        while self._pipes and monotonic() < end:
            for fd, _ in self._poll.poll(100):
                self._ready(fd)
        if self._log:
            self._log.finish()

    def exit_record(self) -> dict[str, Any]:
        """What exit.json says."""
        code = os.waitstatus_to_exitcode(self._status or 0)
        return {
            "exit_code": code if code >= 0 else 128 - code,  # killed by signal N is 128+N, as in a shell
            "oom": code == -signal.SIGKILL and oom_kills(self._plan["oom_files"]) > 0,
            "error": killed_by(-code) if code < 0 else "",
            "at": time.time(),  # noqa: TID251
        }

    def _ready(self, fd: int) -> None:
        if fd == self._wake_r:
            for number in os.read(fd, 4096):
                self._signalled(number)
            return
        data = os.read(fd, READ_BYTES)
        if not data:
            self._poll.unregister(fd)
            os.close(fd)
            del self._pipes[fd]
        elif self._log:
            self._log.feed(self._pipes[fd], data)

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGTERM and self._kill_at is None:
            self._kill_at = monotonic() + float(self._plan["stop_grace_s"])
            self._signal_group(self._plan["stop_signal"])
        elif number == signal.SIGUSR1:
            self._kill_at = monotonic()

    def _signal_group(self, number: int) -> None:
        # Safe only because the command has not been reaped: until then its PID and group belong to nobody else.
        if self._status is None:
            try:
                os.killpg(self._pid, number)
            except (ProcessLookupError, PermissionError):
                return

    def _kill_all(self) -> None:
        self._signal_group(signal.SIGKILL)
        for pid in children():
            kill(pid)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid == self._pid:
                self._signal_group(signal.SIGKILL)  # as in a container: when the first process ends, all end
            status = os.waitpid(ended.si_pid, 0)[1]
            if ended.si_pid == self._pid:
                self._status = status

    def _end_tree(self) -> None:
        """Kills what the command left behind. Orphans of the tree are children of ours: this is a subreaper."""
        end = monotonic() + KILL_S
        while monotonic() < end:
            try:
                if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    for pid in children():
                        kill(pid)
                    time.sleep(0.002)  # noqa: TID251 - nothing else is left to do here
                self._reap()
            except ChildProcessError:
                return


def killed_by(number: int) -> str:
    """A signal in words."""
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def oom_kills(files: list[str]) -> int:
    """How many processes the kernel killed for memory in the task's control group."""
    total = 0
    for name in files:
        try:
            with open(name) as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except (OSError, ValueError):
            continue
    return total


def report(*, error: str, fatal: bool) -> None:
    """Tells the agent how the start went, if it is still there, and lets go of it."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps({"error": error, "fatal": fatal}).encode())
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)


def main() -> None:
    os.chdir(sys.argv[1])
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o022)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report(error="another supervisor is starting it", fatal=False)
        return
    if os.path.exists("run.json"):
        report(error="", fatal=False)
        return
    with open("task.json") as file:
        plan = json.load(file)["plan"]
    supervisor = Supervisor(plan)
    try:
        supervisor.start()
    except StartError as error:
        write_json("exit.json", {"exit_code": error.code, "oom": False, "error": str(error), "at": time.time()})  # noqa: TID251
        report(error=str(error), fatal=True)
        return
    report(error="", fatal=False)
    supervisor.run()
    write_json("exit.json", supervisor.exit_record())


if __name__ == "__main__":
    main()
