"""Handlers for tasks."""

from collections.abc import Iterable

from manager.control import lookup
from manager.http import filters, messages, render, routing
from manager.store import views
from skep import errors, jsonmap, pb

FILTERS = ("name", "id", "label", "service", "node", "desired-state", "runtime", "_up-to-date")


async def list_tasks(call: messages.Call) -> messages.Response:
    wanted = dict(filters.parse(call, FILTERS))
    view = call.context.manager.store.view()
    states = jsonmap.words_of(pb.TaskState)
    for word in wanted.get("desired-state", ()):
        if word not in states:
            raise errors.Invalid(f"Invalid desired-state filter: '{word}'")
    renderer = render.Tasks(view, now=call.context.machine.clock.now())
    only_current = any(value.lower() not in ("false", "0") for value in wanted.get("_up-to-date", ()))
    return messages.json_response(
        [
            renderer.render(row)
            for row in _candidates(view, wanted)
            if _matches(view, row, wanted) and (not only_current or renderer.up_to_date(row))
        ]
    )


def _candidates(view: views.View, wanted: dict[str, list[str]]) -> Iterable[pb.Task]:
    """The tasks worth looking at. Replaces references to services and nodes by IDs; an unknown one raises NotFound."""
    for key, find in (("service", lookup.service), ("node", lookup.node)):
        if key in wanted:
            wanted[key] = list(dict.fromkeys(find(view, reference).id for reference in wanted[key]))
    for key in ("service", "node"):
        if key in wanted:
            return [row for owner in wanted[key] for row in view.tasks.where(key, owner)]
    return view.tasks


def _matches(view: views.View, row: pb.Task, wanted: filters.Filters) -> bool:
    return (
        filters.exact(wanted, "service", row.service_id)
        and filters.exact(wanted, "node", row.node_id)
        and filters.exact(wanted, "desired-state", jsonmap.word_of(pb.TaskState, row.desired_state))
        and filters.prefix(wanted, "id", [row.id])
        and filters.prefix(wanted, "name", [lookup.task_name(row)])
        and ("label" not in wanted or filters.labels(wanted, "label", _service_labels(view, row)))
        and ("runtime" not in wanted or filters.exact(wanted, "runtime", "container"))
    )


def _service_labels(view: views.View, row: pb.Task) -> dict[str, str]:
    """Docker filters tasks by the labels of their service; this is what `stack ps` relies on."""
    service = view.services.get(row.service_id)
    spec = view.spec(service) if service is not None else view.revision(row.revision_id).spec
    return dict(spec.labels)


async def inspect_task(call: messages.Call) -> messages.Response:
    view = call.context.manager.store.view()
    row = lookup.task(view, call.params["id"])
    shown = render.Tasks(view, now=call.context.machine.clock.now()).render(row)
    if call.flag("lastOutput"):  # ours: Docker's clients see no more than Docker shows
        shown["Status"]["LastOutput"] = row.status.last_output
    return messages.json_response(shown)


ROUTES = (
    routing.Route("GET", "/tasks", routing.Scope.READ, list_tasks),
    routing.Route("GET", "/tasks/{id}", routing.Scope.READ, inspect_task),
)
