"""The placeholders that Docker's swarm mode allows in environment values, hostname, mounts and payloads. Pure.

A small part of Go's text/template: fields, `index .Service.Labels "key"` (or `.Service.Labels.key`), `join SEP a b ..`,
parentheses, strings, and functions that the caller adds. Managers try it out on a made-up task when a service is
created; agents fill in the real one. Must not: know tasks or nodes.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from skep import errors

Function = Callable[[Sequence[str]], str]

FIELDS = (
    ".Service.ID", ".Service.Name", ".Node.ID", ".Node.Hostname", ".Node.Platform.OS",
    ".Node.Platform.Architecture", ".Task.ID", ".Task.Name", ".Task.Slot",
)  # fmt: skip
LABELS = ".Service.Labels"
DEPTH_MAX = 20  # of parentheses

_ACTION = re.compile(
    r"(\s*)\{\{(-\s)?\s*(/\*.*?\*/|(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^\"`])*?)\s*(\s-)?\}\}(\s*)", re.DOTALL
)
_TOKEN = re.compile(r'\s*(?:(?P<text>"(?:\\.|[^"\\])*"|`[^`]*`)|(?P<word>[.\w]+)|(?P<mark>[()]))')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def expand(
    text: str,
    fields: Mapping[str, str],
    labels: Mapping[str, str],
    functions: Mapping[str, Function] | None = None,
) -> str:
    """`text` with every placeholder replaced. Raises Invalid for one that does not exist or cannot be read.

    `fields` are values by name (".Task.Slot"), `labels` those of the service, `functions` what only this text may call.
    """
    if "{{" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        before, trims_left, inside, trims_right, after = match.groups()
        result = "" if inside.startswith("/*") else _Reader(inside, fields, labels, functions or {}).value()
        return ("" if trims_left else before) + result + ("" if trims_right else after)

    expanded = _ACTION.sub(value, text)
    if "{{" in _ACTION.sub("", text):
        raise errors.Invalid("unclosed action: every {{ needs its }}")
    return expanded


class _Reader:
    """One placeholder: reads it and evaluates it at once."""

    def __init__(
        self, source: str, fields: Mapping[str, str], labels: Mapping[str, str], functions: Mapping[str, Function]
    ) -> None:
        self._source = source
        self._fields = fields
        self._labels = labels
        self._functions: dict[str, Function] = {"join": _join, "index": self._index, **functions}
        self._tokens = self._split()
        self._at = 0

    def value(self) -> str:
        """The value of the whole placeholder."""
        result = self._call(0)
        if self._at < len(self._tokens):
            raise self._wrong(f"{self._tokens[self._at]!r} is not expected")
        return result

    def _split(self) -> list[str]:
        found: list[str] = []
        position = 0
        while position < len(self._source.rstrip()):
            match = _TOKEN.match(self._source, position)
            if match is None:
                raise self._wrong(f"cannot read {self._source[position:].strip()!r}")
            found.append(match.group().strip())
            position = match.end()
        return found

    def _call(self, depth: int) -> str:
        """A function with its arguments, or a single value."""
        if depth > DEPTH_MAX:
            raise self._wrong("too many parentheses")
        head = self._next("a value")
        function = self._functions.get(head)
        if function is None:
            return self._operand(head, depth)
        arguments: list[str] = []
        while self._at < len(self._tokens) and self._tokens[self._at] != ")":
            token = self._next("an argument")
            if token == LABELS:
                if head != "index" or arguments:
                    raise self._wrong(f'{LABELS} is a map: write (index {LABELS} "key")')
                arguments.append(LABELS)
            else:
                arguments.append(self._operand(token, depth))
        return function(arguments)

    def _operand(self, token: str, depth: int) -> str:
        if token == "(":  # noqa: S105  # a parenthesis, no password
            inner = self._call(depth + 1)
            if self._next(")") != ")":
                raise self._wrong("a parenthesis is not closed")
            return inner
        if token[0] == "`":
            return token[1:-1]
        if token[0] == '"':
            return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), token[1:-1], flags=re.DOTALL)
        if token in self._fields:
            return self._fields[token]
        if token.startswith(LABELS + "."):
            return self._label(token[len(LABELS) + 1 :])
        if token.isdigit():
            return token
        known = [*self._fields, f'index {LABELS} "key"', *(name for name in self._functions if name != "index")]
        raise self._wrong(f"{token} is not known; there are {', '.join(known)}")

    def _index(self, arguments: Sequence[str]) -> str:
        if len(arguments) != 2 or arguments[0] != LABELS:  # noqa: PLR2004  # a map and a key
            raise self._wrong(f'write index {LABELS} "key"')
        return self._labels.get(arguments[1], "")  # as in Go: nothing for a key that is not there

    def _label(self, key: str) -> str:
        if key not in self._labels:
            raise self._wrong(f'map has no entry for key "{key}": the service has no such label')
        return self._labels[key]

    def _next(self, wanted: str) -> str:
        if self._at >= len(self._tokens):
            raise self._wrong(f"{wanted} is missing")
        self._at += 1
        return self._tokens[self._at - 1]

    def _wrong(self, problem: str) -> errors.Invalid:
        return errors.Invalid(f"{{{{{self._source}}}}}: {problem}")


def _join(arguments: Sequence[str]) -> str:
    """`join SEP a b ..`: the separator comes first, as in Docker's swarm mode."""
    return arguments[0].join(arguments[1:]) if arguments else ""
