"""Handlers for services, and their revisions in skep's own namespace."""

from manager.control import lookup
from manager.control import services as intents
from manager.http import filters, messages, render, routing
from manager.store import views
from skep import errors, jsonmap, pb

FILTERS = ("name", "id", "label", "mode", "runtime")


async def list_services(call: messages.Call) -> messages.Response:
    wanted = filters.parse(call, FILTERS)
    view = call.context.manager.store.view()
    with_status = call.flag("status")
    return messages.json_response(
        [render.service(view, row, with_status=with_status) for row in view.services if _matches(view, row, wanted)]
    )


def _matches(view: views.View, row: pb.Service, wanted: filters.Filters) -> bool:
    if not (filters.prefix(wanted, "id", [row.id]) and filters.prefix(wanted, "name", [row.name])):
        return False
    spec = view.spec(row)
    mode = {"replicated_job": "replicated-job", "global_job": "global-job"}
    kind = str(spec.mode.WhichOneof("mode"))
    return (
        filters.labels(wanted, "label", spec.labels)
        and filters.exact(wanted, "mode", mode.get(kind, kind))
        and filters.exact(wanted, "runtime", spec.task.runtime)
    )


async def inspect_service(call: messages.Call) -> messages.Response:
    view = call.context.manager.store.view()
    row = lookup.service(view, call.params["id"])
    return messages.json_response(render.service(view, row, with_defaults=call.flag("insertDefaults")))


async def create_service(call: messages.Call) -> messages.Response:
    service_id = await call.context.control.create_service(_spec(call), registry_auth=_auth(call))
    return messages.json_response({"ID": service_id, "Warnings": None}, status=201)


async def update_service(call: messages.Call) -> messages.Response:
    version = call.version("service")
    reference = call.params["id"]
    rollback = call.text("rollback")
    if rollback == "previous":
        await call.context.control.rollback_service(reference, version=version)
        return messages.json_response({"Warnings": None})
    if rollback not in ("", "none"):
        raise errors.Invalid(f"unrecognized rollback option {rollback}")
    auth_from: intents.AuthFrom
    match call.text("registryAuthFrom"):
        case "" | "spec":
            auth_from = "spec"
        case "previous-spec":
            auth_from = "previous-spec"
        case other:
            raise errors.Invalid(f"registryAuthFrom: expected spec or previous-spec, got {other!r}")
    request = intents.Update(spec=_spec(call), version=version, registry_auth=_auth(call), auth_from=auth_from)
    await call.context.control.update_service(reference, request)
    return messages.json_response({"Warnings": None})


async def remove_service(call: messages.Call) -> messages.Response:
    await call.context.control.remove_service(call.params["id"])
    return messages.empty_response()


async def list_revisions(call: messages.Call) -> messages.Response:
    """Every version of a service that is still kept, oldest first, with a word about its standing."""
    view = call.context.manager.store.view()
    row = lookup.service(view, call.params["id"])
    shown = []
    for revision in sorted(view.revisions.where("service", row.id), key=lambda one: one.number):
        item = jsonmap.to_json(revision)
        item["Current"] = revision.id == row.revision_id
        item["Previous"] = revision.id == row.previous_revision_id
        item["Tasks"] = view.tasks.count("revision", revision.id)
        shown.append(item)
    return messages.json_response(shown)


def _spec(call: messages.Call) -> pb.ServiceSpec:
    data = call.json()
    spec = jsonmap.from_json(pb.ServiceSpec, {} if data is None else data)
    if not spec.task.HasField("container"):
        raise errors.Invalid("mismatched Runtime and *Spec fields")
    return spec


def _auth(call: messages.Call) -> str:
    return call.request.headers.get("x-registry-auth", "")


ROUTES = (
    routing.Route("GET", "/services", routing.Scope.READ, list_services),
    routing.Route("POST", "/services/create", routing.Scope.WRITE, create_service),
    routing.Route("GET", "/services/{id}", routing.Scope.READ, inspect_service),
    routing.Route("POST", "/services/{id}/update", routing.Scope.WRITE, update_service),
    routing.Route("DELETE", "/services/{id}", routing.Scope.WRITE, remove_service),
    routing.Route("GET", "/skep/v1/services/{id}/revisions", routing.Scope.READ, list_revisions),
)
