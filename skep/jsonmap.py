"""Any protobuf message to and from Docker's JSON, driven by the descriptors in proto/skep/v1.

Spelling comes from `json_name`, enumerations are written in the words of the option `word`, `(always)` fields are
written even when empty, `(hidden)` fields never. Integers of all widths are JSON numbers, durations are integers of
nanoseconds, times are RFC 3339 in UTC with nine decimals, bytes are base64. Reading ignores unknown fields and takes
null for absence; whatever does not fit raises Invalid with the path of the field. This module must not know any
message by name.
"""

import base64
import binascii
import calendar
import dataclasses
import datetime
import functools
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf import descriptor, message, timestamp_pb2

from skep import errors
from skep.v1 import options_pb2

M = TypeVar("M", bound=message.Message)
Json = dict[str, Any]

_FD = descriptor.FieldDescriptor
_TIMESTAMP = timestamp_pb2.Timestamp.DESCRIPTOR.full_name
_SHOWN_MAX = 64  # characters of a wrong value that are repeated in the error
_SIGNED = {_FD.TYPE_INT32: 31, _FD.TYPE_INT64: 63, _FD.TYPE_SINT32: 31, _FD.TYPE_SINT64: 63}
_UNSIGNED = {_FD.TYPE_UINT32: 32, _FD.TYPE_UINT64: 64, _FD.TYPE_FIXED32: 32, _FD.TYPE_FIXED64: 64}
_FLOATS = (_FD.TYPE_FLOAT, _FD.TYPE_DOUBLE)
_DURATION = re.compile(r"-?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+")
_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9})\d*)?(?:([Zz])|([+-])(\d{2}):(\d{2}))"
)
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799  # years 1 to 9999
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


# -------------------------------------------------------------------- public


def to_json(source: message.Message) -> Json:
    """The message as a JSON object: fresh dicts and lists, free for the caller to change."""
    return {field.name: value for field in _fields(source.DESCRIPTOR) if (value := field.write(source)) is not None}


def from_json(kind: type[M], data: object, *, path: str = "") -> M:
    """A message of `kind` from decoded JSON. Raises Invalid naming the bad field, with `path` in front of it."""
    target = kind()
    _read_message(target, data, path)
    return target


def word_of(kind: Any, number: int) -> str:
    """Docker's word for a value of an enumeration (`pb.TaskState`, 512 → "running"); empty when it has none."""
    return _words(kind.DESCRIPTOR)[0].get(number, "")


def words_of(kind: Any) -> dict[str, int]:
    """All words of an enumeration and their numbers, in the order of declaration."""
    return dict(_words(kind.DESCRIPTOR)[1])


def format_time(stamp: timestamp_pb2.Timestamp) -> str:
    """RFC 3339 in UTC with nine decimals: fixed width, so that it sorts and lines up."""
    # An agent's clock may say anything; a time outside the calendar must not spoil a whole list.
    seconds = min(max(stamp.seconds, _SECONDS_MIN), _SECONDS_MAX)
    return f"{_format_second(seconds)}.{min(max(stamp.nanos, 0), 999_999_999):09d}Z"


