"""Handlers for secrets and configs. The data of a secret is taken in and never given out."""

from collections.abc import Mapping

from manager.control import lookup
from manager.control import payloads as intents
from manager.http import filters, messages, render, routing
from manager.http.messages import Call, Response
from skep import jsonmap, pb

FILTERS = ("name", "names", "id", "label")


def _matches(row: intents.Payload, wanted: Mapping[str, list[str]]) -> bool:
    return (
        filters.prefix(wanted, "id", [row.id])
        and filters.prefix(wanted, "name", [row.name])
        and filters.exact(wanted, "names", row.name)
        and filters.labels(wanted, "label", row.spec.labels)
    )


async def list_secrets(call: Call) -> Response:
    wanted = filters.parse(call, FILTERS)
    view = call.context.manager.store.view()
    return messages.json_response([render.secret(row) for row in view.secrets if _matches(row, wanted)])


async def inspect_secret(call: Call) -> Response:
    view = call.context.manager.store.view()
    return messages.json_response(render.secret(lookup.secret(view, call.params["id"])))


async def create_secret(call: Call) -> Response:
    object_id = await call.context.control.create_payload("secret", _secret_spec(call))
    return messages.json_response({"ID": object_id}, status=201)


async def update_secret(call: Call) -> Response:
    spec, version = _secret_spec(call), call.version("secret")
    await call.context.control.update_payload("secret", call.params["id"], spec, version=version)
    return messages.empty_response()


async def remove_secret(call: Call) -> Response:
    await call.context.control.remove_payload("secret", call.params["id"])
    return messages.empty_response(status=204)


async def list_configs(call: Call) -> Response:
    wanted = filters.parse(call, FILTERS)
    view = call.context.manager.store.view()
    return messages.json_response([jsonmap.to_json(row) for row in view.configs if _matches(row, wanted)])


async def inspect_config(call: Call) -> Response:
    view = call.context.manager.store.view()
    return messages.json_response(jsonmap.to_json(lookup.config(view, call.params["id"])))


async def create_config(call: Call) -> Response:
    object_id = await call.context.control.create_payload("config", _config_spec(call))
    return messages.json_response({"ID": object_id}, status=201)


async def update_config(call: Call) -> Response:
    spec, version = _config_spec(call), call.version("config")
    await call.context.control.update_payload("config", call.params["id"], spec, version=version)
    return messages.empty_response()


async def remove_config(call: Call) -> Response:
    await call.context.control.remove_payload("config", call.params["id"])
    return messages.empty_response(status=204)


def _secret_spec(call: Call) -> pb.SecretSpec:
    return jsonmap.from_json(pb.SecretSpec, call.json() or {})


def _config_spec(call: Call) -> pb.ConfigSpec:
    return jsonmap.from_json(pb.ConfigSpec, call.json() or {})


_READ, _WRITE = routing.Scope.READ, routing.Scope.WRITE
ROUTES = (
    routing.Route("GET", "/secrets", _READ, list_secrets),
    routing.Route("POST", "/secrets/create", _WRITE, create_secret),
    routing.Route("GET", "/secrets/{id}", _READ, inspect_secret),
    routing.Route("POST", "/secrets/{id}/update", _WRITE, update_secret),
    routing.Route("DELETE", "/secrets/{id}", _WRITE, remove_secret),
    routing.Route("GET", "/configs", _READ, list_configs),
    routing.Route("POST", "/configs/create", _WRITE, create_config),
    routing.Route("GET", "/configs/{id}", _READ, inspect_config),
    routing.Route("POST", "/configs/{id}/update", _WRITE, update_config),
    routing.Route("DELETE", "/configs/{id}", _WRITE, remove_config),
)
