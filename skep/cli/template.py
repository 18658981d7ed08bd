"""The part of Go's text/template that people use with --format. Pure.

Fields (`{{.Spec.Name}}`), `range`, `if`/`else`, `with`, pipelines, and the functions of Docker's
templates. Values are decoded JSON. Must not: evaluate anything but its own small language.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from skep import errors

TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*"|`[^`]*`)|(?P<number>-?\d+)|(?P<path>\$?(?:\.[A-Za-z_][\w-]*)+|\$|\.)"""
    r"""|(?P<word>[A-Za-z_]\w*)|(?P<pipe>\|)|(?P<open>\()(?P<nothing>)|(?P<close>\)))"""
)
DEPTH_MAX = 50  # of nested blocks and parentheses
MISSING = "<no value>"


@dataclasses.dataclass(frozen=True)
class Text:
    """Words between actions."""

    text: str


@dataclasses.dataclass(frozen=True)
class Action:
    """A pipeline whose value is printed."""

    source: str


@dataclasses.dataclass(frozen=True)
class Block:
    """range, if or with: what it looks at, its body, and its else part."""

    kind: str
    source: str
    body: "tuple[Part, ...]"
    otherwise: "tuple[Part, ...]"


Part = Text | Action | Block


class Template:
    """A parsed template. `render` may be called any number of times.

    Raises Invalid, naming the action, when the template is malformed or a field does not exist.
    """

    def __init__(self, source: str, *, strict: bool = False) -> None:
        """`strict`: an unknown field at the top is an error (table rows) and not `<no value>` (raw objects)."""
        self._strict = strict
        self._pieces = list(_split(source))
        self._parts, end = self._parse(0, depth=0)
        if end != len(self._pieces):
            raise errors.Invalid(f"--format: {{{{{self._pieces[end].source}}}}} closes nothing that was opened")

    def render(self, value: Any) -> str:
        """The template filled in with `value`."""
        return "".join(self._run(self._parts, value, value))

    def fields(self) -> list[str]:
        """Names of the top-level fields the template prints, in order."""
        return [match[1] for piece in self._pieces for match in re.finditer(r"\.([A-Za-z_]\w*)", piece.source)]

    def _parse(self, start: int, *, depth: int) -> tuple[tuple[Part, ...], int]:
        if depth > DEPTH_MAX:
            raise errors.Invalid("--format: blocks are nested too deep")
        parts: list[Part] = []
        index = start
        while index < len(self._pieces):
            piece = self._pieces[index]
            word, _, rest = piece.source.partition(" ")
            if not piece.action:
                parts.append(Text(piece.source))
            elif word in ("end", "else"):
                break
            elif word in ("range", "if", "with"):
                block, index = self._block(word, rest, index + 1, depth=depth)
                parts.append(block)
            elif piece.source and not piece.source.startswith("/*"):
                parts.append(Action(piece.source))
            index += 1
        return tuple(parts), index

    def _block(self, kind: str, source: str, start: int, *, depth: int) -> tuple[Block, int]:
        body, index = self._parse(start, depth=depth + 1)
        otherwise: tuple[Part, ...] = ()
        if index < len(self._pieces) and self._pieces[index].source.startswith("else"):
            word, _, rest = self._pieces[index].source.removeprefix("else").strip().partition(" ")
            if word == "if":
                nested, index = self._block("if", rest, index + 1, depth=depth + 1)
                return Block(kind, source, body, (nested,)), index
            otherwise, index = self._parse(index + 1, depth=depth + 1)
        if index >= len(self._pieces):
            raise errors.Invalid(f"--format: {{{{{kind} {source}}}}} lacks its {{{{end}}}}")
        return Block(kind, source, body, otherwise), index

    def _run(self, parts: Sequence[Part], dot: Any, root: Any) -> Iterator[str]:
        for part in parts:
            if isinstance(part, Text):
                yield part.text
                continue
            value = _Evaluator(part.source, dot, root, strict=self._strict).result()
            if isinstance(part, Action):
                yield show(value)
            elif part.kind == "range":
                members = value.values() if isinstance(value, Mapping) else value or ()
                if isinstance(members, str | int | float):
                    raise errors.Invalid(f"--format: cannot range over {part.source}: it is not a list")
                listed = list(members)
                for member in listed:
                    yield from self._run(part.body, member, root)
                if not listed:
                    yield from self._run(part.otherwise, dot, root)
            elif value:
                yield from self._run(part.body, value if part.kind == "with" else dot, root)
            else:
                yield from self._run(part.otherwise, dot, root)


@dataclasses.dataclass(frozen=True)
class _Piece:
    source: str
    action: bool


def _split(source: str) -> Iterator[_Piece]:
    """Text and actions in turn; `{{-` and `-}}` eat the white space beside them."""
    position = 0
    trim = False
    while position < len(source):
        start = source.find("{{", position)
        words = source[position:] if start < 0 else source[position:start]
        words = words.lstrip() if trim else words
        if start >= 0 and source.startswith("{{- ", start):
            words = words.rstrip()
        if words:
            yield _Piece(words, action=False)
        if start < 0:
            return
        end = source.find("}}", start)
        if end < 0:
            raise errors.Invalid(f"--format: {source[start : start + 40]!r} has no closing }}}}")
        inner = source[start + 2 : end]
        trim = inner.endswith(" -")
        yield _Piece(inner.removeprefix("- ").removesuffix(" -").strip(), action=True)
        position = end + 2


