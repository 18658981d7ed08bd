"""The command `explain`: why a service, a task or a node is as it is."""

import json
from collections.abc import Mapping
from typing import Any

import click

from skep import client
from skep.cli import app, completing, lazy, text

Json = Mapping[str, Any]

NOUNS = ("service", "task", "node")
WAITS_MAX = 20  # in print; --json has all


@click.command(
    cls=lazy.Command,
    examples=(
        "skep explain service web",
        "skep explain task web.3 --why-not n2",
        "skep explain node n3 --json",
    ),
)
@click.option("--why-not", metavar="NODE", shell_complete=completing.nodes, help="Ask about this node only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("noun", type=click.Choice(NOUNS))
@click.argument("name")
@app.pass_app
def explain(state: app.App, /, *, noun: str, name: str, why_not: str | None, as_json: bool) -> None:
    """Show why a service, a task or a node is as it is.

    Lists every node with each rule that it fails, what is needed and what is there; what is waited for; and the
    nearest remedy. NAME is a name or an ID; a task is also named by its service and slot, such as web.3.
    """
    from skep.cli import node

    if noun == "node" and name == "self":
        name = node.own_id(state)
    query = {"why_not": node.own_id(state) if why_not == "self" else why_not} if why_not else None
    found = state.client.get(f"/skep/v1/explain/{noun}/{client.quote(name)}", query)
    if as_json:
        state.say(json.dumps(found, indent=4, ensure_ascii=False))
    else:
        state.say(words(found, now=state.wall.now()))


def words(found: Json, *, now: float) -> str:
    """An explanation for people."""
    parts = [f"{found['Name']}: {found['Summary']}"]
    if found.get("WhyNot"):
        parts.append(found["WhyNot"])
    if found["Waits"]:
        lines = [_wait(each, now=now) for each in found["Waits"][:WAITS_MAX]]
        if len(found["Waits"]) > WAITS_MAX:
            lines.append(f".. and {len(found['Waits']) - WAITS_MAX} more; --json shows all")
        parts.append("\n".join(lines))
    # What a node turns away is told as a wait already.
    if found["Nodes"] and found["Kind"] != "node":
        rows = [[each["Name"], str(each["ServiceTasks"]), str(each["Tasks"]), _answer(each)] for each in found["Nodes"]]
        parts.append(text.table(["NODE", "OF SERVICE", "TASKS", "ANSWER"], rows))
    if found["Fix"]:
        parts.append(f"Nearest remedy: {found['Fix']}")
    return "\n\n".join(parts)


def _wait(wait: Json, *, now: float) -> str:
    line = f"{wait['Subject']} waits for {wait['For']}"
    until = text.seconds_of(wait.get("Until"))
    if until is None:
        return line
    return f"{line}, {text.span(max(0.0, until - now)).lower()} from now"


def _answer(node: Json) -> str:
    if node["Here"]:
        return "is here"
    if node["Fits"]:
        return "takes it"
    return "; ".join(f"needs {each['Need']}: {each['Have']}" if each["Have"] else f"needs {each['Need']}"
                     for each in node["Failing"])  # fmt: skip
