"""Identifiers, and the one source of randomness.

Whoever needs chance takes an `Rng` as an argument; only the composition root calls `system_rng`.
"""

import random
from typing import Protocol

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 25  # characters of base36, about 129 bits; Docker's clients expect this shape


class Rng(Protocol):
    """The part of `random.Random` that skep uses."""

    def random(self) -> float: ...

    def uniform(self, a: float, b: float) -> float: ...

    def getrandbits(self, k: int, /) -> int: ...


def system_rng() -> random.Random:
    """Randomness from the operating system, fit for secrets."""
    return random.SystemRandom()


def seeded_rng(seed: int) -> random.Random:
    """Reproducible randomness, for tests and simulation only."""
    return random.Random(seed)


def base36(number: int, *, width: int) -> str:
    """`number` in base36, left-padded with zeros to `width` characters."""
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 36)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits)).rjust(width, "0")


def new_id(rng: Rng) -> str:
    """A new object ID of 25 characters."""
    return base36(rng.getrandbits(129), width=ID_LENGTH)[-ID_LENGTH:]
