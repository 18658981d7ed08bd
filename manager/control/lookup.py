"""From what a user typed to the one object meant: full ID, then full name, then the beginning of an ID. Pure."""

from collections.abc import Iterable
from typing import TypeVar

from manager.store import tables, views
from skep import errors, pb, stamps, tasknames

R = TypeVar("R", bound=tables.Row)


def service(view: views.View, reference: str) -> pb.Service:
    """Raises NotFound, or Invalid when several services are meant."""
    named = view.services.where("name", reference.lower())
    return _one(view.services, reference, named, "service")


def node(view: views.View, reference: str) -> pb.Node:
    """Nodes are named by their specification or, without a name there, by their hostname."""
    named = [row for row in view.nodes if reference in (row.spec.name, row.description.hostname)]
    return _one(view.nodes, reference, named, "node")


def task(view: views.View, reference: str) -> pb.Task:
    """Tasks are named service.slot.id."""
    exact = view.tasks.get(reference.rpartition(".")[2])
    named = [exact] if exact is not None and task_name(exact) == reference else []
    return _one(view.tasks, reference, named, "task")


def entered_task(view: views.View, reference: str) -> pb.Task:
    """As `task`, or `service.slot` (`service.node` for a global service), or a service with a single running task.

    Of the tasks that were in the slot it is the one that runs, else the newest. Raises NotFound, or Invalid when
    several tasks are meant.
    """
    for name, where in ((reference, ""), reference.rpartition(".")[::2]):
        owner = next(iter(view.services.where("name", name.lower())), None) if name else None
        if owner is None:
            continue
        tasks = [row for row in view.tasks.where("service", owner.id) if not where or _is_at(view, row, where)]
        running = [row for row in tasks if row.status.state == pb.TASK_STATE_RUNNING]
        if len(running) > 1 and not where:
            names = ", ".join(sorted(f"{name}.{tasknames.place(row)}" for row in running)[:5])
            raise errors.Invalid(f"service {name} has {len(running)} running tasks: name one of {names}")
        if running or tasks:
            return max(running or tasks, key=lambda row: (row.status.state > 0, stamps.seconds(row.created_at)))
        if where:
            break
        raise errors.NotFound(f"service {name} has no tasks")
    try:
        return task(view, reference)
    except errors.NotFound:
        raise errors.NotFound(f"no task {reference}: name it as service.slot, or by its ID") from None


def _is_at(view: views.View, row: pb.Task, where: str) -> bool:
    if row.slot:
        return tasknames.place(row) == where
    node_row = view.nodes.get(row.node_id)
    return where in (row.node_id, node_row.description.hostname if node_row is not None else "")


def secret(view: views.View, reference: str) -> pb.Secret:
    """Raises NotFound, or Invalid when several secrets are meant."""
    return _one(view.secrets, reference, view.secrets.where("name", reference.lower()), "secret")


def config(view: views.View, reference: str) -> pb.Config:
    """Raises NotFound, or Invalid when several configs are meant."""
    return _one(view.configs, reference, view.configs.where("name", reference.lower()), "config")


def task_name(row: pb.Task) -> str:
    """The task's name as users see it."""
    return tasknames.full(row)


def _one(table: views.TableView[R], reference: str, named: Iterable[R], kind: str) -> R:
    exact = table.get(reference) if reference else None
    if exact is not None:
        return exact
    found = list(named) if reference else []
    if not found and reference:
        found = [row for row in table if row.id.startswith(reference)]
    if not found:
        raise errors.NotFound(f"{kind} {reference} not found")
    if len(found) > 1:
        raise errors.Invalid(f"{kind} {reference} is ambiguous ({len(found)} matches found)")
    return found[0]
