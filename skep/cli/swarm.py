"""init, join, leave and token: a machine's way into a cluster and out of it.

Tokens are shown only where they were asked for, and never repeated in an error.
"""

import os
import pathlib
from typing import Any

import click

from skep import errors
from skep.cli import app, lazy, values

TOKEN_VARIABLE = "SKEP_JOIN_TOKEN"  # noqa: S105 - the name of a variable
JOIN_PORT_OFFSET = 1  # skepd takes joins on the port above its cluster port
FORM_TIMEOUT_S = 90.0  # making keys and electing a leader, on a slow machine
AVAILABILITY = click.Choice(["active", "pause", "drain"])


def join_address(cluster_addr: str) -> str:
    """Where machines knock: the cluster address of a manager with the port of the join call."""
    host, _, port = cluster_addr.rpartition(":")
    return f"{host}:{int(port) + JOIN_PORT_OFFSET}" if host and port.isdigit() else cluster_addr


def _manager_address(state: app.App) -> str:
    """A join address of the cluster: this machine's, or another manager's."""
    swarm = (state.client.get("/info") or {}).get("Swarm") or {}
    own = swarm.get("NodeID", "")
    known = {each.get("NodeID", ""): each.get("Addr", "") for each in swarm.get("RemoteManagers") or []}
    address = known.get(own) or next((addr for addr in known.values() if addr), "")
    return join_address(address) if address else "HOST:PORT"


@click.command(
    cls=lazy.Command,
    examples=[
        "skep init",
        "skep init --advertise-addr 10.0.0.1",
        "skep init --advertise-addr 10.0.0.1:2477 --availability drain",
    ],
)
@click.option(
    "--advertise-addr", default="", metavar="ADDR", help="Address that other machines reach this one at (IP[:PORT])."
)
@click.option(
    "--listen-addr", default="", metavar="ADDR", help="Address to listen on (IP[:PORT]).  [default: 0.0.0.0:2377]"
)
@click.option(
    "--availability", type=AVAILABILITY, default="active", show_default=True, help="Availability of this node."
)
@click.option(
    "--force-new-cluster", is_flag=True, help="Start anew from this manager's state, with it as the only manager."
)
@click.option("--heartbeat-period", "--dispatcher-heartbeat", "heartbeat", type=values.DURATION,
              help="Time between two heartbeats of an agent.  [default: 5s]")  # fmt: skip
@click.option("--task-history-limit", type=values.WHOLE, help="Finished tasks kept per slot.  [default: 5]")
@click.option("--cert-expiry", type=values.DURATION, help="Validity of node certificates.  [default: 2160h]")
@click.option("--snapshot-interval", type=values.COUNT, help="Log entries between snapshots.  [default: 10000]")
@app.pass_app
def init(
    state: app.App,
    *,
    advertise_addr: str,
    listen_addr: str,
    availability: str,
    force_new_cluster: bool,
    heartbeat: int | None,
    task_history_limit: int | None,
    cert_expiry: int | None,
    snapshot_interval: int | None,
) -> None:
    """Make this machine the first manager of a new cluster.

    Prints the commands that other machines join with.
    """
    spec: dict[str, Any] = {}
    if heartbeat is not None:
        spec["Dispatcher"] = {"HeartbeatPeriod": heartbeat}
    if task_history_limit is not None:
        spec["Orchestration"] = {"TaskHistoryRetentionLimit": task_history_limit}
    if cert_expiry is not None:
        spec["CAConfig"] = {"NodeCertExpiry": cert_expiry}
    if snapshot_interval is not None:
        spec["Raft"] = {"SnapshotInterval": snapshot_interval}
    body = {
        "ListenAddr": listen_addr or "0.0.0.0:2377",
        "AdvertiseAddr": advertise_addr,
        "ForceNewCluster": force_new_cluster,
        "Availability": availability,
        "Spec": spec,
    }
    node_id = state.client.request("POST", "/swarm/init", body=body, patient=False, timeout_s=FORM_TIMEOUT_S).body
    tokens = state.client.get("/swarm")["JoinTokens"]
    state.say(f"Cluster initialized: this node ({node_id}) is now a manager.\n")
    state.say("To add a worker to this cluster, run on the other machine:\n")
    state.say(f"    skep join --token {tokens['Worker']} {_manager_address(state)}\n")
    state.say("To add a manager, run 'skep token manager' here and follow the instructions.")


