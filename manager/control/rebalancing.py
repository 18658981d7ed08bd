"""Rebalancing: what the requests about it mean for the store, and how it stands. Pure."""

import dataclasses

from manager.orchestrator import rebalance
from manager.store import ops, views
from skep import errors, pb, stamps

MOVES_MAX = 100_000
AT_A_TIME_MAX = 100
BENEFIT_MIN = 2  # nodes that differ by one task cannot be more alike
BENEFIT_MAX = 1_000_000
AGE_MAX_S = 365 * 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A request; None stands for the default."""

    moves: int | None = None
    at_a_time: int | None = None
    min_benefit: int | None = None
    min_age_s: float | None = None


def limits(wanted: Wanted) -> pb.RebalanceLimits:
    """The request with everything filled in. Raises Invalid."""
    found = pb.RebalanceLimits()
    found.CopyFrom(rebalance.DEFAULTS)
    for name, value, least, most in (
        ("moves", wanted.moves, 1, MOVES_MAX),
        ("at_a_time", wanted.at_a_time, 1, AT_A_TIME_MAX),
        ("min_benefit", wanted.min_benefit, BENEFIT_MIN, BENEFIT_MAX),
    ):
        if value is None:
            continue
        if not least <= value <= most:
            raise errors.Invalid(f"{name.replace('_', ' ')} must be between {least} and {most}, not {value}")
        setattr(found, name, value)
    if wanted.min_age_s is not None:
        if not 0.0 <= wanted.min_age_s <= AGE_MAX_S:
            raise errors.Invalid(f"the minimum age must be between 0 and a year, not {wanted.min_age_s:g} s")
        found.min_age = stamps.to_nanos(wanted.min_age_s)
    return found


def start(view: views.View, wanted: Wanted, *, now: float) -> list[pb.Op]:
    """Starts evening out the load; moves that are under way go on being watched. Raises Invalid."""
    changed = _copy(view)
    asked = rebalance.requested(limits(wanted), now, "looking for the first move")
    asked.moving.extend(changed.rebalance.moving)
    changed.rebalance.CopyFrom(asked)
    return [ops.update(changed)]


def cancel(view: views.View) -> list[pb.Op]:
    """Begins no further move. Raises FailedPrecondition when nothing is under way."""
    changed = _copy(view)
    if not rebalance.is_active(changed.rebalance):
        raise errors.FailedPrecondition("no rebalancing is under way: nothing to cancel")
    changed.rebalance.moves_left = 0
    changed.rebalance.message = rebalance.CANCELLED
    return [ops.update(changed)]


def policy(view: views.View, *, auto: bool, now: float) -> list[pb.Op]:
    """Sets whether nodes that join or return from now on get their share by themselves."""
    changed = _copy(view)
    if changed.spec.auto_rebalance == auto:
        return []
    changed.spec.auto_rebalance = auto
    if auto and not rebalance.is_active(changed.rebalance):
        at = stamps.stamp(now)  # nodes that came before are not new
        changed.rebalance.requested_at.CopyFrom(at)
        changed.rebalance.ended_at.CopyFrom(at)
        changed.rebalance.message = changed.rebalance.message or "waits for a node to come"
    return [ops.update(changed)]


def _copy(view: views.View) -> pb.Cluster:
    changed = pb.Cluster()
    changed.CopyFrom(view.cluster)
    return changed
