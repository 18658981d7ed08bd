"""The state machine of one task on its node: pure, one table, one function.

`step` looks at what is wished, what is observed and what the last action came to, and says what the task's state is
now and what to do next. It keeps nothing; the driver (`agent.tasks.driver`) does the actions and asks again. States
only move along `MOVES`; anything else is a Bug. `diagram` draws the table for the manual.
"""

import dataclasses
import enum
from typing import TypeAlias

from agent.runtime import base
from skep import errors, pb, policies

State: TypeAlias = pb.TaskState.ValueType

ASSIGNED = pb.TASK_STATE_ASSIGNED
ACCEPTED = pb.TASK_STATE_ACCEPTED
PREPARING = pb.TASK_STATE_PREPARING
READY = pb.TASK_STATE_READY
STARTING = pb.TASK_STATE_STARTING
RUNNING = pb.TASK_STATE_RUNNING
COMPLETE = pb.TASK_STATE_COMPLETE
SHUTDOWN = pb.TASK_STATE_SHUTDOWN
FAILED = pb.TASK_STATE_FAILED
REJECTED = pb.TASK_STATE_REJECTED
REMOVE = pb.TASK_STATE_REMOVE
ORPHANED = pb.TASK_STATE_ORPHANED

# In the status' err from the verdict until the container has been stopped:
UNHEALTHY = "unhealthy container"
LEASE_OVER = f"no manager was heard of for too long: stopped, because it must never run twice ({policies.AT_MOST_ONCE})"
VERDICTS = (UNHEALTHY, LEASE_OVER)

MOVES: dict[State, dict[State, str]] = {
    ASSIGNED: {
        ACCEPTED: "recorded on the node",
        SHUTDOWN: "not wanted any more",
    },
    ACCEPTED: {
        PREPARING: "at once",
        SHUTDOWN: "not wanted any more",
    },
    PREPARING: {
        READY: "container created",
        SHUTDOWN: "not wanted any more",
        REJECTED: "cannot be prepared here",
    },
    READY: {
        STARTING: "wished to run",
        SHUTDOWN: "not wanted any more",
        REJECTED: "container vanished",
    },
    STARTING: {
        RUNNING: "runs, and is healthy if that is checked",
        COMPLETE: "exited 0",
        SHUTDOWN: "stopped on request",
        FAILED: "did not start, exited non-zero, unhealthy, lease over",
    },
    RUNNING: {
        COMPLETE: "exited 0",
        SHUTDOWN: "stopped on request",
        FAILED: "exited non-zero, unhealthy, lease over, vanished",
    },
    COMPLETE: {},
    SHUTDOWN: {},
    FAILED: {},
    REJECTED: {},
    ORPHANED: {},  # written by managers when the node was away for good; here it is an end like the others
}


class Action(enum.Enum):
    """What the driver does next. Every action may be repeated."""

    NONE = "none"  # the state moved: ask again at once
    WAIT = "wait"  # until the wish or the container changes
    PREPARE = "prepare"
    START = "start"
    STOP = "stop"
    REMOVE = "remove"
    DONE = "done"  # stopped and removed: nothing of the task is left on this node


@dataclasses.dataclass(frozen=True)
class Situation:
    """All that a step depends on."""

    state: State
    desired: State
    observation: base.Observation
    completed: Action | None = None  # the action that has just come to a good end
    failure: str = ""  # the last action failed for good, in words
    verdict: str = ""  # why the container is being stopped, if it is and nobody wished it: one of VERDICTS
    lease_over: bool = False  # it must never run twice, and for its lease nothing was heard of a manager


@dataclasses.dataclass(frozen=True)
class Step:
    """What follows: the state, its message (empty = as it was) and error, and the next action."""

    state: State
    action: Action
    message: str = ""
    err: str = ""


def step(now: Situation) -> Step:
    """The next step. Raises Bug for a state that an agent never holds, and for a move that is not in the table."""
    moves = MOVES.get(now.state)
    if moves is None:
        raise errors.Bug(f"an agent cannot hold a task in state {pb.TaskState.Name(now.state)}")
    result = _decide(now)
    if result.state != now.state and result.state not in moves:
        raise errors.Bug(f"task moved from {pb.TaskState.Name(now.state)} to {pb.TaskState.Name(result.state)}")
    return result


