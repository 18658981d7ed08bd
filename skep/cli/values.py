"""Values as people write them on a command line: durations, sizes, CPUs, counts. Every error shows a right example."""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from skep import durations
from skep.cli.overriding import override

NANOS = durations.NANOS
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)


def duration_ns(text: str) -> int:
    """Nanoseconds of `10s`, `1m30s`, `500ms`, `1.5h`. Raises ValueError."""
    return durations.parse_ns(text)


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
