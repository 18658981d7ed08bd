"""The command `node drain`: empties machines without taking services down, and waits for it if asked to."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from skep import client, errors
from skep.cli import app, completing, flags, forecast, lazy, planning, values

Json = Mapping[str, Any]

POLL_S = 0.5
TASKS_SHOWN = 5  # of one node in one line
EXIT_INTERRUPTED = 130
NANOS = values.NANOS


@click.command(
    cls=lazy.Command,
    examples=(
        "skep node drain n1",
        "skep node drain --wait --deadline 30m n1 n2",
        "skep node drain --plan n1",
        "skep node drain --cancel n1",
    ),
)
@click.option("--wait", is_flag=True, help="Return once the nodes are empty.")
@click.option("--deadline", type=values.DURATION, help="Stop what is still there after this time.  [default: 10m]")
@click.option("--cancel", is_flag=True, help="Let the nodes take tasks again; what has not left stays.")
@flags.together(flags.PLANNING)
@click.option("--timeout", type=values.DURATION, help="Give up waiting after this time; the drain goes on.")
@click.argument("references", nargs=-1, required=True, metavar="NODE...", shell_complete=completing.nodes)
@app.pass_app
def drain(
    state: app.App,
    /,
    *,
    references: Sequence[str],
    wait: bool,
    deadline: int | None,
    cancel: bool,
    **given: Any,
) -> None:
    """Move all tasks off nodes, and give them no new ones.

    A task leaves once its successor on another node has proven healthy. What cannot be in two places at a time is
    listed first, with the gap to be expected, and goes last. Several nodes are drained together: none of them gets
    the tasks of another.
    """
    asked = planning.wanted(given)
    if cancel and (wait or deadline is not None or asked):
        raise click.UsageError("--cancel goes with no other flag")
    if given["timeout"] is not None and not wait:
        raise click.UsageError("--timeout is for waiting: add --wait")
    body: dict[str, Any] = {"Nodes": [_own(state, name) for name in references]}
    if deadline is not None:
        body["Deadline"] = deadline
    if asked:
        forecast.tell(state, [_post(state, "/skep/v1/drain/plan", body)], as_json=bool(given["json"]))
    if cancel:
        _post(state, "/skep/v1/drain/cancel", body)
        for name in references:
            state.say(f"Node {name} takes tasks again.")
        return
    started = _post(state, "/skep/v1/drain", body)
    if started["Gaps"]:
        state.say(forecast.gaps(started["Gaps"]) + "\n")
    for name in references:
        state.say(f"Node {name} is being drained.")
    if wait:
        _wait(state, references, body["Nodes"], timeout_ns=given["timeout"])
    elif not started["Gaps"]:
        return
    else:
        state.say(f"Look with 'skep node drain --wait {' '.join(references)}', stop with --cancel.")


def _post(state: app.App, path: str, body: Json) -> Json:
    try:
        found: Json = state.client.request("POST", path, body=body).body
    except errors.NotFound as problem:
        raise errors.NotFound(f"{problem.message}; 'skep node ls' shows them") from None
    return found


def _own(state: app.App, name: str) -> str:
    from skep.cli import node

    return node.own_id(state) if name == "self" else name


def _wait(state: app.App, references: Sequence[str], nodes: Sequence[str], *, timeout_ns: int | None) -> None:
    """Returns when the nodes are empty; raises when some task is nowhere afterwards, or the wait is over before."""
    target = "/skep/v1/drain?" + "&".join(f"node={client.quote(name)}" for name in nodes)
    end = None if timeout_ns is None else state.wall.now() + timeout_ns / NANOS
    told: dict[str, str] = {}
    try:
        while True:
            found: Sequence[Json] = state.client.get(target)
            for node in found:
                line = _line(node)
                if told.get(node["ID"]) != line:
                    told[node["ID"]] = line
                    state.say(line)
            if not any(node["Left"] for node in found if node["Draining"]):
                break
            if end is not None and state.wall.now() >= end:
                raise errors.Unavailable(
                    "the nodes are not empty yet, and the drain goes on. Wait again with 'skep node drain --wait "
                    f"{' '.join(references)}', or stop it with --cancel"
                )
            state.pause(POLL_S)
    except KeyboardInterrupt:
        state.warn(f"\nThe drain goes on; stop it with 'skep node drain --cancel {' '.join(references)}'.")
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    cancelled = [node["Name"] for node in found if not node["Draining"]]
    if cancelled:
        raise errors.FailedPrecondition(f"somebody let {', '.join(cancelled)} take tasks again: not drained")
    lost = [f"{task['Name']}: {task['Why']}" for node in found for task in node["Homeless"]]
    if lost:
        raise errors.FailedPrecondition(f"empty, but not every task found another place: {'; '.join(lost)}")


def _line(node: Json) -> str:
    if not node["Draining"]:
        return f"{node['Name']}: takes tasks again"
    left = node["Left"]
    if not left:
        return f"{node['Name']}: empty"
    tasks = "; ".join(f"{task['Name']} {task['Why']}" for task in left[:TASKS_SHOWN])
    more = f"; and {len(left) - TASKS_SHOWN} more" if len(left) > TASKS_SHOWN else ""
    return f"{node['Name']}: {len(left)} {'task' if len(left) == 1 else 'tasks'} left: {tasks}{more}"
