"""Tasks as rows of a table: names, history, resolved nodes and services. Shared by service ps and node ps."""

from collections.abc import Mapping, Sequence
from typing import Any

from skep.cli import app, show, text

ERROR_CHARS_MAX = 30  # in a table; --no-trunc shows all of it
HEADERS = {
    "ID": "ID",
    "Name": "NAME",
    "Image": "IMAGE",
    "Node": "NODE",
    "DesiredState": "DESIRED STATE",
    "CurrentState": "CURRENT STATE",
    "Error": "ERROR",
    "Ports": "PORTS",
}

Json = Mapping[str, Any]


def name_of(task: Json, services: Mapping[str, str]) -> str:
    """`web.3`, or `web.NODEID` for a global service; the service's ID where its name is not known.

    The places of a job are counted from 0, which a Slot of 0 says and none at all does not.
    """
    service = services.get(task.get("ServiceID", ""), task.get("ServiceID", ""))
    where = str(task["Slot"]) if task.get("Slot") is not None else task.get("NodeID", "")
    return f"{service}.{where}" if where else service


def reason_of(task: Json) -> str:
    """Why a task is not where it should be: its error, or what a waiting task waits for."""
    return str((task.get("Status") or {}).get("Err") or "")


def ordered(tasks: Sequence[Json], services: Mapping[str, str]) -> list[Json]:
    """By name, and the newest attempt of each name first."""
    newest_first = sorted(tasks, key=lambda task: str(task.get("CreatedAt", "")), reverse=True)
    return sorted(newest_first, key=lambda task: text.natural(name_of(task, services)))


def rows(
    tasks: Sequence[Json],
    *,
    services: Mapping[str, str],
    nodes: Mapping[str, str],
    now: float,
    trunc: bool,
    history: bool,
) -> list[dict[str, str]]:
    """One row a task. `history`: earlier attempts are drawn as branches under the newest of their name."""
    made: list[dict[str, str]] = []
    before = ""
    for task in ordered(tasks, services):
        name = name_of(task, services)
        status = task.get("Status") or {}
        error = reason_of(task)
        if error and trunc:
            error = text.shorten(error, ERROR_CHARS_MAX)
        identifier = str(task.get("ID", ""))
        image = str(((task.get("Spec") or {}).get("ContainerSpec") or {}).get("Image", ""))
        node_id = str(task.get("NodeID") or "")
        when = text.ago(status.get("Timestamp"), now=now)
        made.append({
            "ID": text.short_id(identifier) if trunc else identifier,
            "Name": rf"\_ {name}" if history and name == before else name,
            "Image": text.image(image, digest=not trunc),
            "Node": nodes.get(node_id, node_id),
            "DesiredState": str(task.get("DesiredState", "")).capitalize(),
            "CurrentState": f"{str(status.get('State', '')).capitalize()} {when}".rstrip(),
            "Error": f'"{error}"' if error else "",
            "Ports": text.ports((status.get("PortStatus") or {}).get("Ports") or []),
        })  # fmt: skip
        before = name
    return made


def hostnames(state: app.App) -> dict[str, str]:
    """Host names of all nodes by their ID."""
    nodes = state.client.get("/nodes") or []
    return {node["ID"]: (node.get("Description") or {}).get("Hostname") or node["ID"] for node in nodes}


def service_names(state: app.App) -> dict[str, str]:
    """Names of all services by their ID."""
    return {service["ID"]: service["Spec"]["Name"] for service in state.client.get("/services") or []}


def listing(
    state: app.App,
    tasks: Sequence[Json],
    *,
    resolve: bool,
    trunc: bool,
    quiet: bool,
    form: str | None,
) -> None:
    """Prints tasks as a table, or as --format and --quiet ask."""
    made = rows(
        tasks,
        services=service_names(state) if resolve else {},
        nodes=hostnames(state) if resolve else {},
        now=state.wall.now(),
        trunc=trunc and not quiet,
        history=form is None or form.startswith("table"),
    )
    indented = [{**row, "Name": row["Name"].replace("\\_", " \\_", 1)} for row in made]
    show.rows(state, indented, headers=HEADERS, default=list(HEADERS), form=form, quiet=quiet)
