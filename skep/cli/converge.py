"""Has a service become what was asked for? A pure judge of what the API shows, poll after poll.

Follows Docker's client: only tasks of the present specification count, all of them must run at the same time and stay
up for the monitor period. Stricter than Docker's in the end: an update that paused or was rolled back, and tasks that
ended for good, are failures.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from skep.cli import specs, tasks

Json = Mapping[str, Any]

MONITOR_S = 5.0  # when the specification names none
ENDED_GRACE_S = 5.0  # tasks that ended and are not replaced within this time will not be
NANOS = 1_000_000_000
ACTIVE_DESIRED = ("new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", "complete", "")
ENDED = ("complete", "shutdown", "failed", "rejected", "remove", "orphaned")
ORDER = ("new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", *ENDED)


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one place of the service stands."""

    name: str  # the slot's number, or the node's name for a global service
    state: str
    node: str = ""  # its ID
    host: str = ""  # its name
    error: str = ""  # why it is not running
    active: bool = True  # somebody still wants it to run


@dataclasses.dataclass(frozen=True)
class Picture:
    """The service at one moment."""

    total: int
    running: int
    slots: tuple[Slot, ...]
    job: bool = False  # then `running` counts tasks that have completed

    @property
    def done(self) -> bool:
        """Every place is taken by a running (job: completed) task of the present specification, and no other runs."""
        return self.running == self.total if not self.job else self.running >= self.total

    @property
    def reasons(self) -> list[str]:
        """What keeps tasks from running, once each, the most frequent first."""
        counts: dict[str, int] = {}
        for slot in self.slots:
            if slot.error and slot.state != "running":
                counts[slot.error] = counts.get(slot.error, 0) + 1
        return sorted(counts, key=lambda reason: -counts[reason])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How it ended."""

    ok: bool
    message: str


@dataclasses.dataclass(frozen=True)
class Step:
    """What one poll showed."""

    picture: Picture
    phase: str = ""  # beside the counts: verifying, rolling back
    left_s: float = 0.0  # of the phase, when it is known
    outcome: Outcome | None = None


def picture_of(service: Json, found: Sequence[Json], nodes: Mapping[str, Json]) -> Picture:
    """The service's places from its tasks (of the present specification) and the nodes by ID."""
    mode = specs.mode_of(service["Spec"])
    if mode.endswith("job"):
        found = [task for task in found if _iteration(task) == _service_iteration(service)]
    places: dict[str, list[Json]] = {}
    for task in found:
        key = str(task.get("Slot") or 0) if mode.startswith("replicated") else str(task.get("NodeID", ""))
        places.setdefault(key, []).append(task)
    ordered = sorted(places, key=lambda each: (len(each), each))
    slots = [_slot(key, places[key], nodes, by_node=not mode.startswith("replicated")) for key in ordered]
    if mode == "replicated":
        replicas = (service["Spec"].get("Mode") or {}).get("Replicated", {}).get("Replicas")
        total = 1 if replicas is None else int(replicas)
        wanted = tuple(slot for slot in slots if slot.active or (slot.name.isdecimal() and int(slot.name) <= total))
        return Picture(total, sum(_running(slot, nodes) for slot in slots), wanted)
    if mode == "global":
        live = tuple(slot for slot in slots if slot.active or slot.error)
        return Picture(
            max(1, len([slot for slot in live if slot.active])), sum(_running(slot, nodes) for slot in live), live
        )
    job = (service["Spec"].get("Mode") or {}).get("ReplicatedJob") or {}
    total = int(job.get("TotalCompletions") or 0) if mode == "replicated-job" else max(1, len(slots))
    return Picture(total, sum(slot.state == "complete" for slot in slots), tuple(slots), job=True)


def _running(slot: Slot, nodes: Mapping[str, Json]) -> bool:
    node = nodes.get(slot.node)
    # A node that the list does not have yet is given the benefit of the doubt: it was asked for less often.
    up = node is None or (node.get("Status") or {}).get("State") != "down"
    return slot.active and slot.state == "running" and up


def _slot(key: str, attempts: Sequence[Json], nodes: Mapping[str, Json], *, by_node: bool) -> Slot:
    def rank(task: Json) -> tuple[bool, int, str]:
        state = str((task.get("Status") or {}).get("State", ""))
        return (
            str(task.get("DesiredState", "")) in ACTIVE_DESIRED,
            ORDER.index(state) if state in ORDER and state not in ENDED else -1,
            str(task.get("CreatedAt", "")),
        )

    newest_first = sorted(attempts, key=rank, reverse=True)
    task = newest_first[0]
    node_id = str(task.get("NodeID") or "")
    state = str((task.get("Status") or {}).get("State", ""))
    error = tasks.reason_of(task)
    if not error and state != "running" and len(newest_first) > 1:
        # A fresh attempt says nothing yet about why the one before it failed.
        error = next((tasks.reason_of(each) for each in newest_first[1:] if tasks.reason_of(each)), "")
    hostname = ((nodes.get(node_id) or {}).get("Description") or {}).get("Hostname") or node_id
    active = str(task.get("DesiredState", "")) in ACTIVE_DESIRED and state not in ENDED
    return Slot(name=hostname if by_node else key, state=state, node=node_id, host=hostname, error=error, active=active)