def parse_time(text: str) -> timestamp_pb2.Timestamp:
    """A timestamp from RFC 3339 with any offset and up to nine decimals; ValueError when it is something else."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("not a time in RFC 3339")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    moment = datetime.datetime(year, month, day, hour, minute, min(second, 59), tzinfo=datetime.UTC)
    seconds = calendar.timegm(moment.timetuple()) + (1 if second == 60 else 0)  # noqa: PLR2004 a leap second
    if second > 60:  # noqa: PLR2004
        raise ValueError("not a second")
    if match.group(9):
        offset_s = int(match.group(10)) * 3600 + int(match.group(11)) * 60
        seconds += -offset_s if match.group(9) == "+" else offset_s
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=int((match.group(7) or "0").ljust(9, "0")))


# -------------------------------------------------------------------- one plan per message type


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """How one field is written and read."""

    name: str  # in JSON
    field: descriptor.FieldDescriptor
    write: Callable[[message.Message], Any]  # None = leave it out
    read: Callable[[message.Message, Any, str], None]


@functools.cache
def _fields(kind: descriptor.Descriptor) -> tuple[_Field, ...]:
    found: list[_Field] = []
    for field in kind.fields:
        options = field.GetOptions().Extensions
        if options[options_pb2.hidden]:
            continue
        found.append(_Field(field.json_name, field, _writer(field, always=options[options_pb2.always]), _reader(field)))
    return tuple(found)


@functools.cache
def _by_name(kind: descriptor.Descriptor) -> dict[str, _Field]:
    """Exact names, and lower-case ones: Go's decoder, which Docker's clients rely on, does not mind the case."""
    fields = {field.name: field for field in _fields(kind)}
    return {field.name.lower(): field for field in fields.values()} | fields


@functools.cache
def _words(kind: descriptor.EnumDescriptor) -> tuple[dict[int, str], dict[str, int]]:
    by_number = {
        value.number: word for value in kind.values if (word := value.GetOptions().Extensions[options_pb2.word])
    }
    return by_number, {word: number for number, word in by_number.items()}


# -------------------------------------------------------------------- writing


def _writer(field: descriptor.FieldDescriptor, *, always: bool) -> Callable[[message.Message], Any]:
    name = field.name
    if _is_map(field):
        value_of = _value_writer(_value_field(field))

        def write_map(source: message.Message) -> Any:
            entries = getattr(source, name)
            return {str(key): value_of(entries[key]) for key in sorted(entries)} if entries or always else None

        return write_map
    value_of = _value_writer(field)
    if field.is_repeated:

        def write_list(source: message.Message) -> Any:
            items = getattr(source, name)
            return [value_of(item) for item in items] if items or always else None

        return write_list
    if field.has_presence:

        def write_present(source: message.Message) -> Any:
            return value_of(getattr(source, name)) if always or source.HasField(name) else None

        return write_present

    def write_plain(source: message.Message) -> Any:
        value = getattr(source, name)
        return value_of(value) if always or value else None

    return write_plain


def _value_writer(field: descriptor.FieldDescriptor) -> Callable[[Any], Any]:
    if field.message_type is not None:
        return format_time if field.message_type.full_name == _TIMESTAMP else to_json
    if field.enum_type is not None:
        return _words(field.enum_type)[0].get
    if field.type == _FD.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode()
    if field.type == _FD.TYPE_FLOAT:
        return _shortest_float
    return lambda value: value


def _shortest_float(value: float) -> float | int:
    """The shortest number that is the same 32-bit float: 0.1, not 0.10000000149."""
    if value.is_integer():
        return int(value)
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", value):
            return short
    return value


@functools.lru_cache(maxsize=4096)
def _format_second(seconds: int) -> str:
    # Not strftime("%Y"): it writes the year 1 as "1" on Linux.
    return (_EPOCH + datetime.timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


# -------------------------------------------------------------------- reading


def _read_message(target: message.Message, data: object, path: str) -> None:
    if not isinstance(data, dict):
        raise _wrong(path, "an object", data)
    known = _by_name(target.DESCRIPTOR)
    chosen: dict[str, str] = {}  # oneof -> member
    for key, value in data.items():
        if value is None:
            continue
        field = known.get(key) or known.get(str(key).lower())
        if field is None:
            continue
        choice = field.field.containing_oneof
        if choice is not None and field.field.message_type is not None:
            before = chosen.setdefault(choice.name, field.name)
            if before != field.name:
                raise errors.Invalid(f"{_at(path)}must specify only one of {before} and {field.name}")
        field.read(target, value, f"{path}.{field.name}" if path else field.name)


def _reader(field: descriptor.FieldDescriptor) -> Callable[[message.Message, Any, str], None]:
    name = field.name
    if _is_map(field):
        return _map_reader(field)
    if field.message_type is not None and field.message_type.full_name != _TIMESTAMP:
        if field.is_repeated:

            def read_messages(target: message.Message, data: Any, path: str) -> None:
                for position, item in enumerate(_list(data, path)):
                    _read_message(getattr(target, name).add(), {} if item is None else item, f"{path}[{position}]")

            return read_messages

        def read_one(target: message.Message, data: Any, path: str) -> None:
            inner = getattr(target, name)
            inner.SetInParent()
            _read_message(inner, data, path)

        return read_one
    value_of = _value_reader(field)
    if field.is_repeated:

        def read_values(target: message.Message, data: Any, path: str) -> None:
            items = [value_of(item, f"{path}[{position}]") for position, item in enumerate(_list(data, path))]
            getattr(target, name).extend(items)

        return read_values
    if field.message_type is not None:

        def read_time(target: message.Message, data: Any, path: str) -> None:
            getattr(target, name).CopyFrom(value_of(data, path))

        return read_time

    def read_value(target: message.Message, data: Any, path: str) -> None:
        setattr(target, name, value_of(data, path))

    return read_value


def _map_reader(field: descriptor.FieldDescriptor) -> Callable[[message.Message, Any, str], None]:
    value_field = _value_field(field)
    if value_field.message_type is not None or _entry(field).fields_by_name["key"].type != _FD.TYPE_STRING:
        raise errors.Bug(f"{field.full_name}: only maps from strings to plain values have a JSON form")
    value_of = _value_reader(value_field)

    def read_map(target: message.Message, data: Any, path: str) -> None:
        if not isinstance(data, dict):
            raise _wrong(path, "an object of strings", data)
        entries = getattr(target, field.name)
        for key, value in data.items():
            _check_text(key, path)
            entries[key] = value_field.default_value if value is None else value_of(value, f"{path}[{key}]")

    return read_map


def _value_reader(field: descriptor.FieldDescriptor) -> Callable[[Any, str], Any]:
    kind = field.type
    if kind in _SIGNED:
        return functools.partial(_integer, low=-(2 ** _SIGNED[kind]), high=2 ** _SIGNED[kind] - 1)
    if kind in _UNSIGNED:
        return functools.partial(_integer, low=0, high=2 ** _UNSIGNED[kind] - 1)
    if kind in _FLOATS:
        return _number
    if kind == _FD.TYPE_BOOL:
        return _boolean
    if kind == _FD.TYPE_BYTES:
        return _bytes
    if field.enum_type is not None:
        return functools.partial(_enum, kind=field.enum_type)
    if kind == _FD.TYPE_MESSAGE:
        return _time
    if kind == _FD.TYPE_STRING:
        return _check_text
    raise errors.Bug(f"{field.full_name}: no JSON form for this type")


def _integer(data: Any, path: str, *, low: int, high: int) -> int:
    if isinstance(data, bool) or not isinstance(data, int):
        unit = " number of nanoseconds" if isinstance(data, str) and _DURATION.fullmatch(data) else ""
        raise _wrong(path, f"an integer{unit}", data)
    if data < low:
        expected = "a non-negative integer" if low == 0 else f"an integer of at least {low}"
        raise _wrong(path, expected, data)
    if data > high:
        raise _wrong(path, f"an integer of at most {high}", data)
    return data


def _number(data: Any, path: str) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise _wrong(path, "a number", data)
    try:
        struct.pack("f", data)
        if math.isfinite(data):
            return float(data)
    except (OverflowError, struct.error):
        pass
    raise _wrong(path, "a number in the range of a 32-bit float", data)


def _boolean(data: Any, path: str) -> bool:
    if not isinstance(data, bool):
        raise _wrong(path, "true or false", data)
    return data


def _bytes(data: Any, path: str) -> bytes:
    if not isinstance(data, str):
        raise _wrong(path, "a string of base64", data)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        # The value may be a secret: it is not repeated.
        raise errors.Invalid(f"{_at(path)}expected a string of base64") from None


def _enum(data: Any, path: str, *, kind: descriptor.EnumDescriptor) -> int:
    words = _words(kind)[1]
    if data == "":  # Docker's clients leave a choice open this way
        return 0
    if not isinstance(data, str) or data not in words:
        raise _wrong(path, "one of " + ", ".join(words), data)
    return words[data]


def _time(data: Any, path: str) -> timestamp_pb2.Timestamp:
    if not isinstance(data, str):
        raise _wrong(path, "a time such as 2006-01-02T15:04:05.999999999Z", data)
    try:
        return parse_time(data)
    except ValueError:
        raise _wrong(path, "a time such as 2006-01-02T15:04:05.999999999Z", data) from None


def _check_text(data: Any, path: str) -> str:
    if not isinstance(data, str):
        raise _wrong(path, "a string", data)
    try:
        data.encode()
    except UnicodeEncodeError:
        raise errors.Invalid(f"{_at(path)}half a surrogate pair is not text") from None
    return data


def _list(data: Any, path: str) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(path, "a list", data)
    return data


# -------------------------------------------------------------------- small helpers


def _is_map(field: descriptor.FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _value_field(field: descriptor.FieldDescriptor) -> descriptor.FieldDescriptor:
    return _entry(field).fields_by_name["value"]


def _entry(field: descriptor.FieldDescriptor) -> descriptor.Descriptor:
    if field.message_type is None:
        raise errors.Bug(f"{field.full_name} is not a map")
    return field.message_type


def _at(path: str) -> str:
    return f"{path}: " if path else ""


def _wrong(path: str, expected: str, data: object) -> errors.Invalid:
    if data is None or isinstance(data, bool):
        got = {None: "null", True: "true", False: "false"}[data]
    elif isinstance(data, Mapping):
        got = "an object"
    elif isinstance(data, list):
        got = "a list"
    else:
        got = repr(data)
        if len(got) > _SHOWN_MAX:
            got = got[:_SHOWN_MAX] + "…"
    return errors.Invalid(f"{_at(path)}expected {expected}, got {got}")
