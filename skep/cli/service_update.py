"""service update, scale and rm: everything that changes or removes a service but for the way back."""

from collections.abc import Callable, Sequence
from typing import Any

import click
from click import core

from skep import client, errors
from skep.cli import (
    app,
    changes,
    completing,
    flags,
    forecast,
    lazy,
    planning,
    progress,
    registry,
    services,
    show,
    values,
)

ROLLBACK_COMPANIONS = ("rollback", "plan", "json", "detach", "quiet", "timeout")  # flags that go with --rollback


@click.command(
    cls=lazy.Command,
    examples=(
        "skep service update --image nginx:1.28 web",
        "skep service update --update-parallelism 2 --update-failure-action rollback --image app:2 web",
        "skep service update --env-add MODE=fast --constraint-add node.labels.disk==ssd web",
        "skep service update --publish-rm 80 --publish-add 8081:80 web",
        "skep service update --force web",
        "skep service update --plan --image nginx:1.28 web",
    ),
)
@flags.UPDATE
@click.argument("service", shell_complete=completing.services)
@app.pass_app
def update(state: app.App, /, *, service: str, **given: Any) -> None:
    """Change a service, and wait until the change has come about.

    Only what the flags name is changed. The exit code is 1 when the update paused or was rolled back. With --plan
    nothing is changed: what would happen is shown, and the exit code is 0 for nothing, 2 for changes, 3 when some
    tasks could not be placed.
    """
    planned = planning.wanted(given)
    if given["rollback"]:
        _alone(click.get_current_context())
        _roll_back(state, service, given)
        return
    task_image = given["image"]
    network_ids = _network_ids(state, given)
    query: dict[str, str] = {}
    headers: dict[str, str] = {}

    def make(spec: dict[str, Any]) -> dict[str, Any]:
        changed = changes.update(spec, given, network_ids=network_ids)
        _references(state, changed, given)
        return changed

    if given["with_registry_auth"]:
        current = services.find(state, service)["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        headers = registry.auth_header(task_image or current)
    if not headers:
        query["registryAuthFrom"] = "spec"
    if planned:
        plan = services.plan(state, service, make, headers=headers)
        forecast.tell(state, [plan], as_json=bool(given["json"]))
    before = services.change(state, service, make, query=query, headers=headers)
    _follow(state, before, given, rollback=False)


def _alone(context: click.Context) -> None:
    for name in context.params:
        given = context.get_parameter_source(name) in (
            core.ParameterSource.COMMANDLINE,
            core.ParameterSource.ENVIRONMENT,
        )
        if given and name not in (*ROLLBACK_COMPANIONS, "service"):
            raise click.UsageError("other flags may not be combined with --rollback; drop them")


def _network_ids(state: app.App, given: dict[str, Any]) -> dict[str, str]:
    """IDs of the networks that the flags name. A name that nobody knows is left for the server to judge."""
    names = [*given["network_rm"], *(each["Target"] for each in given["network_add"])]
    ids: dict[str, str] = {}
    for name in names:
        try:
            ids[name] = state.client.get(f"/networks/{client.quote(name)}", {"scope": "swarm"})["Id"]
        except errors.NotFound:
            continue
    return ids


def _references(state: app.App, spec: dict[str, Any], given: dict[str, Any]) -> None:
    container = spec["TaskTemplate"]["ContainerSpec"]
    for kind in ("Secret", "Config"):
        flag = kind.lower()
        add = services.resolve_references(state, given[f"{flag}_add"], kind=kind)
        remove = given[f"{flag}_rm"]
        if add or remove:
            replaced = {each[f"{kind}Name"] for each in add}
            kept = [each for each in container.get(f"{kind}s") or ()
                    if each[f"{kind}Name"] not in remove and each[f"{kind}Name"] not in replaced]  # fmt: skip
            container[f"{kind}s"] = [*kept, *add]


def _follow(state: app.App, before: dict[str, Any], given: dict[str, Any], *, rollback: bool) -> None:
    state.say(before["Spec"]["Name"])
    if given["detach"]:
        return
    progress.wait(
        state,
        before["ID"],
        before=before.get("UpdateStatus"),
        rollback=rollback,
        quiet=bool(given["quiet"]),
        timeout_ns=given["timeout"],
    )


def _roll_back(state: app.App, reference: str, given: dict[str, Any]) -> None:
    if planning.wanted(given):
        plan = services.plan(state, reference, query={"rollback": "previous"})
        forecast.tell(state, [plan], as_json=bool(given["json"]))
    before = services.roll_back(state, reference)
    _follow(state, before, given, rollback=True)


@click.command(
    cls=lazy.Command,
    examples=(
        "skep service scale web=6",
        "skep service scale --detach web=6 api=3",
        "skep service scale --plan web=60",
    ),
)
@flags.together((*flags.PLANNING, *flags.WAITING))
@click.argument("targets", nargs=-1, required=True, metavar="SERVICE=REPLICAS...", shell_complete=completing.scale)
@app.pass_app
def scale(state: app.App, /, *, targets: tuple[str, ...], **given: Any) -> None:
    """Change how many tasks services have, and wait until it has come about.

    With --plan each service is looked at by itself, and nothing is changed.
    """
    wanted = [_target(text) for text in targets]
    if planning.wanted(given):
        plans = [services.plan(state, name, _scaling(replicas)) for name, replicas in wanted]
        forecast.tell(state, plans, as_json=bool(given["json"]))
    problems: list[str] = []
    scaled: list[dict[str, Any]] = []
    for name, replicas in wanted:
        try:
            before = services.change(state, name, _scaling(replicas))
        except errors.SkepError as problem:
            problems.append(f"{name}: {problem.message}")
        else:
            scaled.append(before)
            if not given["quiet"]:
                state.say(f"{name} scaled to {replicas}")
    for before in scaled:
        if given["detach"]:
            continue
        try:
            progress.wait(
                state,
                before["ID"],
                before=before.get("UpdateStatus"),
                quiet=bool(given["quiet"]),
                timeout_ns=given["timeout"],
            )
        except errors.SkepError as problem:
            problems.append(problem.message)
    show.fail_with(state, problems)


def _scaling(replicas: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda spec: changes.scale(spec, replicas)


def _target(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not equals or not name:
        raise click.UsageError(f"{text!r} names no number of tasks; write SERVICE=REPLICAS, such as web=6")
    try:
        return name, values.count(number)
    except ValueError as problem:
        raise click.UsageError(f"{text!r}: the number of tasks {problem}") from None


@click.command(cls=lazy.Command, examples=("skep service rm web", "skep service rm web api"))
@click.argument("references", nargs=-1, required=True, metavar="SERVICE...", shell_complete=completing.services)
@app.pass_app
def rm(state: app.App, *, references: Sequence[str]) -> None:
    """Remove services; their tasks are stopped."""
    problems: list[str] = []
    for reference in references:
        try:
            state.client.request("DELETE", f"/services/{client.quote(reference)}")
        except errors.NotFound:
            # When the first attempt's answer got lost with the old leader, the service is gone because of us.
            if state.client.attempts > 1:
                state.say(reference)
            else:
                problems.append(f"no such service: {reference}; 'skep service ls' shows them")
        except errors.SkepError as problem:
            problems.append(f"{reference}: {problem.message}")
        else:
            state.say(reference)
    show.fail_with(state, problems)
