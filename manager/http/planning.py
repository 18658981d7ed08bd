"""Handlers for questions: what would a change do, what if nodes were lost or added, why is something as it is.

They change nothing. The working out happens on a copy of the state in a thread, so that the leader goes on leading.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from manager import loops
from manager.control import lookup, names
from manager.control import nodes as node_intents
from manager.control import services as intents
from manager.http import forecasts, messages, nodes, routing, services
from manager.planning import explaining, forecast, gaps, whatif
from manager.store import store, views
from skep import errors, ids, jsonmap, pb, stamps, tasknames

T = TypeVar("T")

AT_ONCE_MAX = 2  # plans being worked out; who comes later is asked to come again
LOSE_MAX = 1000  # nodes in one question

_seats = threading.BoundedSemaphore(AT_ONCE_MAX)


async def aside(work: Callable[[], T]) -> T:
    """Runs `work` in a thread. Raises Unavailable when too many ask at once."""
    if not _seats.acquire(blocking=False):
        raise errors.Unavailable("other plans are being worked out: try again in a moment")
    try:
        return await asyncio.to_thread(work)
    finally:
        _seats.release()


async def _forecast(
    call: messages.Call, base: store.Store, change: Sequence[pb.Op]
) -> tuple[forecast.Forecast, list[gaps.Gap]]:
    """What the change does to `base`, and what it drains only with a gap. `base` is nobody else's."""
    now = call.context.machine.clock.now()
    # The same question about the same state gets the same answer.
    rng = ids.seeded_rng(base.index)

    def work() -> tuple[forecast.Forecast, list[gaps.Gap]]:
        found = forecast.simulate(base, change, now=now, rng=rng, deciders=loops.default_deciders())
        return found, gaps_of(base, change, now)

    return await aside(work)


async def answer(call: messages.Call, change: Sequence[pb.Op]) -> messages.Response:
    """The plan of a change, as JSON."""
    found, lacking = await _forecast(call, call.context.manager.store.copy(), change)
    return messages.json_response(forecasts.plan(found, gaps=lacking))


def gaps_of(base: store.Store, change: Sequence[pb.Op], now: float) -> list[gaps.Gap]:
    """What the nodes that the change drains cannot give away without a gap. `base` is the caller's own, and changes."""
    before = base.view()
    drained: list[str] = []
    for op in change:
        if op.object.WhichOneof("kind") == "node":
            node = op.object.node
            old = before.nodes.get(node.id)
            drains = node.spec.availability == pb.NODE_AVAILABILITY_DRAIN
            if drains and old is not None and old.spec.availability != pb.NODE_AVAILABILITY_DRAIN:
                drained.append(node.id)
    if not drained:
        return []
    transaction = pb.Transaction(ops=change, at=stamps.stamp(now))
    (refusal,) = base.apply(base.index + 1, [transaction])
    if refusal is not None:
        raise refusal
    view = base.view()
    return gaps.of(view, [node for node in view.nodes if node.id in drained])


async def plan_update(call: messages.Call) -> messages.Response:
    """What an update with this specification would do; with `rollback`, a rollback (to=N: to that revision)."""
    view = call.context.manager.store.view()
    version = call.version("service")
    now = call.context.machine.clock.now()
    reference = call.params["id"]
    if call.flag("rollback"):
        to = services.revision_number(call, "to")
        return await answer(call, intents.rollback(view, reference, version=version, now=now, to=to))
    request = intents.Update(spec=services.spec_of(call), version=version, registry_auth=services.auth_of(call))
    _, revision_id = intents.new_ids(ids.seeded_rng(view.index))
    return await answer(call, intents.update(view, reference, request, revision_id=revision_id, now=now))


async def plan_creation(call: messages.Call) -> messages.Response:
    """What creating this service would do."""
    view = call.context.manager.store.view()
    rng = ids.seeded_rng(view.index)
    spec = services.spec_of(call)
    spec.name = spec.name or names.invent(rng)
    service_id, revision_id = intents.new_ids(rng)
    change = intents.create(
        view, spec, service_id=service_id, revision_id=revision_id, registry_auth=services.auth_of(call),
        now=call.context.machine.clock.now(),
    )  # fmt: skip
    return await answer(call, change)


async def plan_node(call: messages.Call) -> messages.Response:
    """What a node with this specification would mean for tasks: drained, labelled otherwise."""
    change = node_intents.update(
        call.context.manager.store.view(), call.params["id"], nodes.spec_of(call), version=call.version("node"),
        members=nodes.members(call), now=call.context.machine.clock.now(),
    )  # fmt: skip
    return await answer(call, change)


