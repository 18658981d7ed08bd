"""The `skep` command: the table of its commands, and the one place where errors become text and exit codes.

Imports no command: `skep --help` must answer at once.
"""

import contextlib
import os
import sys
from collections.abc import Sequence

import click

import skep
from skep import errors
from skep.cli import app, lazy

EXIT_FAILED = 1  # also for wrong usage
EXIT_INTERRUPTED = 130

ENTRIES = {
    "init": lazy.Entry("skep.cli.swarm", "init", "Make this machine the first manager of a new cluster"),
    "join": lazy.Entry("skep.cli.swarm", "join", "Make this machine part of a cluster"),
    "leave": lazy.Entry("skep.cli.swarm", "leave", "Take this machine out of its cluster"),
    "token": lazy.Entry("skep.cli.swarm", "token", "Show or rotate the tokens that admit machines"),
    "node": lazy.Entry("skep.cli.node", "node", "List, inspect, drain and label machines"),
    "service": lazy.Entry("skep.cli.service", "service", "Create, update, scale and watch services"),
    "secret": lazy.Entry("skep.cli.payload", "secret", "Keep passwords and keys for services"),
    "config": lazy.Entry("skep.cli.payload", "config", "Keep configuration files for services"),
    "task": lazy.Entry("skep.cli.task", "task", "Look into single tasks"),
    "exec": lazy.Entry("skep.cli.exec", "exec", "Run a command in a running task"),
    "cp": lazy.Entry("skep.cli.cp", "cp", "Copy files out of a task or into it"),
    "port-forward": lazy.Entry("skep.cli.port_forward", "port_forward", "Connect ports of this machine to a task's"),
    "stats": lazy.Entry("skep.cli.stats", "stats", "Show what tasks use of their machines, live"),
    "top": lazy.Entry("skep.cli.stats", "stats", "The same as stats", hidden=True),
    "explain": lazy.Entry("skep.cli.explain", "explain", "Show why a service, task or node is as it is"),
    "what-if": lazy.Entry("skep.cli.what_if", "what_if", "Show what would happen if nodes were lost or added"),
    "rebalance": lazy.Entry("skep.cli.rebalance", "rebalance", "Move tasks from busy nodes to less busy ones"),
    "dev": lazy.Entry("skep.cli.dev", "dev", "Run a whole cluster on this machine", optional=True),
    "info": lazy.Entry("skep.cli.system", "info", "Show this machine and its cluster"),
    "version": lazy.Entry("skep.cli.system", "version", "Show the versions of skep and skepd"),
    "completion": lazy.Entry("skep.cli.completion", "completion", "Print a completion script for your shell"),
    "swarm": lazy.Entry("skep.cli.swarm", "swarm", "The same, grouped as Docker does", hidden=True),
}


@click.group(
    cls=lazy.LazyGroup,
    entries=ENTRIES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=f"Run '{app.PROGRAM} COMMAND --help' for a command's options and examples.",
)
@click.option(
    "-H",
    "--host",
    default=app.HOST_DEFAULT,
    envvar=app.HOST_VARIABLE,
    show_default=True,
    metavar="ADDRESS",
    help=f"Socket of skepd, unix:///path; also from {app.HOST_VARIABLE}.",
)
@click.option(
    "--stale", is_flag=True, help="Read what this manager knows, although it may be old; works without a leader."
)
@click.version_option(
    skep.__version__, "-v", "--version", prog_name=app.PROGRAM, message="%(prog)s version %(version)s"
)
@click.pass_context
def cli(context: click.Context, host: str, *, stale: bool) -> None:
    """A cluster scheduler in the manner of Docker's swarm mode."""
    state = context.ensure_object(app.App)
    state.host = host
    state.stale = stale


def run(arguments: Sequence[str], *, state: app.App | None = None) -> int:
    """Runs one command line and returns its exit code: 0 when what was asked for came about, 1 when not."""
    state = state or app.App()
    try:
        code = cli.main(args=list(arguments), prog_name=app.PROGRAM, standalone_mode=False, obj=state)
        sys.stdout.flush()
    except click.ClickException as problem:
        _complain(_usage(problem))
        return EXIT_FAILED
    except errors.SkepError as problem:
        _complain(f"Error: {problem.message}")
        return EXIT_FAILED
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has left (| head). Nothing may be written at exit either.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    finally:
        state.close()
    return code if isinstance(code, int) else 0


def _usage(problem: click.ClickException) -> str:
    text = f"Error: {problem.format_message()}"
    context = getattr(problem, "ctx", None)
    if isinstance(context, click.Context):
        text += f"\nSee '{context.command_path} --help'."
    return text


def _complain(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(text, err=True)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