def _iteration(task: Json) -> int:
    return int((task.get("JobIteration") or {}).get("Index") or 0)


def _service_iteration(service: Json) -> int:
    return int(((service.get("JobStatus") or {}).get("JobIteration") or {}).get("Index") or 0)


class Judge:
    """Remembers, over the polls of one wait, what is needed to say that it is over."""

    def __init__(self, *, before: Json | None, rollback: bool) -> None:
        """`before`: the service's UpdateStatus when the change was made; it tells of an earlier update, not of ours.
        `rollback`: a rollback is what was asked for."""
        self._before = dict(before or {})
        self._rollback = rollback
        self._converged_at: float | None = None
        self._ended_at: float | None = None
        self._cause = ""
        self._reason = ""

    def step(self, service: Json, found: Sequence[Json], nodes: Mapping[str, Json], *, now: float) -> Step:
        """Judges one poll, made at `now` (seconds)."""
        name = str(service["Spec"].get("Name", ""))
        picture = picture_of(service, found, nodes)
        self._reason = next(iter(picture.reasons), self._reason)
        status = service.get("UpdateStatus") or {}
        state = str(status.get("State") or "") if dict(status) != self._before else ""
        failed = self._failed(name, state, str(status.get("Message") or ""))
        if failed is not None:
            return Step(picture, outcome=failed)
        if picture.job:
            return self._job(name, picture, now=now)
        if state in ("updating", "rollback_started"):
            self._converged_at = None
            return Step(picture, phase="rolling back" if state == "rollback_started" else "updating")
        ended = self._ended(name, picture, now=now)
        if ended is not None:
            return Step(picture, outcome=ended)
        if not picture.done:
            again = self._converged_at is not None
            self._converged_at = None
            return Step(picture, phase="a task failed, starting over" if again else "")
        if state in ("completed", "rollback_completed"):  # the managers have watched the tasks already
            return Step(picture, outcome=self._success(name, state))
        return self._verify(name, picture, service, now=now)

    def _failed(self, name: str, state: str, message: str) -> Outcome | None:
        why = f" ({self._reason})" if self._reason else ""
        if state in ("paused", "rollback_paused"):
            what = "update" if state == "paused" else "rollback"
            text = f"{name}: {what} paused: {message or 'a task failed'}{why}. Look with 'skep service ps {name}'"
            return Outcome(ok=False, message=f"{text}; go back with 'skep service rollback {name}'")
        if state == "rollback_started":
            self._cause = message
        if state == "rollback_completed" and not self._rollback:
            return Outcome(
                ok=False, message=f"{name}: the update failed and was rolled back: {self._cause or message}{why}"
            )
        return None

    def _success(self, name: str, state: str) -> Outcome:
        return Outcome(
            ok=True, message=f"{name}: rolled back" if state == "rollback_completed" else f"{name}: converged"
        )

    def _verify(self, name: str, picture: Picture, service: Json, *, now: float) -> Step:
        if self._converged_at is None:
            self._converged_at = now
        monitor_ns = (service["Spec"].get("UpdateConfig") or {}).get("Monitor")
        monitor_s = MONITOR_S if monitor_ns is None else monitor_ns / NANOS
        left_s = self._converged_at + monitor_s - now
        if left_s <= 0 or picture.total == 0:
            return Step(picture, outcome=self._success(name, ""))
        return Step(picture, phase="verifying that tasks are stable", left_s=left_s)

    def _ended(self, name: str, picture: Picture, *, now: float) -> Outcome | None:
        """Tasks have ended and nobody wants them to run again: waiting longer changes nothing."""
        over = [slot for slot in picture.slots if not slot.active and slot.state in ENDED]
        if not over or len(picture.slots) - len(over) >= picture.total or any(
            slot.active and slot.state != "running" for slot in picture.slots
        ):  # fmt: skip
            self._ended_at = None
            return None
        if self._ended_at is None:
            self._ended_at = now
        if now - self._ended_at < ENDED_GRACE_S:
            return None
        why = f": {picture.reasons[0]}" if picture.reasons else ""
        counts = f"{len(over)} of {picture.total} tasks have ended and are not restarted"
        return Outcome(ok=False, message=f"{name}: {counts} (see --restart-condition){why}")

    def _job(self, name: str, picture: Picture, *, now: float) -> Step:
        if picture.done and picture.total > 0:
            return Step(picture, outcome=Outcome(ok=True, message=f"{name}: job complete"))
        return Step(picture, outcome=self._ended_job(name, picture, now=now))

    def _ended_job(self, name: str, picture: Picture, *, now: float) -> Outcome | None:
        lost = [slot for slot in picture.slots if not slot.active and slot.state in ENDED and slot.state != "complete"]
        if not lost or any(slot.active for slot in picture.slots):
            self._ended_at = None
            return None
        self._ended_at = now if self._ended_at is None else self._ended_at
        if now - self._ended_at < ENDED_GRACE_S:
            return None
        return Outcome(
            ok=False, message=f"{name}: {len(lost)} tasks of the job failed and are not restarted: {self._reason}"
        )
