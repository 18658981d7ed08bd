"""The questions `what-if lose` and `what-if add`: nothing is changed."""

import re
from collections.abc import Sequence
from typing import Any

import click

from skep.cli import app, completing, flags, forecast, lazy, values

ADDITION = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)cpus?,?(\d+(?:\.\d+)?[kmgt]?)b?", re.IGNORECASE)


def addition(words: str) -> dict[str, Any]:
    """`2x4cpu8g`: two nodes of 4 CPUs and 8 GiB. Raises ValueError."""
    match = ADDITION.fullmatch(words.strip())
    if match is None:
        raise ValueError(f"{words!r} is not a number of nodes and their size; write it as 2x4cpu8g")
    return {
        "Count": int(match[1] or 1),
        "NanoCPUs": values.nano_cpus(match[2]),
        "MemoryBytes": values.size_bytes(match[3]),
    }


@click.group(
    cls=lazy.LazyGroup,
    entries={
        "lose": lazy.Entry("skep.cli.what_if", "lose", "What would happen if these nodes were lost"),
        "add": lazy.Entry("skep.cli.what_if", "add", "What would happen if nodes were added"),
    },
)
def what_if() -> None:
    """Ask what would happen; nothing is changed.

    The exit code is 0 when nothing would, 2 when tasks would be moved or started, 3 when some could not be placed.
    """


@click.command(cls=lazy.Command, examples=("skep what-if lose n3", "skep what-if lose --json n2 n3"))
@flags.JSON
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=completing.nodes)
@app.pass_app
def lose(state: app.App, /, *, nodes: Sequence[str], json: bool | None) -> None:
    """Show what would happen if all these nodes were lost at once."""
    reply = state.client.request("POST", "/skep/v1/what-if", body={"Lose": [_own(state, name) for name in nodes]})
    forecast.tell(state, [reply.body], as_json=bool(json))


def _own(state: app.App, name: str) -> str:
    from skep.cli import node

    return node.own_id(state) if name == "self" else name


@click.command(cls=lazy.Command, examples=("skep what-if add 2x4cpu8g", "skep what-if add --label disk=ssd 1x2cpu4g"))
@click.option("--label", "labels", type=values.PAIR, multiple=True, help="Label of the new nodes, key=value.")
@flags.JSON
@click.argument("sizes", nargs=-1, required=True, metavar="COUNTxCPUScpuMEMORY...",
                type=values.Kind("COUNTxCPUScpuMEMORY", addition))  # fmt: skip
@app.pass_app
def add(
    state: app.App, /, *, sizes: Sequence[dict[str, Any]], labels: Sequence[tuple[str, str]], json: bool | None
) -> None:
    """Show what would happen if nodes of these sizes were added."""
    body = {"Add": [{**size, "Labels": dict(labels)} for size in sizes]}
    reply = state.client.request("POST", "/skep/v1/what-if", body=body)
    forecast.tell(state, [reply.body], as_json=bool(json))
