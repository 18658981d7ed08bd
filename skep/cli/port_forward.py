"""port-forward: ports of this machine, on loopback only, that lead to ports of a task."""

import contextlib
import socket
import threading
from collections.abc import Sequence

import click

from skep import client, errors
from skep.cli import app, completing, lazy

LOOPBACK = "127.0.0.1"
BACKLOG = 16
READ_BYTES = 64 * 1024
PORT_MAX = 2**16 - 1


def ports(given: str) -> tuple[int, int]:
    """(local, remote) of LOCAL:REMOTE, or of REMOTE alone for both; LOCAL 0 is chosen. Raises ValueError."""
    local, colon, remote = given.partition(":")
    numbers = [int(each) if each.isascii() and each.isdigit() else -1 for each in (local, remote if colon else local)]
    if not 0 <= numbers[0] <= PORT_MAX or not 0 < numbers[1] <= PORT_MAX:
        raise ValueError(f"{given!r} is not LOCAL:REMOTE with ports up to {PORT_MAX}, as in 8080:80")
    return numbers[0], numbers[1]


class _Ports(click.ParamType[tuple[int, int]]):
    name = "ports"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:  # type: ignore[explicit-override]
        try:
            return ports(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


@click.command(
    "port-forward",
    cls=lazy.Command,
    examples=("skep port-forward web.1 8080:80", "skep port-forward db.1 5432", "skep port-forward web.1 0:80"),
)
@click.argument("task", metavar="TASK|SERVICE.SLOT", shell_complete=completing.tasks)
@click.argument("pairs", nargs=-1, required=True, type=_Ports(), metavar="[LOCAL:]REMOTE...")
@app.pass_app
def port_forward(state: app.App, *, task: str, pairs: Sequence[tuple[int, int]]) -> None:
    """Listen on ports of this machine and connect whoever comes to a task's ports, until Ctrl-C.

    Each connection looks for the task anew: SERVICE.SLOT leads to whatever runs there by then.
    """
    state.client.get(f"/skep/v1/tasks/{client.quote(task)}")  # a wrong name is said now, not at the first connection
    with contextlib.ExitStack() as stack:
        for local, remote in pairs:
            try:
                listener = socket.create_server((LOOPBACK, local), backlog=BACKLOG)
            except OSError as problem:
                raise errors.FailedPrecondition(f"cannot listen on {LOOPBACK}:{local}: {problem.strerror}") from problem
            stack.callback(listener.close)
            state.say(f"{LOOPBACK}:{listener.getsockname()[1]} -> {task}:{remote}")
            path = f"/skep/v1/tasks/{client.quote(task)}/forward/{remote}"
            threading.Thread(target=_accept, args=(state, listener, path), daemon=True).start()
        threading.Event().wait()


def _accept(state: app.App, listener: socket.socket, path: str) -> None:
    with contextlib.suppress(OSError):  # it is closed when the command ends
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_connect, args=(state, connection, path), daemon=True).start()


def _connect(state: app.App, here: socket.socket, path: str) -> None:
    with contextlib.closing(here):
        try:
            there = client.Client(state.host).connect(path)
        except errors.SkepError as problem:
            state.warn(f"skep: {problem.message}")
            return
        with contextlib.closing(there):
            up = threading.Thread(target=_copy, args=(here, there), daemon=True)
            up.start()
            _copy(there, here)
            up.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """One direction, and its end; a connection that breaks takes both with it."""
    try:
        while data := source.recv(READ_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
