"""Words and tables for people: relative times, short IDs, aligned columns. Pure; prints nothing."""

import datetime
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHORT_ID_CHARS = 12
COLUMN_GAP = 3  # spaces, as Docker's tables
COLUMN_WIDTH_MIN = 10  # with the gap
UNITS_NS = (("h", 3600 * 10**9), ("m", 60 * 10**9), ("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1))
MINUTE_S, HOUR_S, DAY_S, WEEK_S = 60, 3600, 86400, 604800


def short_id(identifier: str) -> str:
    """The first characters of an ID: enough to tell objects apart, and accepted wherever an ID is."""
    return identifier[:SHORT_ID_CHARS]


def seconds_of(stamp: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None when it was never set."""
    if not stamp or stamp.startswith("0001-"):
        return None
    try:
        return datetime.datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None


def rfc3339(seconds: float) -> str:
    """The time in UTC, to the microsecond."""
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).isoformat().replace("+00:00", "Z")


def span(seconds: float) -> str:
    """A length of time in Docker's words: `5 seconds`, `About a minute`, `3 weeks`."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < MINUTE_S:
        return f"{whole} seconds"
    if whole < 2 * MINUTE_S:
        return "About a minute"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} minutes"
    hours = round(seconds / HOUR_S)
    if hours == 1:
        return "About an hour"
    if hours < 48:  # noqa: PLR2004
        return f"{hours} hours"
    for limit_s, unit_s, name in (
        (2 * WEEK_S, DAY_S, "days"),
        (60 * DAY_S, WEEK_S, "weeks"),
        (730 * DAY_S, 30 * DAY_S, "months"),
    ):
        if hours * HOUR_S < limit_s:
            return f"{hours * HOUR_S // unit_s} {name}"
    return f"{hours // 24 // 365} years"


def ago(stamp: str | None, *, now: float) -> str:
    """`5 seconds ago`; empty when the time was never set."""
    then = seconds_of(stamp)
    return "" if then is None else f"{span(max(0.0, now - then)).lower()} ago"


def size(number_bytes: int) -> str:
    """Bytes in binary units: `512MiB`, `1.5GiB`."""
    amount = float(number_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":  # noqa: PLR2004
            return f"{amount:.4g}{unit}"
        amount /= 1024
    return f"{number_bytes}B"


def duration(nanoseconds: int) -> str:
    """Nanoseconds as they are typed: `10s`, `1m30s`, `500ms`."""
    if nanoseconds == 0:
        return "0s"
    rest, text = nanoseconds, ""
    for unit, unit_ns in UNITS_NS:
        amount, rest = divmod(rest, unit_ns)
        text += f"{amount}{unit}" if amount else ""
    return text


def cpus(nano: int) -> str:
    """Billionths of a core as a decimal: `0.5`."""
    return f"{nano / 10**9:.9f}".rstrip("0").rstrip(".")


def shorten(line: str, limit: int) -> str:
    """At most `limit` characters, the last of them an ellipsis when something was cut."""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key under which web.2 comes before web.10."""
    parts = (part for part in re.split(r"(\d+)", text) if part)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def image(reference: str, *, digest: bool = False) -> str:
    """An image without its digest where it has a tag: `nginx:1.27@sha256:..` becomes `nginx:1.27`."""
    name, at, _ = reference.partition("@")
    return reference if digest or not at or ":" not in name.rsplit("/", 1)[-1] else name


def ports(configs: Iterable[Mapping[str, Any]], *, mode: str | None = None) -> str:
    """Published ports as `*:8080->80/tcp`, neighbours joined to ranges; only those of `mode` when given."""
    triples = sorted(
        (port.get("Protocol", "tcp"), int(port.get("TargetPort", 0)), int(port["PublishedPort"]))
        for port in configs
        if port.get("PublishedPort") and (mode is None or port.get("PublishMode", "ingress") == mode)
    )

    def lane(item: tuple[int, tuple[str, int, int]]) -> tuple[str, int, int]:
        """The same for ports that follow each other on both sides."""
        position, (protocol, target, published) = item
        return protocol, target - position, published - position

    shown: list[str] = []
    for _, run in itertools.groupby(enumerate(triples), key=lane):
        members = [triple for _, triple in run]
        (protocol, target, published), (_, target_end, published_end) = members[0], members[-1]
        left = f"{published}-{published_end}" if len(members) > 1 else str(published)
        right = f"{target}-{target_end}" if len(members) > 1 else str(target)
        shown.append(f"*:{left}->{right}/{protocol}")
    return ", ".join(shown)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns three spaces apart."""
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "".join(
            cell.ljust(max(width + COLUMN_GAP, COLUMN_WIDTH_MIN)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
