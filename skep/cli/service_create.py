"""service create."""

from typing import Any

import click

from skep import errors
from skep.cli import app, flags, forecast, lazy, planning, progress, registry, services, specs

EXAMPLES = (
    "skep service create --name web --replicas 3 --publish 8080:80 nginx:1.27",
    "skep service create --name web --publish mode=host,target=80,published=8080 nginx:1.27",
    "skep service create --name agent --mode global --mount type=bind,source=/var/log,target=/logs,ro agent:2 -v",
    "skep service create --name api --constraint node.labels.disk==ssd --reserve-memory 512m --limit-cpu 0.5 \\",
    "    --update-parallelism 2 --update-order start-first --update-failure-action rollback api:1",
)


@click.command(cls=lazy.Command, examples=EXAMPLES, context_settings={"allow_interspersed_args": False})
@flags.CREATE
@click.argument("image", metavar="IMAGE")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND] [ARG...]")
@app.pass_app
def create(state: app.App, /, *, image: str, arguments: tuple[str, ...], **given: Any) -> None:
    """Create a new service, and wait until its tasks run.

    Prints the service's ID. The exit code is 0 only when all tasks run and stay up; with --detach, when the service
    was accepted. With --plan nothing is created: it is shown where the tasks would go, and the exit code is 2, or 3
    when some could not be placed.
    """
    planned = planning.wanted(given)
    spec = specs.create(given, image=image, arguments=arguments)
    container = spec["TaskTemplate"]["ContainerSpec"]
    for kind in ("Secret", "Config"):
        references = services.resolve_references(state, given[kind.lower()], kind=kind)
        if references:
            container[f"{kind}s"] = references
    headers = registry.auth_header(image) if given["with_registry_auth"] else None
    if planned:
        plan = state.client.request("POST", "/skep/v1/services/plan", body=spec, headers=headers).body
        forecast.tell(state, [plan], as_json=bool(given["json"]))
    reply = _post(state, spec, headers)
    state.say(reply["ID"])
    for warning in reply.get("Warnings") or []:
        state.warn(warning)
    if not given["detach"]:
        progress.wait(state, reply["ID"], quiet=bool(given["quiet"]), timeout_ns=given["timeout"])


def _post(state: app.App, spec: dict[str, Any], headers: dict[str, str] | None) -> Any:
    try:
        return state.client.request("POST", "/services/create", body=spec, headers=headers).body
    except errors.AlreadyExists:
        # An answer may have got lost with the old leader: then the service in the way of the second attempt is ours.
        if state.client.attempts == 1 or not spec["Name"]:
            raise
        service = services.find(state, spec["Name"])
        if service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] != spec["TaskTemplate"]["ContainerSpec"]["Image"]:
            raise
        return {"ID": service["ID"]}
