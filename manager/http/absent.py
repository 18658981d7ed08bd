"""What Docker's clients ask for and skep does not have: empty lists, or errors that say so.

Bare `docker inspect X` probes all of these before it comes to services and tasks, and must get a 404 each time.
"""

from typing import Any

from manager.http import messages, routing
from skep import errors

_LOCAL = routing.Scope.LOCAL


def _always(value: Any) -> routing.Handler:
    async def answer(_call: messages.Call) -> messages.Response:
        return messages.json_response(value)

    return answer


def _missing(text: str) -> routing.Handler:
    async def answer(call: messages.Call) -> messages.Response:
        raise errors.NotFound(text.format(call.params["id"]))

    return answer


def _refused(what: str) -> routing.Handler:
    async def answer(_call: messages.Call) -> messages.Response:
        raise errors.Unimplemented(f"this version of skep does not implement {what}")

    return answer


ROUTES = (
    routing.Route("GET", "/containers/json", _LOCAL, _always([])),
    routing.Route("GET", "/containers/{id}/json", _LOCAL, _missing("No such container: {}")),
    routing.Route("GET", "/images/json", _LOCAL, _always([])),
    routing.Route("GET", "/images/{id...}/json", _LOCAL, _missing("No such image: {}")),
    routing.Route("GET", "/volumes", _LOCAL, _always({"Volumes": [], "Warnings": None})),
    routing.Route("GET", "/volumes/{id}", _LOCAL, _missing("get {}: no such volume")),
    routing.Route("GET", "/plugins", _LOCAL, _always([])),
    routing.Route("GET", "/plugins/{id...}/json", _LOCAL, _missing('plugin "{}" not found')),
    routing.Route(
        "GET",
        "/system/df",
        _LOCAL,
        _always({"LayersSize": 0, "Images": [], "Containers": [], "Volumes": [], "BuildCache": []}),
    ),
    routing.Route("GET", "/networks", _LOCAL, _always([])),
    routing.Route("GET", "/networks/{id}", _LOCAL, _missing("network {} not found")),
    routing.Route("POST", "/networks/create", _LOCAL, _refused("networks")),
    routing.Route("DELETE", "/networks/{id}", _LOCAL, _missing("network {} not found")),
    routing.Route("POST", "/volumes/create", _LOCAL, _refused("volumes")),
    # The command then says that it could not record the image's digest, and goes on.
    routing.Route("GET", "/distribution/{id...}/json", _LOCAL, _refused("asking a registry for an image's digest")),
    routing.Route("POST", "/auth", _LOCAL, _refused("logging in to a registry")),
    routing.Route("GET", "/events", _LOCAL, _refused("the stream of events")),
)
