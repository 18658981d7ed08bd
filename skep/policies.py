"""Policies of a service that Docker's specification has no field for: they are labels of the service.

Managers and agents read them here, so that both mean the same. Pure.
"""

from collections.abc import Mapping

from skep import durations, errors, pb, stamps

REPLACE_AFTER = "io.skep.replace-after"  # how long tasks on a node that is down are waited for
AT_MOST_ONCE = "io.skep.at-most-once"  # never two of a slot: "true", or the lease after which the agent stops the task
START_DEADLINE = "io.skep.start-deadline"  # how long an update waits for a new task to run

LEASE_DEFAULT_S = 30.0
LEASE_MIN_S = 2.0
START_DEADLINE_DEFAULT_S = 600.0
STOP_GRACE_DEFAULT_S = 10.0
KILL_S = 5.0  # what an engine may take to kill and to report, beyond the grace period
CLOCK_DRIFT = 0.1  # how much faster than the agent's a manager's clock may run: far more than real clocks do


def replace_after_s(labels: Mapping[str, str]) -> float:
    """How long after its node went down a task is replaced; 0 = at once. An unreadable value counts as 0."""
    return _seconds(labels.get(REPLACE_AFTER, ""), 0.0)


def lease_s(labels: Mapping[str, str]) -> float | None:
    """For at-most-once services: for how long a task may run on without its agent hearing from a manager."""
    text = labels.get(AT_MOST_ONCE, "").strip().lower()
    if text in {"", "false", "0"}:
        return None
    # What cannot be read means the default: the promise counts for more than its number.
    return max(LEASE_MIN_S, _seconds(text, LEASE_DEFAULT_S))


def start_deadline_s(labels: Mapping[str, str]) -> float:
    """How long after its creation an update's task must run."""
    return _seconds(labels.get(START_DEADLINE, ""), START_DEADLINE_DEFAULT_S)


def certainly_stopped_s(spec: pb.ServiceSpec) -> float:
    """How long after a node went down its at-most-once task has certainly stopped, by any manager's steady clock.

    Lease, stopping and killing by the agent's clock, stretched by what the clocks may differ in speed.
    """
    container = spec.task.container
    has_grace = container.HasField("stop_grace_period")
    grace_s = stamps.from_nanos(container.stop_grace_period) if has_grace else STOP_GRACE_DEFAULT_S
    return ((lease_s(spec.labels) or 0.0) + grace_s + KILL_S) * (1.0 + CLOCK_DRIFT)


def check(labels: Mapping[str, str]) -> None:
    """Raises Invalid for a label whose value cannot be read."""
    for label, plain in ((REPLACE_AFTER, ()), (START_DEADLINE, ()), (AT_MOST_ONCE, ("", "true", "false", "0"))):
        value = labels.get(label)
        if value is None or value.strip().lower() in plain:
            continue
        try:
            found_s = stamps.from_nanos(durations.parse_ns(value))
        except ValueError as problem:
            raise errors.Invalid(f"label {label}: {problem}") from problem
        if label == AT_MOST_ONCE and found_s < LEASE_MIN_S:
            raise errors.Invalid(f"label {label}: a lease of {value} is shorter than {LEASE_MIN_S:.0f} s")
        if label == START_DEADLINE and not found_s:
            raise errors.Invalid(f"label {label}: nothing starts in no time at all; write it as 10m")


def _seconds(text: str, default_s: float) -> float:
    try:
        return stamps.from_nanos(durations.parse_ns(text)) if text else default_s
    except ValueError:
        return default_s