def _decide(now: Situation) -> Step:
    if now.state > RUNNING:
        return _ended(now)
    if now.desired >= SHUTDOWN:
        return _stopping(now)
    if now.state == ASSIGNED:
        return Step(ACCEPTED, Action.NONE, "accepted")
    if now.state == ACCEPTED:
        return _accepted(now)
    if now.state == PREPARING:
        return _preparing(now)
    if now.state == READY:
        return _ready(now)
    return _started(now)


def _ended(now: Situation) -> Step:
    if now.observation.phase is base.Phase.RUNNING:
        return Step(now.state, Action.STOP)
    if now.desired != REMOVE:
        return Step(now.state, Action.WAIT)
    gone = now.completed is Action.REMOVE and now.observation.phase is base.Phase.ABSENT
    return Step(now.state, Action.DONE if gone else Action.REMOVE)


def _stopping(now: Situation) -> Step:
    if now.observation.phase is base.Phase.RUNNING:
        return Step(now.state, Action.STOP)
    return Step(SHUTDOWN, Action.NONE, "shutdown")


def _accepted(now: Situation) -> Step:
    if now.desired < READY:
        return Step(ACCEPTED, Action.WAIT)
    return Step(PREPARING, Action.NONE, "preparing")


def _preparing(now: Situation) -> Step:
    if now.failure:
        return Step(REJECTED, Action.NONE, err=now.failure)
    # A container that only exists may be half made (the agent died over it): prepare again, which does what is left.
    unstarted = now.observation.phase in {base.Phase.ABSENT, base.Phase.CREATED}
    if unstarted and now.completed is not Action.PREPARE:
        return Step(PREPARING, Action.PREPARE)
    return Step(READY, Action.NONE, "prepared")


def _ready(now: Situation) -> Step:
    if now.observation.phase is base.Phase.ABSENT:
        return Step(REJECTED, Action.NONE, err="the container vanished before it was started")
    if now.desired >= RUNNING and not now.lease_over:
        return Step(STARTING, Action.NONE, "starting")
    return Step(READY, Action.WAIT)


def _started(now: Situation) -> Step:
    """STARTING and RUNNING."""
    seen = now.observation
    if now.failure and seen.phase is not base.Phase.RUNNING:
        return Step(FAILED, Action.NONE, err=now.failure)
    if seen.phase is base.Phase.RUNNING:
        return _alive(now)
    if seen.phase is base.Phase.EXITED:
        return _exited(now)
    if seen.phase is base.Phase.ABSENT:
        return Step(FAILED, Action.NONE, err="the container is gone: it was removed from outside")
    if now.lease_over:
        return Step(FAILED, Action.NONE, err=LEASE_OVER)
    if now.state == STARTING:
        return Step(STARTING, Action.START)
    return Step(FAILED, Action.NONE, err="the container was replaced from outside by one that does not run")


def _alive(now: Situation) -> Step:
    seen = now.observation
    verdict = now.verdict or (LEASE_OVER if now.lease_over else UNHEALTHY if seen.healthy is False else "")
    if verdict:
        return Step(now.state, Action.STOP, err=verdict)  # FAILED once it has ended: its ports are free then
    if now.state == STARTING and (seen.healthy or not seen.health_checked):
        return Step(RUNNING, Action.NONE, "started")
    return Step(now.state, Action.WAIT)


def _exited(now: Situation) -> Step:
    code, reason = now.observation.exit_code, now.observation.error
    if now.verdict == UNHEALTHY:
        return Step(FAILED, Action.NONE, err=f"task: non-zero exit ({code}): {UNHEALTHY}")
    if now.verdict or now.lease_over:
        return Step(FAILED, Action.NONE, err=LEASE_OVER)
    if code == 0 and not reason:
        return Step(COMPLETE, Action.NONE, "finished")
    if code == 0:
        return Step(FAILED, Action.NONE, err=reason)
    return Step(FAILED, Action.NONE, err=f"task: non-zero exit ({code})" + (f": {reason}" if reason else ""))


def diagram() -> str:
    """The table as a Mermaid state diagram."""

    def word(state: State) -> str:
        return pb.TaskState.Name(state).removeprefix("TASK_STATE_")

    lines = ["stateDiagram-v2", f"    [*] --> {word(ASSIGNED)}"]
    for state, moves in MOVES.items():
        if state == ORPHANED:
            continue
        lines += [f"    {word(state)} --> {word(target)}: {why}" for target, why in moves.items()]
        if not moves:
            lines.append(f"    {word(state)} --> [*]")
    return "\n".join(lines) + "\n"
