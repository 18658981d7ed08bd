"""exec: runs a command in a task, with this terminal if it is asked for."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from skep import client
from skep.cli import app, completing, lazy, terminal


@click.command(
    cls=lazy.Command,
    context_settings={"allow_interspersed_args": False},
    examples=(
        "skep exec -it web.2 sh",
        "skep exec web.1 cat /etc/hosts",
        "skep exec -i db.1 psql < dump.sql",
        "skep exec -u root -w /tmp -e DEBUG=1 web.1 ls -l",
    ),
)
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Run as this user.  [default: the task's]")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Run in this directory.  [default: the task's]")
@click.option("-e", "--env", "env", multiple=True, metavar="KEY=VALUE",
              help="Set an environment variable, KEY alone takes it from here; may be repeated.")  # fmt: skip
@click.argument("task", metavar="TASK|SERVICE.SLOT", shell_complete=completing.tasks)
@click.argument("command", nargs=-1, required=True, metavar="COMMAND [ARG...]", type=click.UNPROCESSED)
@app.pass_app
def exec(
    state: app.App,
    *,
    interactive: bool,
    tty: bool,
    user: str,
    workdir: str,
    env: Sequence[str],
    task: str,
    command: Sequence[str],
) -> int:
    """Run a command in a running task, on whichever machine it is. Its exit code becomes this command's."""
    keys = sys.stdin.fileno() if interactive else None
    if tty and keys is not None and not os.isatty(keys):
        raise click.UsageError("-t needs a terminal, and standard input is none: leave it out, or leave out -i")
    screen = sys.stdout.fileno() if tty and os.isatty(sys.stdout.fileno()) else None
    body: dict[str, Any] = {
        "Cmd": list(command), "Tty": tty, "AttachStdin": interactive, "User": user, "WorkingDir": workdir,
        "Env": [_variable(each) for each in env],
    }  # fmt: skip
    found = terminal.size(screen) if screen is not None else None
    if found is not None:
        body["ConsoleSize"] = list(found)
    connection = state.client.connect(f"/skep/v1/tasks/{client.quote(task)}/exec", body=body)
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        if tty and keys is not None:
            stack.enter_context(terminal.raw(keys))
        return terminal.Talk(connection, stdin=keys, resize_from=screen).run()


def _variable(given: str) -> str:
    name, equals, _ = given.partition("=")
    if not name:
        raise click.UsageError(f"Invalid value for '--env': {given!r} has no name; write KEY=VALUE")
    return given if equals else f"{name}={os.environ.get(name, '')}"
