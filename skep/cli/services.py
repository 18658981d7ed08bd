"""What the verbs of `service` share: finding services, resolving references, changing a specification."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skep import client, errors
from skep.cli import app

Json = dict[str, Any]

CONFLICT_TRIES = 3  # somebody else may change the service between our reading and writing


def find(state: app.App, reference: str, *, defaults: bool = False) -> Json:
    """The service with that name or ID. Raises NotFound."""
    query = {"insertDefaults": "true"} if defaults else None
    try:
        found: Json = state.client.get(f"/services/{client.quote(reference)}", query)
    except errors.NotFound:
        raise errors.NotFound(f"no such service: {reference}; 'skep service ls' shows them") from None
    return found


def change(
    state: app.App,
    reference: str,
    make: Callable[[Json], Json],
    *,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Json:
    """Reads a service, writes what `make` makes of its specification, and returns the service as it was before.

    When somebody else was faster it reads and decides again.
    """
    service, reply = _versioned(state, reference, "/services/{}/update", make, query=query, headers=headers)
    for warning in (reply or {}).get("Warnings") or []:
        state.warn(warning)
    return service


def plan(
    state: app.App,
    reference: str,
    make: Callable[[Json], Json] = lambda spec: spec,
    *,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Json:
    """What `change` would do; nothing is changed."""
    _, reply = _versioned(state, reference, "/skep/v1/services/{}/plan", make, query=query, headers=headers)
    found: Json = reply
    return found


def roll_back(state: app.App, reference: str, *, to: int | None = None) -> Json:
    """Goes back to revision `to`, or to the previous one; returns the service as it was before."""
    if to is None:
        return change(state, reference, lambda spec: spec, query={"rollback": "previous"})
    service, _ = _versioned(state, reference, "/skep/v1/services/{}/rollback", lambda _: None, query={"to": str(to)})
    return service


def _versioned(
    state: app.App,
    reference: str,
    path: str,
    make: Callable[[Json], Json | None],
    *,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[Json, Any]:
    """Reads a service and posts what `make` makes of its specification, again when somebody else was faster.

    Returns the service as it was read, and the reply.
    """
    for left in reversed(range(CONFLICT_TRIES)):
        service = find(state, reference)
        target = path.format(client.quote(service["ID"]))
        versioned = {"version": str(service["Version"]["Index"]), **(query or {})}
        try:
            reply = state.client.request("POST", target, query=versioned, body=make(service["Spec"]), headers=headers)
        except errors.Conflict:
            if not left:
                raise
            continue
        return service, reply.body
    raise errors.Bug("unreachable")


def resolve_references(state: app.App, given: Sequence[Json], *, kind: str) -> list[Json]:
    """--secret or --config flags with the IDs that the API wants. `kind`: Secret or Config. Raises NotFound."""
    if not given:
        return []
    flag = kind.lower()
    names = [each["source"] for each in given]
    found = state.client.get(f"/{flag}s", client.filters_of({"name": names})) or []
    ids = {each["Spec"]["Name"]: each["ID"] for each in found}
    made: list[Json] = []
    targets: set[str] = set()
    for each in given:
        name = each["source"]
        if name not in ids:
            raise errors.NotFound(f"{flag} not found: {name}; create it first")
        if each["File"]["Name"] in targets:
            raise errors.Invalid(f"duplicate {flag} target for {name} not allowed: {each['File']['Name']}")
        targets.add(each["File"]["Name"])
        made.append({f"{kind}ID": ids[name], f"{kind}Name": name, "File": each["File"]})
    return made
