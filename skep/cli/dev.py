"""`skep dev`: a whole cluster on this machine, until Ctrl-C."""

import asyncio
import pathlib
import signal
import sys
import tempfile
from typing import Any

import click

from skep import errors
from skep.cli import dev_cluster

HEARTBEAT_PERIOD_NS = 1_000_000_000  # a second instead of five: on one machine a dead node may be noticed sooner


@click.command()
@click.option(
    "--managers", type=click.IntRange(1, 7), default=3, show_default=True, help="Managers; they also run tasks."
)
@click.option("--agents", type=click.IntRange(0, 50), default=0, show_default=True, help="Workers beside them.")
@click.option("--keep", type=click.Path(path_type=pathlib.Path), metavar="DIR",
              help="Keep the cluster's state in DIR, and come back to it next time.")  # fmt: skip
@click.option("--runtime", type=click.Choice(["auto", "docker", "process", "memory"]), default="auto",
              show_default=True, help="What runs the tasks.")  # fmt: skip
@click.option("--docker-socket", default="/var/run/docker.sock", show_default=True, help="The engine's socket.")
def dev(managers: int, agents: int, keep: pathlib.Path | None, runtime: str, docker_socket: str) -> None:
    """Run a whole cluster on this machine, until Ctrl-C.

    Every node is a real skepd with its own state directory, ports and socket. A daemon that dies is started again,
    as a service manager would. Works as an ordinary user with the process runtime, and with a Docker engine where one
    answers.

    \b
      skep dev                          three managers that also run tasks
      skep dev --managers 1 --agents 5  one manager, five workers
      skep dev --keep ~/cluster         the same cluster again next time
    """
    if managers % 2 == 0:
        raise click.UsageError(f"--managers {managers}: take an odd number; an even one tolerates no more failures")
    directory = keep.expanduser().absolute() if keep else pathlib.Path(tempfile.mkdtemp(prefix="skep-dev-"))
    try:
        nodes, known = dev_cluster.DevCluster.layout(directory, managers=managers, agents=agents)
        cluster = dev_cluster.DevCluster(directory, nodes, runtime=runtime, docker_socket=docker_socket, say=_say)
        asyncio.run(_run(cluster, fresh=not known, keep=keep is not None))
    except errors.SkepError as error:
        click.echo(f"Error: {error.message}", err=True)
        sys.exit(1)


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


async def _run(cluster: dev_cluster.DevCluster, *, fresh: bool, keep: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    managers = sum(node.manager for node in cluster.nodes)
    what = f"{managers} managers and {len(cluster.nodes) - managers} workers"
    _say(f"{'starting' if fresh else 'coming back to'} {what} in {cluster.directory} ..")
    try:
        await _until(stop, _serve(cluster, fresh=fresh))
    finally:
        _say("stopping; tasks are stopped and removed" + (f", state stays in {cluster.directory}" if keep else " .."))
        await cluster.stop(keep=keep)


async def _until(stop: asyncio.Event, work: Any) -> None:
    """Runs `work` until it ends or the user asks to stop."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
    waiter.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return


async def _serve(cluster: dev_cluster.DevCluster, *, fresh: bool) -> None:
    spec: dict[str, Any] = {"Dispatcher": {"HeartbeatPeriod": HEARTBEAT_PERIOD_NS}}
    await cluster.start(fresh=fresh, init={"Spec": spec})
    nodes = await cluster.ready()
    first = cluster.nodes[0]
    runtimes = sorted({node["Description"]["Engine"].get("Runtime", "?") for node in nodes})
    _say(f"ready: {len(nodes)} nodes, runtime {', '.join(runtimes)}")
    _say("")
    _say(f"  export SKEP_HOST=unix://{first.socket}")
    _say("  skep node ls")
    if "docker" in runtimes:
        _say("  skep service create --name web --replicas 3 --publish mode=host,target=80 nginx")
    else:
        _say("  skep service create --name clock --replicas 3 process sh -c 'while date; do sleep 1; done'")
    _say("  skep service ps clock" if "docker" not in runtimes else "  skep service ps web")
    _say("")
    _say("Ctrl-C stops everything.")
    await asyncio.Event().wait()
