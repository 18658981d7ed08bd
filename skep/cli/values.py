"""Values as people write them on a command line: durations, sizes, CPUs, counts. Every error shows a right example."""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from skep.cli.overriding import override

NANOS = 1_000_000_000
UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,  # the Greek letter beside the micro sign: Go takes both
    "ms": 1_000_000,
    "s": NANOS,
    "m": 60 * NANOS,
    "h": 3600 * NANOS,
}
DURATION_NS_MAX = 2**63 - 1
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)
PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([a-zµμ]*)")


def duration_ns(text: str) -> int:
    """Nanoseconds of `10s`, `1m30s`, `500ms`, `1.5h`. Raises ValueError."""
    text = text.strip()
    if text == "0":
        return 0
    example = "write it as 10s, 1m30s or 500ms"
    if text.startswith("-"):
        raise ValueError(f"{text!r} is negative; {example}")
    total = Decimal(0)
    position = 0
    while position < len(text):
        part = PART.match(text, position)
        if part is None:
            raise ValueError(f"{text!r} is not a duration; {example}")
        if not part[2]:
            raise ValueError(f"{text!r} has no unit; {example}")
        if part[2] not in UNITS_NS:
            raise ValueError(f"{part[2]!r} is not a unit of time; {example}")
        total += Decimal(part[1]) * UNITS_NS[part[2]]
        position = part.end()
    if not text:
        raise ValueError(f"an empty duration; {example}")
    if total > DURATION_NS_MAX:
        raise ValueError(f"{text!r} is longer than 292 years; {example}")
    return int(total)


def size_bytes(text: str) -> int:
    """Bytes of `512m`, `1g`, `1.5GiB`, `4096`; multiples are of 1024, as Docker counts. Raises ValueError."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it as 512m, 1g or 1073741824")
    power = " kmgtp".index(match[2].lower()) if match[2] else 0
    return int(Decimal(match[1]) * 1024**power)


def nano_cpus(text: str) -> int:
    """Billionths of a core of `0.5`, `2`, `.25`. Raises ValueError."""
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number of CPUs; write it as 0.5 or 2") from None
    nanos = number * NANOS
    if not number.is_finite() or number < 0:
        raise ValueError(f"{text!r} is not a number of CPUs; write it as 0.5 or 2")
    if nanos != int(nanos):
        raise ValueError(f"{text!r} is finer than a billionth of a CPU; write it as 0.5 or 2")
    return int(nanos)


def count(text: str) -> int:
    """A whole number of 0 or more. Raises ValueError."""
    if not re.fullmatch(r"\+?\d+", text.strip()) or not text.strip().isascii():
        raise ValueError(f"{text!r} is not a whole number of 0 or more, such as 3")
    number = int(text)
    if number >= 2**64:
        raise ValueError(f"{text!r} is too large")
    return number


def whole(text: str) -> int:
    """A whole number, perhaps negative. Raises ValueError."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number, such as 5") from None


def ratio(text: str) -> float:
    """A share between 0 and 1. Raises ValueError."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{text!r} is not a share between 0 and 1, such as 0.25")
    return number


def pair(text: str) -> tuple[str, str]:
    """`key=value` or `key`. Raises ValueError for an empty key."""
    key, _, value = text.partition("=")
    if not key.strip():
        raise ValueError(f"{text!r} has no key; write it as key=value")
    return key, value


def variable(text: str) -> tuple[str, str | None]:
    """`KEY=VALUE`, or `KEY` with None: to be taken from the environment. Raises ValueError."""
    key, value = pair(text)
    return key, value if "=" in text else None


class Kind(click.ParamType[Any]):
    """A click type made of a function that raises ValueError."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


DURATION = Kind("duration", duration_ns)
BYTES = Kind("bytes", size_bytes)
CPUS = Kind("decimal", nano_cpus)
COUNT = Kind("uint", count)
WHOLE = Kind("int", whole)
RATIO = Kind("float", ratio)
ENV = Kind("KEY=VALUE", variable)
PAIR = Kind("key=value", pair)
