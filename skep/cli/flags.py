"""The flags of service create and service update, under Docker's names. Declares; interprets nothing."""

from collections.abc import Callable, Iterable
from typing import Any

import click

from skep.cli import parts, values

Decorated = Callable[..., Any]
Decorator = Callable[[Decorated], Decorated]


def together(options: Iterable[Decorator]) -> Decorator:
    """One decorator of many; --help shows them in this order."""
    listed = list(options)

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(listed):
            command = option(command)
        return command

    return decorate


def value(name: str, kind: click.ParamType[Any], help_line: str, *short: str) -> Decorator:
    """A flag with one value, None when it was not given."""
    return click.option(*short, name, type=kind, default=None, help=help_line)


def switch(name: str, help_line: str, *short: str) -> Decorator:
    """A flag without a value; None when it was not given, and False for --name=false."""
    return click.option(*short, name, is_flag=True, default=None, help=help_line)


def many(name: str, kind: click.ParamType[Any], help_line: str, *short: str) -> Decorator:
    """A flag that may be repeated."""
    return click.option(*short, name, type=kind, multiple=True, help=help_line)


def choice(name: str, allowed: tuple[str, ...], help_line: str) -> Decorator:
    """A flag with one word out of a few."""
    return click.option(name, type=click.Choice(allowed), default=None, help=help_line)


DETACH = switch("--detach", "Return at once; do not wait until the service has converged.", "-d")
QUIET = switch("--quiet", "Show no progress.", "-q")
TIMEOUT = value("--timeout", values.DURATION, "Give up waiting after this time; the service itself goes on.")
WAITING = (DETACH, QUIET, TIMEOUT)
JSON = switch("--json", "Print JSON.")
PLANNING = (
    switch("--plan", "Show what would happen, and change nothing."),
    switch("--json", "Print the plan as JSON."),
)

PROCESS = (
    value("--entrypoint", parts.WORDS, "Replace the image's entrypoint."),
    value("--workdir", click.STRING, "Working directory inside the container.", "-w"),
    value("--user", click.STRING, "User, or user:group.", "-u"),
    value("--hostname", click.STRING, "Host name inside the container."),
    value("--stop-signal", click.STRING, "Signal that stops the task.  [default: SIGTERM]"),
    value("--stop-grace-period", values.DURATION, "Time to stop before a task is killed.  [default: 10s]"),
    switch("--read-only", "Mount the root file system read-only."),
    switch("--init", "Run an init as first process: it forwards signals and reaps children."),
    switch("--tty", "Give the task a terminal.", "-t"),
    many("--cap-add", click.STRING, "Add a capability."),
    many("--cap-drop", click.STRING, "Drop a capability."),
    value("--oom-score-adj", values.WHOLE, "Adjust the out-of-memory score (-1000 to 1000)."),
)
RESOURCES = (
    value("--limit-cpu", values.CPUS, "At most so many CPUs, such as 0.5."),
    value("--limit-memory", values.BYTES, "At most so much memory, such as 512m."),
    value("--limit-pids", values.COUNT, "At most so many processes; 0 for no limit."),
    value("--reserve-cpu", values.CPUS, "CPUs that a node must have free, such as 0.25."),
    value("--reserve-memory", values.BYTES, "Memory that a node must have free, such as 256m."),
)
HEALTH = (
    value("--health-cmd", click.STRING, "Command that tells whether the task is healthy."),
    value("--health-interval", values.DURATION, "Time between two checks."),
    value("--health-timeout", values.DURATION, "Time that one check may take."),
    value("--health-retries", values.COUNT, "Failures in a row that make a task unhealthy."),
    value("--health-start-period", values.DURATION, "Time to start in which failures do not count."),
    value("--health-start-interval", values.DURATION, "Time between two checks during the start period."),
    switch("--no-healthcheck", "Run no check, not even the image's."),
)
RESTART = (
    choice("--restart-condition", ("none", "on-failure", "any"), "When to restart a task.  [default: any]"),
    value("--restart-delay", values.DURATION, "Time between two attempts.  [default: 5s]"),
    value("--restart-max-attempts", values.COUNT, "Attempts before giving up; 0 for no limit."),
    value("--restart-window", values.DURATION, "Time in which attempts are counted; 0 for ever."),
)


def rolling(prefix: str, actions: tuple[str, ...], what: str) -> tuple[Decorator, ...]:
    """The flags of a rolling update or rollback."""
    return (
        value(f"--{prefix}-parallelism", values.COUNT, f"Tasks {what} at the same time; 0 for all.  [default: 1]"),
        value(f"--{prefix}-delay", values.DURATION, f"Time between tasks {what}.  [default: 0s]"),
        choice(f"--{prefix}-order", ("stop-first", "start-first"),
               "Stop the old task first, or start the new one first.  [default: stop-first]"),
        choice(f"--{prefix}-failure-action", actions, "What to do when it fails.  [default: pause]"),
        value(f"--{prefix}-monitor", values.DURATION, "Time after a start in which a failure counts.  [default: 5s]"),
        value(f"--{prefix}-max-failure-ratio", values.RATIO, "Share of failures to put up with.  [default: 0]"),
    )  # fmt: skip