async def what_if(call: messages.Call) -> messages.Response:
    """{"Lose": [node, ..]} or {"Add": [{"Count", "NanoCPUs", "MemoryBytes", "Labels"}, ..]}, or both."""
    view = call.context.manager.store.view()
    data = call.json()
    if not isinstance(data, dict):
        raise errors.Invalid('expected {"Lose": [..]} or {"Add": [..]}')
    asked = {name: value for name, value in messages.members(data).items() if value}
    lost = [lookup.node(view, reference) for reference in _references(asked.get("lose") or [])]
    change = whatif.lose(lost) + whatif.add(view, _additions(asked.get("add") or []))
    if not asked.keys() & {"lose", "add"}:
        raise errors.Invalid('nothing to lose and nothing to add: give {"Lose": [node, ..]} or {"Add": [..]}')
    warning = whatif.quorum_lost(view, [node.id for node in lost])
    base = call.context.manager.store.copy()
    found, _ = await _forecast(call, base, change)
    if warning:
        found.impossible = True
        found.notes.insert(0, warning)
    return messages.json_response(forecasts.plan(found))


def _references(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value) or len(value) > LOSE_MAX:
        raise errors.Invalid(f"Lose: expected a list of up to {LOSE_MAX} names or IDs of nodes")
    return list(dict.fromkeys(value))


def _additions(value: object) -> list[whatif.Addition]:
    if not isinstance(value, list):
        raise errors.Invalid("Add: expected a list")
    found: list[whatif.Addition] = []
    for position, each in enumerate(value):
        path = f"Add[{position}]"
        if not isinstance(each, dict):
            raise errors.Invalid(f"{path}: expected an object")
        given = {name.replace("_", ""): item for name, item in messages.members(each).items()}
        count = given.pop("count", 1)
        labels = given.pop("labels", None) or {}
        size = jsonmap.from_json(pb.Resources, given, path=path)
        if not isinstance(count, int) or isinstance(count, bool):
            raise errors.Invalid(f"{path}.Count: expected an integer")
        if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
            raise errors.Invalid(f"{path}.Labels: expected an object of strings")
        found.append(whatif.Addition(count, size.nano_cpus, size.memory_bytes, labels))
    return found


async def explain(call: messages.Call) -> messages.Response:
    """Why a service, task or node is as it is; `why_not` asks about one node."""
    base = call.context.manager.store.copy()
    view = base.view()
    now = call.context.machine.clock.now()
    kind, reference = call.params["kind"], call.params["id"]
    why_not = lookup.node(view, call.text("why_not")) if call.text("why_not") else None

    def look() -> explaining.Explanation:
        explainer = explaining.Explainer(
            view, now=now, rng=ids.seeded_rng(base.index), deciders=loops.default_deciders()
        )
        match kind:
            case "service":
                return explainer.service(lookup.service(view, reference), why_not=why_not)
            case "task":
                return explainer.task(_task(view, reference), why_not=why_not)
            case "node":
                if why_not is not None:
                    raise errors.Invalid("why_not is about a service or a task: name the node there")
                return explainer.node(lookup.node(view, reference))
            case other:
                raise errors.NotFound(f"nothing to explain about a {other}: ask about a service, task or node")

    return messages.json_response(forecasts.explanation(await aside(look)))


def _task(view: views.View, reference: str) -> pb.Task:
    """The task by its ID or full name, or the wished one of `service.slot`."""
    try:
        return lookup.task(view, reference)
    except errors.NotFound:
        name, dot, place = reference.rpartition(".")
        for service in view.services.where("name", name.lower()) if dot else ():
            found = [
                task for task in view.tasks.where("service", service.id)
                if place == tasknames.place(task) or (not task.slot and place == _hostname(view, task.node_id))
            ]  # fmt: skip
            if found:
                return max(found, key=lambda task: (task.desired_state <= pb.TASK_STATE_COMPLETE, task.version.index))
        raise


def _hostname(view: views.View, node_id: str) -> str:
    node = view.nodes.get(node_id)
    return "" if node is None else node.description.hostname


ROUTES = (
    routing.Route("POST", "/skep/v1/services/plan", routing.Scope.READ, plan_creation),
    routing.Route("POST", "/skep/v1/services/{id}/plan", routing.Scope.READ, plan_update),
    routing.Route("POST", "/skep/v1/nodes/{id}/plan", routing.Scope.READ, plan_node),
    routing.Route("POST", "/skep/v1/what-if", routing.Scope.READ, what_if),
    routing.Route("GET", "/skep/v1/explain/{kind}/{id}", routing.Scope.READ, explain),
)
