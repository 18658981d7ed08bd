"""Durations as people write them, in Go's spelling: `10s`, `1m30s`, `500ms`. Pure, and light to import."""

import re
from decimal import Decimal

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
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([a-zµμ]*)")


def parse_ns(text: str) -> int:
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
        part = _PART.match(text, position)
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


def words(seconds: float) -> str:
    """Whole seconds as people say them: 40 s, 5 min, 2 h."""
    whole = max(0, round(seconds))
    for unit, unit_s in (("h", 3600), ("min", 60)):
        if whole >= 2 * unit_s:  # 90 s and 100 min say more than 1 min and 1 h
            return f"{whole // unit_s} {unit}"
    return f"{whole} s"
