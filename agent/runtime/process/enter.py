"""Becomes a command beside a task's own, or packs and unpacks files as the task's user: a program of its own.

Started as `python -I -S -B enter.py FD`; reads one JSON object from that file descriptor (an environment may hold
secrets, a command line may not). Must import nothing but the standard library, and all before it changes its user.
"""

import fcntl
import json
import os
import resource
import signal
import sys
import tarfile
import termios
from typing import Any, NoReturn

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # the shell's exit codes
NO_SUCH_PATH, FAILED = 44, 45  # of the modes that move files
COPY_BYTES = 64 * 1024


def fail(message: str, code: int) -> NoReturn:
    """Says why on standard error and ends."""
    os.write(2, (message + "\n").encode())
    os._exit(code)


def become_task(plan: dict[str, Any]) -> None:
    """Takes on the task's limits, directory and user. Raises OSError."""
    if plan["tty"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for name in plan["cgroup_procs"]:
        with open(name, "w") as file:
            file.write("0")
    for name, soft, hard in plan["ulimits"]:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name.upper()), (soft, hard))
    os.chdir(plan["cwd"])
    if plan["uid"] is not None:
        os.setgroups(plan["groups"])
        os.setgid(plan["gid"])
        os.setuid(plan["uid"])


def run(plan: dict[str, Any]) -> NoReturn:
    """Becomes the command."""
    command = plan["argv"][0]
    try:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command, plan["argv"], plan["env"])  # noqa: S606 - there is no shell on purpose
    except FileNotFoundError:
        fail(f"exec {command}: executable file not found", NOT_FOUND)
    except OSError as error:
        fail(f"exec {command}: {(error.strerror or str(error)).lower()}", NOT_EXECUTABLE)


def pack(path: str) -> None:
    """Writes what is at `path` to standard output as a tar stream, under its own name."""
    try:
        os.lstat(path)
    except OSError as error:
        fail(f"{path}: {(error.strerror or str(error)).lower()}", NO_SUCH_PATH)
    with os.fdopen(1, "wb", COPY_BYTES) as out, tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.add(path, arcname=os.path.basename(path.rstrip("/")) or ".")


def unpack(path: str) -> None:
    """Unpacks the tar stream on standard input below `path`; everything becomes the task's user's."""
    if not os.path.isdir(path):
        fail(f"{path}: no such directory", NO_SUCH_PATH)

    def kept(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
        safe = tarfile.tar_filter(member, target)  # nothing lands outside of the directory
        return safe.replace(uid=None, gid=None, uname=None, gname=None, deep=False)  # type: ignore[arg-type]

    with os.fdopen(0, "rb", COPY_BYTES) as source, tarfile.open(fileobj=source, mode="r|") as tar:
        tar.extractall(path, filter=kept)  # noqa: S202 - filtered
        while source.read(COPY_BYTES):  # what stands behind the archive's end
            continue


def main() -> None:
    """Does what the plan says."""
    with os.fdopen(int(sys.argv[1])) as file:
        plan = json.load(file)
    try:
        become_task(plan)
    except OSError as error:
        fail(f"cannot enter the task: {error}", NOT_EXECUTABLE)
    if plan["what"] == "run":
        run(plan)
    try:
        (pack if plan["what"] == "pack" else unpack)(plan["path"])
    except (OSError, tarfile.TarError) as error:
        fail(str(error), FAILED)
    os._exit(0)


if __name__ == "__main__":
    main()
