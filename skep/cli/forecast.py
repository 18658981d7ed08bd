"""What a change would do, for people or as JSON, and the exit code that says it: 0 nothing, 2 changes, 3 infeasible."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from skep.cli import app, text

Json = Mapping[str, Any]

EXIT_CODES = {"nothing": 0, "changes": 2, "infeasible": 3}
ROWS_MAX = 50  # tasks in a table; --json has all
VALUE_CHARS_MAX = 60
ABSENT = "(none)"
ORDER = ("kept", "restarted", "moved", "new", "removed", "lost", "held", "infeasible")
WORDS = {"lost": "lost with their node", "held": "not reached", "infeasible": "without a node"}


def tell(state: app.App, plans: Sequence[Json], *, as_json: bool) -> NoReturn:
    """Prints plans and ends the command with the exit code of the gravest."""
    if as_json:
        state.say(json.dumps(plans[0] if len(plans) == 1 else plans, indent=4, ensure_ascii=False))
    else:
        state.say("\n\n".join(words(plan) for plan in plans))
    raise click.exceptions.Exit(max(EXIT_CODES[plan["Verdict"]] for plan in plans))


def words(plan: Json) -> str:
    """A plan for people."""
    parts: list[str] = []
    if plan.get("Gaps"):
        parts.append(gaps(plan["Gaps"]))
    if plan["Fields"]:
        parts.append(fields(plan["Fields"]))
    parts += [_service(service) for service in plan["Services"]]
    changed = [f"{node['Name']} {node['Before']} -> {node['After']}" for node in plan["Nodes"]
               if node["Before"] != node["After"]]  # fmt: skip
    if changed:
        parts.append("Tasks by node: " + ", ".join(changed))
    parts += [f"Note: {note}" for note in plan["Notes"]]
    parts.append({
        "nothing": "Nothing to do.",
        "changes": "Nothing has been changed. This is what would happen.",
        "infeasible": "Nothing has been changed. Not all of this can come about.",
    }[plan["Verdict"]])  # fmt: skip
    return "\n\n".join(parts)


def gaps(found: Sequence[Json]) -> str:
    """What a drain cannot move without a gap: a line each, and why."""
    rows = [[each["Name"], each["NodeName"], each["Expected"], each["Why"]] for each in found[:ROWS_MAX]]
    lines = ["Not without a gap:", *(f"  {line}" for line in
             text.table(["TASK", "NODE", "EXPECTED GAP", "WHY"], rows).splitlines())]  # fmt: skip
    if len(found) > ROWS_MAX:
        lines.append(f"  .. and {len(found) - ROWS_MAX} more; --plan --json shows all")
    return "\n".join(lines)


def fields(found: Sequence[Json]) -> str:
    """Differences of a specification, a line each."""
    rows = [[f"{each['Node']} {each['Path']}" if each.get("Node") else each["Path"], *change(each)] for each in found]
    return text.table(["FIELD", "BEFORE", "AFTER"], rows)


def change(field: Json) -> tuple[str, str]:
    """Before and after of one field, shortened."""
    return _value(field["Before"]), _value(field["After"])


def _value(value: Any) -> str:
    if value is None:
        return ABSENT
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.shorten(shown, VALUE_CHARS_MAX) if shown else '""'


def _service(service: Json) -> str:
    counts = service["Counts"]
    told = [f"{counts[action]} {WORDS.get(action, action)}" for action in ORDER if counts.get(action)]
    lines = [f"{service['Name']}: {', '.join(told) or 'no tasks'}"]
    if service["RunningLeast"] < service["Running"]:
        lines[0] += f"; of {service['Running']} that run, {service['RunningLeast']} run all the time"
    status = service.get("UpdateStatus")
    if status is not None:
        lines[0] += f"; {status['Message']}" if status["State"] else ""
    reasons = list(dict.fromkeys(task["Reason"] for task in service["Tasks"] if task.get("Reason")))
    lines += [f"  {reason}" for reason in reasons]
    rows = [
        [task["Place"] if task["Slot"] else "-", task["Action"], task["FromName"] or "-", task["ToName"] or "-"]
        for task in service["Tasks"]
        if task["Action"] != "kept"
    ]
    if rows:
        table = text.table(["SLOT", "ACTION", "FROM", "TO"], rows[:ROWS_MAX])
        lines += [f"  {line}" for line in table.splitlines()]
    if len(rows) > ROWS_MAX:
        lines.append(f"  .. and {len(rows) - ROWS_MAX} more; --json shows all")
    return "\n".join(lines)
