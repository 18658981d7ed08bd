"""Handlers for emptying nodes: what stands in the way, the start, the progress, the way back."""

import dataclasses
from typing import Any

from manager.control import draining, lookup
from manager.http import forecasts, messages, planning, routing
from manager.store import views
from skep import durations, errors, jsonmap, pb, stamps, tasknames

NODES_MAX = 1000  # in one request


@dataclasses.dataclass(frozen=True)
class _Request:
    nodes: list[str]
    deadline_s: float


def _request(call: messages.Call) -> _Request:
    """{"Nodes": [name or ID, ..], "Deadline": nanoseconds}. Raises Invalid."""
    given = messages.members(call.json())
    names = given.get("nodes")
    if not isinstance(names, list) or not names or len(names) > NODES_MAX or not all(isinstance(n, str) for n in names):
        raise errors.Invalid(f'expected {{"Nodes": [..]}} with 1 to {NODES_MAX} names or IDs of nodes')
    deadline = given.get("deadline")
    if deadline is None:
        return _Request(names, draining.DEADLINE_DEFAULT_S)
    if not isinstance(deadline, int) or isinstance(deadline, bool):
        raise errors.Invalid("Deadline: expected nanoseconds")
    return _Request(names, stamps.from_nanos(deadline))


async def plan_drain(call: messages.Call) -> messages.Response:
    """What draining these nodes, all at once, would do."""
    wanted = _request(call)
    view, now = call.context.manager.store.view(), call.context.machine.clock.now()
    return await planning.answer(call, draining.start(view, wanted.nodes, deadline_s=wanted.deadline_s, now=now))


async def start_drain(call: messages.Call) -> messages.Response:
    """Starts draining; answers what will not go without a gap."""
    wanted = _request(call)
    now = call.context.machine.clock.now()
    base = call.context.manager.store.copy()
    change = draining.start(base.view(), wanted.nodes, deadline_s=wanted.deadline_s, now=now)
    found = await planning.aside(lambda: planning.gaps_of(base, change, now))
    await call.context.control.drain_nodes(wanted.nodes, deadline_s=wanted.deadline_s)
    names = {node.id: tasknames.node(node) for node in call.context.manager.store.view().nodes}
    return messages.json_response({"Gaps": forecasts.gaps_of(found, names)})


async def cancel_drain(call: messages.Call) -> messages.Response:
    await call.context.control.cancel_drains(_request(call).nodes)
    return messages.empty_response()


async def show_drain(call: messages.Call) -> messages.Response:
    """How far the drain of each `node=` has come."""
    view = call.context.manager.store.view()
    nodes = [lookup.node(view, reference) for reference in call.query.get("node", [])]
    now = call.context.machine.clock.now()
    return messages.json_response([_progress(view, node, now) for node in nodes])


def _progress(view: views.View, node: pb.Node, now: float) -> dict[str, Any]:
    drained = node.spec.availability == pb.NODE_AVAILABILITY_DRAIN
    shown: dict[str, Any] = {
        "ID": node.id,
        "Name": tasknames.node(node),
        "Draining": drained,
        "Left": [
            {"TaskID": each.task.id, "Name": forecasts.task_name(each.task), "Why": each.why}
            for each in (draining.left(view, node) if drained else [])
        ],
        "Homeless": [
            {"TaskID": task.id, "Name": forecasts.task_name(task), "Why": task.status.err}
            for task in draining.homeless(view, node)
        ],
    }
    if drained and node.drain.HasField("deadline"):
        shown["Deadline"] = jsonmap.format_time(node.drain.deadline)
        shown["LeftOfDeadline"] = durations.words(stamps.seconds(node.drain.deadline) - now)
    return shown


ROUTES = (
    routing.Route("POST", "/skep/v1/drain/plan", routing.Scope.READ, plan_drain),
    routing.Route("POST", "/skep/v1/drain/cancel", routing.Scope.WRITE, cancel_drain),
    routing.Route("POST", "/skep/v1/drain", routing.Scope.WRITE, start_drain),
    routing.Route("GET", "/skep/v1/drain", routing.Scope.READ, show_drain),
)
