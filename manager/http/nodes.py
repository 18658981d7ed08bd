"""Handlers for nodes."""

from manager.control import lookup
from manager.http import filters, messages, render, routing
from skep import errors, jsonmap, pb

FILTERS = ("name", "id", "label", "node.label", "role", "membership")


async def list_nodes(call: messages.Call) -> messages.Response:
    wanted = filters.parse(call, FILTERS)
    _check_words(wanted)
    manager = call.context.manager
    managers = manager.reachability()
    return messages.json_response(
        [render.node(row, managers) for row in manager.store.view().nodes if _matches(row, wanted)]
    )


def _check_words(wanted: filters.Filters) -> None:
    for key, allowed in (("role", ("manager", "worker")), ("membership", ("accepted", "pending"))):
        for value in wanted.get(key, ()):
            if value not in allowed:
                raise errors.Invalid(f"Invalid {key} filter: '{value}'")


def _matches(row: pb.Node, wanted: filters.Filters) -> bool:
    return (
        filters.prefix(wanted, "id", [row.id])
        and filters.prefix(wanted, "name", [row.spec.name, row.description.hostname])
        and filters.labels(wanted, "label", row.description.engine.labels)
        and filters.labels(wanted, "node.label", row.spec.labels)
        and filters.exact(wanted, "role", jsonmap.word_of(pb.NodeRole, row.spec.role))
        and filters.exact(wanted, "membership", "accepted")
    )


async def inspect_node(call: messages.Call) -> messages.Response:
    manager = call.context.manager
    managers = manager.reachability()
    return messages.json_response(render.node(lookup.node(manager.store.view(), call.params["id"]), managers))


async def update_node(call: messages.Call) -> messages.Response:
    version = call.version("node")
    spec = spec_of(call)
    await call.context.control.update_node(call.params["id"], spec, version=version, members=members(call))
    return messages.empty_response()


def spec_of(call: messages.Call) -> pb.NodeSpec:
    """The specification in the body. Raises Invalid."""
    data = call.json()
    spec = jsonmap.from_json(pb.NodeSpec, {} if data is None else data)
    # The whole specification is replaced: a role or availability that is left out must not become a default silently.
    given = messages.members(data)
    for name in ("Role", "Availability"):
        if not given.get(name.lower()):
            raise errors.Invalid(f'invalid {name}: ""')
    return spec


def members(call: messages.Call) -> dict[str, bool]:
    """The managers by node ID, and whether they answer."""
    return {
        node_id: standing.reachability == pb.REACHABILITY_REACHABLE
        for node_id, standing in call.context.manager.reachability().items()
    }


async def remove_node(call: messages.Call) -> messages.Response:
    managers = frozenset(call.context.manager.reachability())
    await call.context.control.remove_node(call.params["id"], force=call.flag("force"), members=managers)
    return messages.empty_response()


ROUTES = (
    routing.Route("GET", "/nodes", routing.Scope.READ, list_nodes),
    routing.Route("GET", "/nodes/{id}", routing.Scope.READ, inspect_node),
    routing.Route("POST", "/nodes/{id}/update", routing.Scope.WRITE, update_node),
    routing.Route("DELETE", "/nodes/{id}", routing.Scope.WRITE, remove_node),
)
