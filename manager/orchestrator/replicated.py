"""Mode replicated: N slots, each with one task that runs.

In one turn: choose the slots to keep, remove the others, replace what broke, advance the update, fill what is missing.
Operations come in an order in which every prefix of them is safe: a successor is created before its predecessor is
asked to stop.
"""

from collections.abc import Iterable

from manager.orchestrator import healing, moves, restart, slots, tasks, turn, update
from skep import pb


def reconcile(now: turn.Turn) -> None:
    """Plans the service's tasks towards its wished number of replicas."""
    mode = now.spec.mode.replicated
    wanted = mode.replicas if mode.HasField("replicas") else 1
    found = slots.collect(now)
    occupied = [slot for slot in found.values() if slot.occupied]
    kept = occupied
    if len(occupied) > wanted:
        ordered = slots.by_worth(occupied)
        kept, surplus = ordered[:wanted], ordered[wanted:]
        now.reason(f"{len(surplus)} slots too many")
        _remove(now, surplus)
    kept.sort(key=lambda slot: slot.number)
    for slot in kept:
        if slot.broken:
            _replace(now, slot)
    moves.advance(now, kept)
    update.advance(now, kept)
    taken = {slot.number: None for slot in kept}
    _fill(now, found, taken, wanted)
    # What is left in slots that nobody uses again is forgotten.
    _remove(now, (slot for slot in found.values() if not slot.occupied and slot.number not in taken))


def _remove(now: turn.Turn, surplus: Iterable[slots.Slot]) -> None:
    for slot in surplus:
        for task in slot.tasks:
            now.stop(task, pb.TASK_STATE_REMOVE)


def _fill(now: turn.Turn, found: dict[int, slots.Slot], taken: dict[int, None], wanted: int) -> None:
    """Creates what is missing in the lowest free numbers, from 1; adds them to `taken`."""
    missing = wanted - len(taken)
    if missing > 0:
        now.reason(f"{missing} of {wanted} replicas missing")
    number = 0
    for _ in range(missing):
        number += 1
        while number in taken:
            number += 1
        taken[number] = None
        slot = found.get(number)
        now.create(slot=number, start=tasks.Start.AT_ONCE if slot is None else slots.refill(now, slot))


def _replace(now: turn.Turn, slot: slots.Slot) -> None:
    """Stops what broke, and creates a successor where the slot needs one and the policy grants it."""
    last = slot.broken[-1]
    if healing.needs_successor(now, slot, last):
        policy = now.state.revision(last.revision_id).spec.task.restart
        if restart.allowed(last, policy, slot.tasks):
            healing.succeed(now, slot, last, policy)
    for task in slot.broken:
        now.stop(task)