def _token(given: str | None, file: pathlib.Path | None) -> str:
    """The token from the flag, the file or the environment, whichever is there; without the spaces around it."""
    if given is not None and file is not None:
        raise errors.Invalid("--token and --token-file were both given; give one of them")
    if file is not None:
        try:
            given = file.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            raise errors.Invalid(f"--token-file {file} cannot be read: {problem}") from None
    token = (given if given is not None else os.environ.get(TOKEN_VARIABLE, "")).strip()
    if not token:
        raise errors.Invalid(
            f"no join token: give --token, --token-file or {TOKEN_VARIABLE}; 'skep token worker' on a manager shows it"
        )
    return token


@click.command(
    cls=lazy.Command,
    examples=[
        "skep join --token TOKEN 10.0.0.1:2378",
        "skep join --token-file /root/token 10.0.0.1:2378 10.0.0.2:2378",
    ],
)
@click.option("--token", help=f"The token that admits this machine; better from --token-file or {TOKEN_VARIABLE}.")
@click.option("--token-file", type=click.Path(path_type=pathlib.Path), help="File that holds the token.")
@click.option(
    "--advertise-addr", default="", metavar="ADDR", help="Address that other machines reach this one at (IP[:PORT])."
)
@click.option(
    "--listen-addr", default="", metavar="ADDR", help="Address to listen on (IP[:PORT]).  [default: 0.0.0.0:2377]"
)
@click.option(
    "--availability", type=AVAILABILITY, default="active", show_default=True, help="Availability of this node."
)
@click.argument("addresses", nargs=-1, required=True, metavar="HOST:PORT...")
@app.pass_app
def join(
    state: app.App,
    *,
    token: str | None,
    token_file: pathlib.Path | None,
    advertise_addr: str,
    listen_addr: str,
    availability: str,
    addresses: tuple[str, ...],
) -> None:
    """Make this machine part of a cluster, as a worker or a manager: the token decides.

    HOST:PORT are join addresses of managers, as 'skep token' prints them; they are tried in turn.
    """
    body = {
        "ListenAddr": listen_addr or "0.0.0.0:2377",
        "AdvertiseAddr": advertise_addr,
        "RemoteAddrs": list(addresses),
        "JoinToken": _token(token, token_file),
        "Availability": availability,
    }
    state.client.request("POST", "/swarm/join", body=body, patient=False, timeout_s=FORM_TIMEOUT_S)
    swarm = (state.client.get("/info") or {}).get("Swarm") or {}
    role = "manager" if swarm.get("ControlAvailable") else "worker"
    state.say(f"This node joined the cluster as a {role}.")


@click.command(cls=lazy.Command, examples=["skep leave", "skep leave --force"])
@click.option(
    "-f", "--force", is_flag=True, help="Leave although this node is a manager, or the cluster cannot be asked."
)
@app.pass_app
def leave(state: app.App, *, force: bool) -> None:
    """Take this machine out of its cluster: its tasks stop, its identity and state are removed."""
    query = {"force": "1"} if force else None
    state.client.request("POST", "/swarm/leave", query=query, patient=False, timeout_s=FORM_TIMEOUT_S)
    state.say("This node left the cluster.")


@click.command(cls=lazy.Command, examples=["skep token worker", "skep token -q manager", "skep token --rotate worker"])
@click.option("--rotate", is_flag=True, help="Make a new token; the old one no longer admits anybody.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the token.")
@click.argument("role", type=click.Choice(["worker", "manager"]))
@app.pass_app
def token(state: app.App, *, rotate: bool, quiet: bool, role: str) -> None:
    """Show the join token for workers or managers, with the command to use it in."""
    if rotate:
        cluster = state.client.get("/swarm")
        query = {"version": str(cluster["Version"]["Index"]), f"rotate{role.title()}Token": "true"}
        state.client.request("POST", "/swarm/update", query=query, body=cluster["Spec"])
        if not quiet:
            state.say(f"The {role} token has been rotated.\n")
    secret = state.client.get("/swarm")["JoinTokens"][role.title()]
    if quiet:
        state.say(secret)
        return
    state.say(f"To add a {role} to this cluster, run on the other machine:\n")
    state.say(f"    skep join --token {secret} {_manager_address(state)}\n")


@click.group(cls=lazy.LazyGroup, entries={
    name: lazy.Entry("skep.cli.swarm", attribute, help_line)
    for name, attribute, help_line in (
        ("init", "init", "Make this machine the first manager of a new cluster"),
        ("join", "join", "Make this machine part of a cluster"),
        ("join-token", "token", "Show or rotate the tokens that admit machines"),
        ("leave", "leave", "Take this machine out of its cluster"),
    )
})  # fmt: skip
def swarm() -> None:
    """The commands that Docker groups under swarm."""
