"""The skepd command: reads options, sets up logging, runs the daemon until a signal."""

import asyncio
import contextlib
import faulthandler
import gc
import pathlib
import signal
import socket
import sys
from typing import Literal

import click
import structlog

import skep
from skep import errors
from skep.daemon import daemon, logs, settings

log = structlog.get_logger(__name__)

# The store's objects live long and hold no cycles; with CPython's 700 the collector would walk all of them again and
# again. This took a third off the time to store 100,000 tasks.
GC_THRESHOLDS = (50_000, 20, 100)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--state-dir", type=click.Path(path_type=pathlib.Path), default=settings.DEFAULT_STATE_DIR,
              show_default=True, help="Keys, Raft log, record of what runs here.")  # fmt: skip
@click.option("--socket", "socket_path", type=click.Path(path_type=pathlib.Path), default=settings.DEFAULT_SOCKET,
              show_default=True, help="Unix socket of the HTTP API; only its owner may use it.")  # fmt: skip
@click.option("--name", default="", help="Name of this machine in the cluster.  [default: its hostname]")
@click.option("--runtime", type=click.Choice(["auto", "docker", "process", "memory"]), default="auto",
              show_default=True, help="What runs the tasks; auto takes Docker's engine where one answers.")  # fmt: skip
@click.option("--docker-socket", default="/var/run/docker.sock", show_default=True, help="The engine's socket.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Engine label; may be repeated.")
@click.option("--generic-resource", "generic", multiple=True, metavar="KIND=VALUE",
              help="What else can be reserved here: gpu=2, or gpu=ID1,gpu=ID2; may be repeated.")  # fmt: skip
@click.option(
    "--advertise-addr",
    default="",
    metavar="ADDR",
    help="Address that other machines reach this one at (IP[:PORT]).  [default: as at init or join]",
)
@click.option("--listen-addr", default="", metavar="ADDR",
              help="Address to listen on (IP[:PORT]).  [default: as at init or join]")  # fmt: skip
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--supervised", is_flag=True, help="End when standard input ends: for a parent that may be killed.")
@click.option("--remove-tasks", is_flag=True, help="Stop and remove every task of this node, then end.")
@click.version_option(skep.__version__)
def main(
    *,
    state_dir: pathlib.Path,
    socket_path: pathlib.Path,
    name: str,
    runtime: Literal["auto", "docker", "process", "memory"],
    docker_socket: str,
    labels: tuple[str, ...],
    generic: tuple[str, ...],
    advertise_addr: str,
    listen_addr: str,
    log_level: str,
    log_format: str,
    supervised: bool,
    remove_tasks: bool,
) -> None:
    """The daemon of skep: one per machine. Always an agent, also a manager while its role says so.

    It keeps tasks running when it stops; stopping or restarting skepd never restarts anything of yours.
    """
    logs.configure(level=log_level, json=log_format == "json")
    gc.set_threshold(*GC_THRESHOLDS)
    faulthandler.enable()  # a crash in native code leaves a traceback in the log instead of nothing
    try:
        chosen = settings.Settings(
            state_dir=state_dir.absolute(),
            socket=socket_path.absolute(),
            name=name or socket.gethostname(),
            runtime=runtime,
            docker_socket=docker_socket.removeprefix("unix://"),
            labels=dict(_label(label) for label in labels),
            generic=settings.generic_resources(generic),
            listen_addr=listen_addr,
            advertise_addr=advertise_addr,
        )
        asyncio.run(_run(chosen, supervised=supervised, remove_tasks=remove_tasks))
    except errors.SkepError as error:
        click.echo(f"skepd: {error.message}", err=True)
        sys.exit(1)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise errors.Invalid(f"--label {text!r}: write KEY=VALUE")
    return key, value


async def _run(chosen: settings.Settings, *, supervised: bool, remove_tasks: bool) -> None:
    machine = daemon.Daemon(chosen)
    if remove_tasks:
        await machine.remove_tasks()
        return
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if supervised:
        await _watch_stdin(stop)
    await machine.start()
    try:
        failure = asyncio.ensure_future(machine.failed())
        waiter = asyncio.ensure_future(stop.wait())
        await asyncio.wait({failure, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            failure.result()
    finally:
        for task in (failure, waiter):
            task.cancel()
        with contextlib.suppress(Exception):
            log.info("daemon.stopping")
        await machine.stop()


async def _watch_stdin(stop: asyncio.Event) -> None:
    """Sets `stop` when the other end of standard input closes: the parent is gone."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def drain() -> None:
        while await reader.read(4096):
            pass
        stop.set()

    _background.add(asyncio.ensure_future(drain()))


_background: set[asyncio.Future[None]] = set()  # keeps the stdin watcher referenced


if __name__ == "__main__":
    main()
