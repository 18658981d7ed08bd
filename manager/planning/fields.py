"""What differs between two specifications, by path in the API's JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import message

from skep import jsonmap


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One difference. For lists: what only the one and only the other has."""

    path: str
    before: Any  # None: not there
    after: Any
    node: str = ""  # name of the node whose field it is; "" for a service


def difference(before: message.Message | None, after: message.Message | None) -> list[Field]:
    """The fields that differ, in order of their path. What JSON hides (passwords) is not compared."""
    found: list[Field] = []
    _compare(
        found, "", {} if before is None else jsonmap.to_json(before), {} if after is None else jsonmap.to_json(after)
    )
    return found


def _compare(found: list[Field], path: str, before: Any, after: Any) -> None:
    if before == after:
        return
    # A part that appears or goes is shown field by field too.
    left = {} if before is None and isinstance(after, Mapping) else before
    right = {} if after is None and isinstance(before, Mapping) else after
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if not left and not right:
            return
        for key in dict.fromkeys([*left, *right]):
            _compare(found, f"{path}.{key}" if path else str(key), left.get(key), right.get(key))
    elif _listed(before) and _listed(after) and (before or after):
        _compare_lists(found, path, before or [], after or [])
    else:
        found.append(Field(path, before, after))


def _listed(value: Any) -> bool:
    return value is None or isinstance(value, list)


def _compare_lists(found: list[Field], path: str, before: Sequence[Any], after: Sequence[Any]) -> None:
    gone = [item for item in before if item not in after]
    come = [item for item in after if item not in before]
    if not gone and not come:  # only the order, or how often
        found.append(Field(path, list(before), list(after)))
    elif len(gone) == len(come) == 1 and isinstance(gone[0], Mapping):
        _compare(found, f"{path}[{before.index(gone[0])}]", gone[0], come[0])
    else:
        found.append(Field(path, gone or None, come or None))
