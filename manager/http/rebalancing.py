"""Handlers for rebalancing: the request, its plan, its progress, its end, and the policy."""

from typing import Any

from manager.control import rebalancing
from manager.http import messages, planning, routing
from manager.orchestrator import rebalance
from skep import errors, jsonmap, pb, stamps

_NUMBERS = {"moves": "Moves", "atatime": "AtATime", "minbenefit": "MinBenefit", "minage": "MinAge"}


def _wanted(call: messages.Call) -> rebalancing.Wanted:
    """{"Moves": N, "AtATime": N, "MinBenefit": N, "MinAge": nanoseconds}, each of which may be left out."""
    data = call.json()
    if data is not None and not isinstance(data, dict):
        raise errors.Invalid("expected an object")
    given = {name: value for name, value in messages.members(data).items() if value is not None}
    for key, value in given.items():
        if key not in _NUMBERS:
            raise errors.Invalid(f"{key}: unknown; expected some of {', '.join(_NUMBERS.values())}")
        if not isinstance(value, int) or isinstance(value, bool):
            raise errors.Invalid(f"{_NUMBERS[key]}: expected an integer")
    age = given.get("minage")
    return rebalancing.Wanted(
        moves=given.get("moves"),
        at_a_time=given.get("atatime"),
        min_benefit=given.get("minbenefit"),
        min_age_s=None if age is None else stamps.from_nanos(age),
    )


async def plan_rebalance(call: messages.Call) -> messages.Response:
    """Which tasks would move."""
    view, now = call.context.manager.store.view(), call.context.machine.clock.now()
    return await planning.answer(call, rebalancing.start(view, _wanted(call), now=now))


async def start_rebalance(call: messages.Call) -> messages.Response:
    await call.context.control.rebalance(_wanted(call))
    return messages.json_response(_shown(call.context.manager.store.view().cluster))


async def show_rebalance(call: messages.Call) -> messages.Response:
    return messages.json_response(_shown(call.context.manager.store.view().cluster))


async def cancel_rebalance(call: messages.Call) -> messages.Response:
    await call.context.control.cancel_rebalance()
    return messages.empty_response()


async def set_policy(call: messages.Call) -> messages.Response:
    """{"Auto": true} or {"Auto": false}."""
    auto = messages.members(call.json()).get("auto")
    if not isinstance(auto, bool):
        raise errors.Invalid('expected {"Auto": true} or {"Auto": false}')
    await call.context.control.set_rebalance_policy(auto=auto)
    return messages.empty_response()


def _shown(cluster: pb.Cluster) -> dict[str, Any]:
    found = cluster.rebalance
    shown: dict[str, Any] = {
        "Auto": cluster.spec.auto_rebalance,
        "Active": rebalance.is_active(found),
        "Begun": found.moves,
        "Moved": found.moved,
        "UnderWay": len(found.moving),
        "Unhealthy": found.unhealthy,
        "Message": found.message,
        "Limits": {
            "Moves": found.limits.moves,
            "AtATime": found.limits.at_a_time,
            "MinBenefit": found.limits.min_benefit,
            "MinAge": found.limits.min_age,
        },
    }
    if found.HasField("requested_at"):
        shown["RequestedAt"] = jsonmap.format_time(found.requested_at)
    if found.HasField("ended_at"):
        shown["EndedAt"] = jsonmap.format_time(found.ended_at)
    return shown


ROUTES = (
    routing.Route("POST", "/skep/v1/rebalance/plan", routing.Scope.READ, plan_rebalance),
    routing.Route("POST", "/skep/v1/rebalance/cancel", routing.Scope.WRITE, cancel_rebalance),
    routing.Route("POST", "/skep/v1/rebalance/policy", routing.Scope.WRITE, set_policy),
    routing.Route("POST", "/skep/v1/rebalance", routing.Scope.WRITE, start_rebalance),
    routing.Route("GET", "/skep/v1/rebalance", routing.Scope.READ, show_rebalance),
)
