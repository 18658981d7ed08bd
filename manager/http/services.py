"""Handlers for services, and their revisions in skep's own namespace."""

from manager.control import lookup
from manager.control import services as intents
from manager.http import filters, forecasts, messages, render, routing
from manager.planning import fields
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
    service_id = await call.context.control.create_service(spec_of(call), registry_auth=auth_of(call))
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
    request = intents.Update(spec=spec_of(call), version=version, registry_auth=auth_of(call), auth_from=auth_from)
    await call.context.control.update_service(reference, request)
    return messages.json_response({"Warnings": None})


async def remove_service(call: messages.Call) -> messages.Response:
    await call.context.control.remove_service(call.params["id"])
    return messages.empty_response()


async def list_revisions(call: messages.Call) -> messages.Response:
    """Every version of a service that is still kept, oldest first: its standing, and what it changed."""
    view = call.context.manager.store.view()
    row = lookup.service(view, call.params["id"])
    shown = []
    before: pb.Revision | None = None
    for revision in sorted(view.revisions.where("service", row.id), key=lambda one: one.number):
        item = jsonmap.to_json(revision)
        item["Current"] = revision.id == row.revision_id
        item["Previous"] = revision.id == row.previous_revision_id
        item["Tasks"] = view.tasks.count("revision", revision.id)
        # The oldest one that is kept may have had others before it: what it changed is not known any more.
        if before is not None:
            item["Changes"] = forecasts.fields(fields.difference(before.spec, revision.spec))
        before = revision
        shown.append(item)
    return messages.json_response(shown)


async def rollback_to(call: messages.Call) -> messages.Response:
    """Back to any revision that is kept; without `to`, to the previous one."""
    version = call.version("service")
    await call.context.control.rollback_service(call.params["id"], version=version, to=revision_number(call, "to"))
    return messages.json_response({"Warnings": None})


def revision_number(call: messages.Call, name: str) -> int | None:
    """A revision's number in the query; None when it was not given. Raises Invalid."""
    text = call.text(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**64):
        raise errors.Invalid(f"{name}: expected the number of a revision, got {text!r}")
    return int(text)


def spec_of(call: messages.Call) -> pb.ServiceSpec:
    """The specification in the body. Raises Invalid."""
    data = call.json()
    spec = jsonmap.from_json(pb.ServiceSpec, {} if data is None else data)
    if not spec.task.HasField("container"):
        raise errors.Invalid("mismatched Runtime and *Spec fields")
    return spec


def auth_of(call: messages.Call) -> str:
    """The credentials for the registry; empty for none."""
    return call.request.headers.get("x-registry-auth", "")


ROUTES = (
    routing.Route("GET", "/services", routing.Scope.READ, list_services),
    routing.Route("POST", "/services/create", routing.Scope.WRITE, create_service),
    routing.Route("GET", "/services/{id}", routing.Scope.READ, inspect_service),
    routing.Route("POST", "/services/{id}/update", routing.Scope.WRITE, update_service),
    routing.Route("DELETE", "/services/{id}", routing.Scope.WRITE, remove_service),
    routing.Route("GET", "/skep/v1/services/{id}/revisions", routing.Scope.READ, list_revisions),
    routing.Route("POST", "/skep/v1/services/{id}/rollback", routing.Scope.WRITE, rollback_to),
)
