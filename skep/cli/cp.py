"""cp: files between this machine and a task, as a tar stream."""

import contextlib
import io
import os
import re
import sys
import tarfile
import threading
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import click

from skep import client, errors
from skep.cli import app, completing, lazy, text
from skep.cli.overriding import override

PIECE_BYTES = 64 * 1024
REMOTE = re.compile(r"([A-Za-z0-9][^/:]*):(.+)", re.DOTALL)
EMPTY_TAR = bytes(10 * 1024)  # asks whether a directory is there, and changes nothing


class Place(NamedTuple):
    """One end of a copy: a path in a task, or here when `task` is empty."""

    task: str
    path: str


def place(given: str) -> Place:
    """`web.1:/etc/hosts`, or a path of this machine; ./a:b for one that has a colon."""
    match = REMOTE.fullmatch(given)
    return Place(match[1], match[2]) if match else Place("", given)


@click.command(
    cls=lazy.Command,
    examples=(
        "skep cp web.1:/etc/nginx/nginx.conf .",
        "skep cp ./site web.1:/usr/share/nginx/html",
        "skep cp web.1:/var/log - | tar -t",
        "tar -c data | skep cp - web.1:/srv",
    ),
)
@click.option("-q", "--quiet", is_flag=True, help="Do not say what was copied.")
@click.argument("source", metavar="TASK|SERVICE.SLOT:PATH|PATH|-", shell_complete=completing.copies)
@click.argument("target", metavar="TASK|SERVICE.SLOT:PATH|PATH|-", shell_complete=completing.copies)
@app.pass_app
def cp(state: app.App, *, quiet: bool, source: str, target: str) -> None:
    """Copy files out of a task or into it; '-' is a tar stream on standard input or output."""
    origin, destination = place(source), place(target)
    if bool(origin.task) == bool(destination.task):
        raise click.UsageError("one of the two must be in a task: write it as SERVICE.SLOT:/path")
    copied = _fetch(state, origin, destination.path) if origin.task else _bring(state, origin.path, destination)
    if not quiet and "-" not in (source, target):
        state.warn(f"copied {text.size(copied)} to {target}")


def _archive(task: str) -> str:
    return f"/skep/v1/tasks/{client.quote(task)}/archive"


# ---------------------------------------------------------------- out of a task


class _Reader(io.RawIOBase):
    """Pieces of bytes as a file that can be read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = b""

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = next(self._pieces, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _fetch(state: app.App, origin: Place, target: str) -> int:
    pieces = state.client.stream(_archive(origin.task), {"path": origin.path})
    if target == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return 0
    inside = os.path.isdir(target)
    if not inside and (target.endswith("/") or not os.path.isdir(os.path.dirname(target) or ".")):
        raise errors.NotFound(f"no such directory: {target if target.endswith('/') else os.path.dirname(target)}")
    with contextlib.closing(pieces) as chunks:
        return unpack(_Reader(chunks), target if inside else os.path.dirname(target) or ".",
                      name="" if inside else os.path.basename(target))  # fmt: skip


def unpack(source: io.RawIOBase, directory: str, *, name: str) -> int:
    """Unpacks a tar stream below a directory, its first part renamed if there is a name. Returns the bytes of files.

    Nothing lands outside of the directory, whatever the archive says.
    """
    safe = getattr(tarfile, "tar_filter", None)
    if safe is None:
        raise errors.Unimplemented("this Python cannot unpack archives safely: update it (3.11.4 or newer)")
    copied = 0

    def kept(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
        nonlocal copied
        copied += member.size if member.isfile() else 0
        if name:
            member = member.replace(name=_renamed(member.name, name), deep=False)
            if member.islnk():
                member = member.replace(linkname=_renamed(member.linkname, name), deep=False)
        made: tarfile.TarInfo = safe(member, target)
        return made.replace(uid=None, gid=None, uname=None, gname=None, deep=False)  # type: ignore[arg-type]

    try:
        with tarfile.open(fileobj=io.BufferedReader(source, PIECE_BYTES), mode="r|") as tar:
            tar.extractall(directory, filter=kept)  # noqa: S202 - filtered
    except (tarfile.TarError, OSError) as problem:
        raise errors.FailedPrecondition(f"cannot unpack into {directory}: {problem}") from problem
    return copied


def _renamed(path: str, name: str) -> str:
    first, slash, rest = path.removeprefix("./").partition("/")
    return f"{name}{slash}{rest}" if first != "." else name


# ---------------------------------------------------------------- into a task


def _bring(state: app.App, source: str, destination: Place) -> int:
    if source == "-":
        pieces = iter(lambda: sys.stdin.buffer.read(PIECE_BYTES), b"")
        state.client.upload(_archive(destination.task), pieces, {"path": destination.path})
        return 0
    if not os.path.lexists(source):
        raise errors.NotFound(f"no such file or directory: {source}")
    name = os.path.basename(os.path.normpath(os.path.abspath(source)))
    folder = destination.path
    if not _is_folder(state, destination):
        if folder.endswith("/"):
            raise errors.NotFound(f"task {destination.task} has no directory {folder}")
        folder, name = os.path.dirname(folder) or ".", os.path.basename(folder)
    copied = 0

    def write(tar: tarfile.TarFile) -> None:
        nonlocal copied

        def count(member: tarfile.TarInfo) -> tarfile.TarInfo:
            nonlocal copied
            copied += member.size if member.isfile() else 0
            return member

        tar.add(source, arcname=name, filter=count)

    with contextlib.closing(packed(write)) as pieces:
        state.client.upload(_archive(destination.task), pieces, {"path": folder})
    return copied


def _is_folder(state: app.App, destination: Place) -> bool:
    try:
        state.client.upload(_archive(destination.task), iter([EMPTY_TAR]), {"path": destination.path})
    except (errors.NotFound, errors.Invalid) as problem:
        if problem.message.startswith(("no task", "task ", "service ")):
            raise
        return False
    return True


def packed(write: Callable[[tarfile.TarFile], None]) -> Generator[bytes, None, None]:
    """A tar stream in pieces, while it is being written. Raises what writing it raised."""
    readable, writable = os.pipe()
    problems: list[Exception] = []

    def work() -> None:
        try:
            with os.fdopen(writable, "wb") as out, tarfile.open(fileobj=out, mode="w|") as tar:
                write(tar)
        except (OSError, tarfile.TarError) as problem:
            problems.append(problem)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while piece := os.read(readable, PIECE_BYTES):
            yield piece
        worker.join()
        if problems:
            raise errors.FailedPrecondition(f"cannot read what was to be copied: {problems[0]}")
    finally:
        os.close(readable)
        worker.join()
