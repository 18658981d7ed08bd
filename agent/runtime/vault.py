"""Files with secrets and configs on this machine, in a memory-backed file system only. Blocking.

Owns `skep-files-UID/NODE/TASK` below /run or /dev/shm, whichever is a tmpfs. Where neither is, nothing is written: a
secret never reaches a disk through us (a machine with swap should encrypt it).
"""

import contextlib
import os
import pathlib
import shutil
import stat
from collections.abc import Sequence

from agent.runtime import base

CANDIDATES = (pathlib.Path("/run"), pathlib.Path("/dev/shm"))  # noqa: S108 - checked for ownership below
MEMORY = ("tmpfs", "ramfs")
OTHERS_READ = 0o004


def filesystem(path: pathlib.Path, mountinfo: str) -> str:
    """The type of the file system that holds `path`, from the text of /proc/self/mountinfo; empty when unknown."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:  # noqa: PLR2004 - the mount point is the fifth
            continue
        point = fields[4].encode().decode("unicode_escape")
        inside = str(path) == point or str(path).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts on one place the later one counts
            best, kind = point, after.split()[0]
    return kind


class Vault:
    """The files of one node's tasks."""

    def __init__(self, *, node_id: str, candidates: Sequence[pathlib.Path] = CANDIDATES) -> None:
        self._node_id = node_id
        self._candidates = candidates

    def write(
        self,
        task_id: str,
        files: Sequence[base.File],
        *,
        names: Sequence[str],
        directory_owner: tuple[int, int] | None = None,
        as_owner: bool = False,
    ) -> pathlib.Path:
        """Writes each file under its name, and returns the task's directory; what was there before is replaced.

        `directory_owner` (user, group) is who may enter beside root. With `as_owner` an agent that is not root keeps
        files that are meant for root as its own. Raises TaskFatal and TaskTemporary.
        """
        root = self._root()
        if root is None:
            raise base.TaskFatal(
                "secrets and configs may only be kept in memory, and this machine has no tmpfs at "
                + " or ".join(str(each) for each in self._candidates)
            )
        task = root / self._node_id / task_id
        try:
            self._make(root)
            if task.exists():
                shutil.rmtree(task)
            task.mkdir(mode=0o700)
            for file, name in zip(files, names, strict=True):
                _write(task / name, file, as_owner=as_owner)
            if directory_owner is not None:
                for folder, _, _ in os.walk(task):
                    os.chown(folder, *directory_owner)
        except OSError as error:
            with contextlib.suppress(OSError):
                shutil.rmtree(task)
            raise base.TaskTemporary(f"keeping the task's secrets and configs in {task}: {error.strerror}") from error
        except base.TaskFatal:
            shutil.rmtree(task, ignore_errors=True)
            raise
        return task

    def drop(self, task_id: str) -> None:
        """Removes the task's files. Raises TaskTemporary."""
        for root in self._roots():
            path = root / self._node_id / task_id
            try:
                if path.exists():
                    shutil.rmtree(path)
            except OSError as error:
                raise base.TaskTemporary(f"removing {path}: {error.strerror}") from error
            with contextlib.suppress(OSError):  # not while other tasks and nodes have theirs
                path.parent.rmdir()
                root.rmdir()

    def tasks(self) -> list[str]:
        """IDs of the tasks that have files here."""
        found: dict[str, None] = {}
        for root in self._roots():
            with contextlib.suppress(OSError):
                found.update(dict.fromkeys(os.listdir(root / self._node_id)))
        return sorted(found)

    def _roots(self) -> list[pathlib.Path]:
        return [each / f"skep-files-{os.geteuid()}" for each in self._candidates]

    def _root(self) -> pathlib.Path | None:
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
        for each, root in zip(self._candidates, self._roots(), strict=True):
            if filesystem(each, mounts) in MEMORY and os.access(each, os.W_OK):
                return root
        return None

    def _make(self, root: pathlib.Path) -> None:
        """The directories above a task's. Others can create names in /dev/shm: what is there must be ours."""
        mode = 0o711 if os.geteuid() == 0 else 0o700
        for path in (root, root / self._node_id):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=mode)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise base.TaskFatal(f"{path} is not a directory of ours: somebody else has made it")


def _write(path: pathlib.Path, file: base.File, *, as_owner: bool) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as opened:
        opened.write(file.data)
        opened.flush()
        if os.geteuid() == 0:
            os.fchown(fd, file.uid, file.gid)
        elif (file.uid, file.gid) != (os.geteuid(), os.getegid()):
            kept = as_owner and not file.uid and not file.gid
            if not kept and not file.mode & OTHERS_READ:
                raise base.TaskFatal(
                    f"{file.kind} {file.target}: the agent must be root to give it to user {file.uid}, group {file.gid}"
                )
        os.fchmod(fd, file.mode)