class _Evaluator:
    """One pipeline: commands separated by |, each value handed on as the last argument of the next."""

    def __init__(self, source: str, dot: Any, root: Any, *, strict: bool) -> None:
        self._source, self._dot, self._root, self._strict = source, dot, root, strict
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(source.rstrip()):
            match = TOKEN.match(source, position)
            if match is None or match.lastgroup is None:
                raise errors.Invalid(f"--format: {{{{{source}}}}}: cannot understand {source[position:].strip()!r}")
            kind = "open" if match.lastgroup == "nothing" else match.lastgroup
            self._tokens.append((kind, match[kind]))
            position = match.end()
        self._at = 0

    def result(self) -> Any:
        value = self._pipeline(depth=0)
        if self._at != len(self._tokens):
            raise errors.Invalid(f"--format: {{{{{self._source}}}}}: {self._tokens[self._at][1]!r} is out of place")
        return value

    def _pipeline(self, *, depth: int) -> Any:
        value = self._command([], depth=depth)
        while self._at < len(self._tokens) and self._tokens[self._at][0] == "pipe":
            self._at += 1
            value = self._command([value], depth=depth)
        return value

    def _command(self, piped: list[Any], *, depth: int) -> Any:
        if self._at >= len(self._tokens):
            raise errors.Invalid(f"--format: {{{{{self._source}}}}}: something is missing")
        kind, token = self._tokens[self._at]
        if kind != "word" or token in ("true", "false", "nil"):
            value = self._operand(depth=depth)
            if piped:
                raise errors.Invalid(f"--format: {{{{{self._source}}}}}: {token!r} is not a function")
            return value
        self._at += 1
        arguments: list[Any] = []
        while self._at < len(self._tokens) and self._tokens[self._at][0] not in ("pipe", "close"):
            arguments.append(self._operand(depth=depth))
        function = FUNCTIONS.get(token)
        if function is None:
            raise errors.Invalid(f"--format: function {token!r} is not known; there are {', '.join(sorted(FUNCTIONS))}")
        try:
            return function(*arguments, *piped)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as problem:
            raise errors.Invalid(f"--format: {{{{{self._source}}}}}: {token}: {problem}") from problem

    def _operand(self, *, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise errors.Invalid("--format: parentheses are nested too deep")
        kind, token = self._tokens[self._at]
        self._at += 1
        if kind == "string":
            return token[1:-1] if token[0] == "`" else json.loads(token)
        if kind == "number":
            return int(token)
        if kind == "path":
            return self._path(token)
        if kind == "open":
            value = self._pipeline(depth=depth + 1)
            if self._at >= len(self._tokens) or self._tokens[self._at][0] != "close":
                raise errors.Invalid(f"--format: {{{{{self._source}}}}}: a ) is missing")
            self._at += 1
            return value
        if kind == "word" and token in ("true", "false", "nil"):
            return {"true": True, "false": False, "nil": None}[token]
        raise errors.Invalid(f"--format: {{{{{self._source}}}}}: {token!r} is out of place")

    def _path(self, token: str) -> Any:
        value = self._root if token.startswith("$") else self._dot
        names = [name for name in token.removeprefix("$").split(".") if name]
        for depth, name in enumerate(names):
            if isinstance(value, Mapping):
                if self._strict and depth == 0 and name not in value:
                    raise errors.Invalid(f"--format: there is no field .{name}; there are {_names(value)}")
                value = value.get(name)
            elif value is not None:
                raise errors.Invalid(f"--format: {{{{{self._source}}}}}: .{name} is asked of a plain value")
        return value


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(f".{name}" for name in row)


def show(value: Any) -> str:
    """A value as Go's templates print it."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(show(member) for member in value) + "]"
    return str(value)


def to_json(value: Any) -> str:
    """Compact JSON on one line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else value[key]
    return value


def _printf(pattern: str, *arguments: Any) -> str:
    plain = re.sub(r"%(-?\d*(?:\.\d+)?)[vq]", r"%\1s", pattern)
    return plain % tuple(argument if isinstance(argument, int | float) else show(argument) for argument in arguments)


def _pad(text: Any, left: int, right: int) -> str:
    return f"{' ' * left}{show(text)}{' ' * right}" if text else ""


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": to_json,
    "upper": lambda text: show(text).upper(),
    "lower": lambda text: show(text).lower(),
    "title": lambda text: show(text).title(),
    "join": lambda members, separator: separator.join(show(member) for member in members or ()),
    "split": lambda text, separator: text.split(separator),
    "truncate": lambda text, length: show(text)[:length],
    "pad": _pad,
    "len": len,
    "index": _index,
    "print": lambda *values: "".join(show(value) for value in values),
    "println": lambda *values: " ".join(show(value) for value in values) + "\n",
    "printf": _printf,
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, other: first != other,
    "lt": lambda first, other: first < other,
    "gt": lambda first, other: first > other,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
}
