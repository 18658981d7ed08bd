"""The command `rebalance`: moves tasks to less busy nodes, shows how that goes, and sets the policy."""

from collections.abc import Mapping
from typing import Any

import click

from skep import errors
from skep.cli import app, flags, forecast, lazy, planning, values

Json = Mapping[str, Any]

POLL_S = 0.5
EXIT_INTERRUPTED = 130
NUMBERS = {"moves": "Moves", "at_a_time": "AtATime", "min_benefit": "MinBenefit", "min_age": "MinAge"}


@click.command(
    cls=lazy.Command,
    examples=(
        "skep rebalance --plan",
        "skep rebalance",
        "skep rebalance --moves 10 --at-a-time 1 --min-age 10m",
        "skep rebalance --auto on",
    ),
)
@click.option("--moves", type=values.COUNT, help="Move at most so many tasks.  [default: 1000]")
@click.option("--at-a-time", type=values.COUNT, help="Move so many at the same time.  [default: 3]")
@click.option(
    "--min-benefit",
    type=values.COUNT,
    help="Leave nodes alone that differ by fewer tasks, of the service or in all.  [default: 2]",
)
@click.option("--min-age", type=values.DURATION, help="Leave tasks alone until they have run so long.  [default: 1m]")
@click.option("--cancel", is_flag=True, help="Begin no further move.")
@click.option("--status", is_flag=True, help="Show how the last rebalancing stands, and the policy.")
@click.option("--auto", type=click.Choice(["on", "off"]), help="Whether nodes that come get a share by themselves.")
@flags.together((*flags.PLANNING, flags.switch("--detach", "Return at once; it goes on by itself.", "-d")))
@app.pass_app
def rebalance(state: app.App, /, *, cancel: bool, status: bool, auto: str | None, **given: Any) -> None:
    """Even out the load: move tasks from busy nodes to less busy ones.

    The successor starts first and takes over once it has proven healthy; no service ever has fewer tasks than it asks
    for. The first move that turns out unhealthy ends it, with exit code 1. Services that are being updated, that must
    not run twice, or that keep a volume on their node are left alone.
    """
    asked = planning.wanted(given)
    if sum((cancel, status, auto is not None, asked)) > 1:
        raise click.UsageError("--plan, --cancel, --status and --auto exclude each other")
    body = {NUMBERS[name]: given[name] for name in NUMBERS if given[name] is not None}
    if asked:
        plan = state.client.request("POST", "/skep/v1/rebalance/plan", body=body).body
        forecast.tell(state, [plan], as_json=bool(given["json"]))
    if auto is not None:
        state.client.request("POST", "/skep/v1/rebalance/policy", body={"Auto": auto == "on"})
        state.say("Nodes that join or return get their share by themselves." if auto == "on" else
                  "Nothing is moved unless 'skep rebalance' asks for it.")  # fmt: skip
    elif cancel:
        state.client.request("POST", "/skep/v1/rebalance/cancel")
        state.say("No further move begins; what is on the move arrives.")
    elif status:
        state.say(_status(state.client.get("/skep/v1/rebalance")))
    else:
        state.client.request("POST", "/skep/v1/rebalance", body=body)
        if given["detach"]:
            state.say("Under way; look with 'skep rebalance --status'.")
        else:
            _wait(state)


def _wait(state: app.App) -> None:
    told = ""
    try:
        while (found := state.client.get("/skep/v1/rebalance"))["Active"]:
            line = _progress(found)
            if line != told:
                told = line
                state.say(line)
            state.pause(POLL_S)
    except KeyboardInterrupt:
        state.warn("\nIt goes on in the background; stop it with 'skep rebalance --cancel'.")
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    if found["Unhealthy"]:
        raise errors.FailedPrecondition(f"{_progress(found)}. What had moved before stays where it is")
    state.say(_progress(found))


def _progress(found: Json) -> str:
    moved = found["Moved"]
    return f"{moved} {'task' if moved == 1 else 'tasks'} moved; {found['Message']}"


def _status(found: Json) -> str:
    policy = "Policy: nodes that join or return get their share by themselves." if found["Auto"] else (
        "Policy: nothing moves unless it is asked for ('skep rebalance --auto on' changes that)."
    )  # fmt: skip
    if "RequestedAt" not in found:
        return f"Never asked for.\n{policy}"
    standing = "Under way" if found["Active"] else "Over"
    return f"{standing}: {_progress(found)}.\n{policy}"