ROLLING = (
    *rolling("update", ("pause", "continue", "rollback"), "updated"),
    *rolling("rollback", ("pause", "continue"), "rolled back"),
)
PLACEMENT = (
    value("--replicas", values.COUNT, "Number of tasks."),
    value("--replicas-max-per-node", values.COUNT, "At most so many tasks on one node; 0 for no limit."),
    value("--max-concurrent", values.COUNT, "Tasks of a job that run at the same time.  [default: --replicas]"),
)
OTHER = (
    choice("--endpoint-mode", ("vip", "dnsrr"), "How the service's name resolves.  [default: vip]"),
    value("--log-driver", click.STRING, "Log driver."),
    many("--log-opt", values.PAIR, "Option of the log driver, key=value."),
    value("--isolation", click.STRING, "Isolation mode of the engine."),
    switch("--with-registry-auth", "Send this user's registry credentials along with the service."),
    switch("--no-resolve-image", "Accepted as Docker's: skep hands images on as written, and each node resolves them."),
)
# The flags that create has under one name, and update as --NAME-add and --NAME-rm: name, type, what it is, short form.
LISTS: tuple[tuple[str, click.ParamType[Any], str, str], ...] = (
    ("env", values.ENV, "environment variable, KEY=VALUE, or KEY to take it from here", "-e"),
    ("label", values.PAIR, "label of the service, key=value", "-l"),
    ("container-label", values.PAIR, "label of the containers, key=value", ""),
    ("publish", parts.PUBLISH, "published port: 8080:80/tcp, or mode=host,target=80,published=8080", "-p"),
    ("mount", parts.MOUNT, "mount: type=bind,source=/data,target=/data", ""),
    ("constraint", parts.CONSTRAINT, "placement constraint: node.labels.disk==ssd", ""),
    ("placement-pref", parts.PREFERENCE, "placement preference: spread=node.labels.zone", ""),
    ("network", parts.NETWORK, "network", ""),
    ("secret", parts.FILE_REFERENCE, "secret: NAME, or source=NAME,target=FILE", ""),
    ("config", parts.FILE_REFERENCE, "config: NAME, or source=NAME,target=FILE", ""),
    ("group", click.STRING, "supplementary group", ""),
    ("host", parts.HOST, "host entry, name:ip", ""),
    ("dns", click.STRING, "DNS server", ""),
    ("dns-option", click.STRING, "DNS option", ""),
    ("dns-search", click.STRING, "DNS search domain", ""),
    ("sysctl", values.PAIR, "kernel parameter, key=value", ""),
    ("ulimit", parts.ULIMIT, "limit: nofile=1024:2048", ""),
    ("generic-resource", parts.GENERIC, "resource of your own that a node must have free: gpu=2", ""),
)
REMOVE_KINDS: dict[str, click.ParamType[Any]] = {"placement-pref": parts.PREFERENCE}

CREATE = together((
    value("--name", click.STRING, "Name of the service."),
    click.option("--mode", type=click.Choice(["replicated", "global", "replicated-job", "global-job"]),
                 default="replicated", show_default=True, help="Replicas, one task per node, or tasks that end."),
    *PLACEMENT,
    *(many(f"--{name}", kind, f"Add a {what}.".replace("Add a e", "Add an e"), *([short] if short else []))
      for name, kind, what, short in LISTS),
    many("--env-file", click.STRING, "Read environment variables from a file."),
    *PROCESS, *RESOURCES, *HEALTH, *RESTART, *ROLLING, *OTHER, *PLANNING, *WAITING,
))  # fmt: skip

UPDATE = together((
    value("--image", click.STRING, "Image to run."),
    value("--args", parts.WORDS, "Arguments to the image's entrypoint."),
    *PLACEMENT,
    *(option
      for name, kind, what, _ in LISTS
      for option in (
          many(f"--{name}-add", kind, f"Add or replace a {what}.".replace(" a e", " an e")),
          many(f"--{name}-rm", REMOVE_KINDS.get(name, click.STRING),
               f"Remove a {what.partition(':')[0].partition(',')[0]}"
               f"{' by its target port' if name == 'publish' else ' by its target' if name == 'mount' else ''}."
               .replace(" a e", " an e")),
      )),
    *PROCESS, *RESOURCES, *HEALTH, *RESTART, *ROLLING, *OTHER,
    switch("--force", "Replace all tasks even if nothing has changed."),
    switch("--rollback", "Go back to the specification before the last update."),
    *PLANNING, *WAITING,
))  # fmt: skip
