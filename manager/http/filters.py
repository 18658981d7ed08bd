"""The `filters` query parameter: different keys are joined by "and", the values of one key by "or"."""

import json
from collections.abc import Collection, Iterable, Mapping

from manager.http import messages
from skep import errors

Filters = Mapping[str, list[str]]


def parse(call: messages.Call, known: Collection[str]) -> Filters:
    """Reads both forms, {"key": {"value": true}} of Go and {"key": ["value"]} of Python. Raises Invalid."""
    text = call.text("filters")
    if not text.strip():
        return {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise errors.Invalid("invalid filter: not JSON") from None
    if not isinstance(data, dict):
        raise errors.Invalid("invalid filter: expected an object")
    found: dict[str, list[str]] = {}
    for key, values in data.items():
        if key not in known:
            raise errors.Invalid(f"invalid filter '{key}'")
        if isinstance(values, dict):
            chosen = [value for value, wanted in values.items() if wanted]
        elif isinstance(values, list) and all(isinstance(value, str | bool) for value in values):
            chosen = [str(value).lower() if isinstance(value, bool) else value for value in values]
        else:
            raise errors.Invalid(f"invalid filter '{key}': expected a list of values")
        if chosen:
            found[key] = chosen
    return found


def prefix(wanted: Filters, key: str, values: Iterable[str]) -> bool:
    """Whether one of `values` begins with one of the wanted; true when nothing is wanted."""
    chosen = wanted.get(key)
    return chosen is None or any(value.startswith(start) for start in chosen for value in values if value)


def exact(wanted: Filters, key: str, value: str) -> bool:
    """Whether `value` is one of the wanted; true when nothing is wanted."""
    chosen = wanted.get(key)
    return chosen is None or value in chosen


def labels(wanted: Filters, key: str, present: Mapping[str, str]) -> bool:
    """Whether all wanted labels are there: `name` alone must exist, `name=value` must be equal."""
    for term in wanted.get(key, ()):
        name, equals, value = term.partition("=")
        if name not in present or (equals and present[name] != value):
            return False
    return True
