"""Is a history of concurrent operations linearizable? Wing and Gong's search with Lowe's memory of what was tried.

An operation took effect at one moment between its call and its answer. One whose outcome is unknown took effect at any
moment after its call, or never. The search looks for an order of such moments that a sequential object explains;
it remembers the pairs (operations placed, state) that led nowhere. Keys are independent: check each by itself.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)  # state of the object
E = TypeVar("E")  # what was asked and answered

UNKNOWN = math.inf  # as the time of the answer


class TooHard(Exception):
    """The search was given up: nothing is said about the history."""


@dataclasses.dataclass(frozen=True)
class Operation(Generic[E]):
    """One operation of one client."""

    called_at: float
    answered_at: float  # UNKNOWN when it was not answered
    event: E


def check(
    history: Sequence[Operation[E]], initial: S, step: Callable[[S, E], tuple[S] | None], *, steps_max: int = 2_000_000
) -> list[Operation[E]] | None:
    """None when the history is linearizable, else the longest order found: what comes after it has no explanation.

    `step` gives the state after an event (in a tuple of one), or None when the event cannot happen in that state. An
    operation with an unknown outcome is given as if it had been done. Raises TooHard after `steps_max` steps.
    """
    ordered = sorted(history, key=lambda operation: (operation.called_at, operation.answered_at))
    answered = sum(1 << number for number, operation in enumerate(ordered) if operation.answered_at != UNKNOWN)
    tried: set[tuple[int, S]] = set()
    longest: list[int] = []
    path: list[int] = []
    # One level of the search: what is placed (as bits), the state, and what else may come next.
    levels: list[tuple[int, S, list[int]]] = [(0, initial, _next(ordered, 0))]
    for _ in range(steps_max):
        if not levels:
            return [ordered[number] for number in longest]
        placed, state, candidates = levels[-1]
        if placed & answered == answered:
            return None
        if not candidates:
            levels.pop()
            if path:
                path.pop()
            continue
        number = candidates.pop()
        after = step(state, ordered[number].event)
        if after is None:
            continue
        fresh = placed | 1 << number
        if (fresh, after[0]) in tried:
            continue
        tried.add((fresh, after[0]))
        path.append(number)
        if len(path) > len(longest):
            longest = list(path)
        levels.append((fresh, after[0], _next(ordered, fresh)))
    raise TooHard(f"{len(ordered)} operations are too many to order")


def _next(ordered: Sequence[Operation[E]], placed: int) -> list[int]:
    """Operations that may be the next one: called before the first answer among those that are left."""
    found: list[int] = []
    first_answer = UNKNOWN
    for number, operation in enumerate(ordered):
        if operation.called_at > first_answer:
            break
        if not placed >> number & 1:
            found.append(number)
            first_answer = min(first_answer, operation.answered_at)
    found.sort(key=lambda number: -ordered[number].answered_at)  # the earliest answer is tried first
    return found


# ------------------------------------------------------------------ the object of this simulation: a versioned register


@dataclasses.dataclass(frozen=True)
class Event:
    """Something done to a named object that is absent, or holds a value and the one before it.

    kind: create, read, change, back (to the value before), fell (to any earlier value, and there is no way back),
    remove, exists (a creation was refused because it is there), missing (anything was refused because it is not).
    `expected` is the value that a change was based on; None
    for a removal, which asks for no version.
    """

    kind: str
    value: str = ""
    expected: str | None = None


@dataclasses.dataclass(frozen=True)
class Held:
    """The object's values."""

    value: str
    before: str = ""


Register = Held | None


def register(state: Register, event: Event) -> tuple[Register] | None:
    """The sequential object."""
    match event.kind:
        case "create":
            return (Held(event.value),) if state is None else None
        case "missing":
            return (None,) if state is None else None
        case _:
            pass
    if state is None:
        return None
    match event.kind:
        case "exists":
            return (state,)
        case "read":
            return (state,) if state.value == event.value else None
        case "remove":
            return (None,)
        case "fell":
            return (Held(event.value),)
        case "change":
            return (Held(event.value, state.value),) if state.value == event.expected else None
        case "back":
            return (Held(state.before, state.value),) if state.value == event.expected and state.before else None
        case _:
            raise AssertionError(f"no such event: {event.kind}")
