"""The map between messages and Docker's JSON: spelling, presence, errors that name the field, and the round trip."""

import json
import struct
from typing import Any

import pytest
from google.protobuf import descriptor, message, timestamp_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from skep import errors, jsonmap, pb
from skep.v1 import options_pb2

FD = descriptor.FieldDescriptor
MESSAGES: list[type[message.Message]] = [
    pb.ServiceSpec, pb.NodeSpec, pb.ClusterSpec, pb.Node, pb.Service, pb.Task, pb.Revision, pb.Cluster, pb.Secret,
    pb.Config,
]  # fmt: skip

INTEGERS = {
    FD.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FD.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FD.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FD.TYPE_UINT64: st.integers(0, 2**64 - 1),
}
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda value: value + 0.0)  # no -0.0
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
STAMPS = st.builds(
    timestamp_pb2.Timestamp,
    seconds=st.integers(-62_135_596_800, 253_402_300_799),
    nanos=st.integers(0, 999_999_999),
)


def plain(field: descriptor.FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type in INTEGERS:
        return INTEGERS[field.type]
    if field.enum_type is not None:
        return st.sampled_from(
            [v.number for v in field.enum_type.values if v.GetOptions().Extensions[options_pb2.word]]
        )
    return {FD.TYPE_BOOL: st.booleans(), FD.TYPE_BYTES: st.binary(max_size=8), FD.TYPE_FLOAT: FLOATS}.get(
        field.type, TEXT
    )


@st.composite
def filled(draw: st.DrawFn, kind: type[message.Message]) -> message.Message:
    """A message with a random choice of its visible fields set."""
    target = kind()
    fill(draw, target)
    return target


def fill(draw: st.DrawFn, target: message.Message) -> None:
    chosen: set[str] = set()
    for field in target.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        group = oneof.name if oneof is not None and len(oneof.fields) > 1 else ""
        if field.GetOptions().Extensions[options_pb2.hidden] or group in chosen:
            continue
        options = field.GetOptions().Extensions
        always = options[options_pb2.always] and field.message_type is not None and not field.is_repeated
        if not always and not draw(st.booleans()):
            continue
        if group:
            chosen.add(group)
        fill_field(draw, target, field)


def fill_field(draw: st.DrawFn, target: message.Message, field: Any) -> None:
    inner = field.message_type
    value = getattr(target, field.name)
    if inner is not None and inner.GetOptions().map_entry:
        value.update(draw(st.dictionaries(TEXT, plain(inner.fields_by_name["value"]), max_size=3)))
    elif inner is not None and inner.full_name == "google.protobuf.Timestamp":
        value.CopyFrom(draw(STAMPS))
    elif inner is not None and field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            fill(draw, value.add())
    elif inner is not None:
        value.SetInParent()
        fill(draw, value)
    elif field.is_repeated:
        value.extend(draw(st.lists(plain(field), max_size=3)))
    else:
        setattr(target, field.name, draw(plain(field)))


@settings(max_examples=40)
@given(st.sampled_from(MESSAGES).flatmap(filled))
def test_round_trip(source: message.Message) -> None:
    text = json.dumps(jsonmap.to_json(source))
    back = jsonmap.from_json(type(source), json.loads(text))
    again = jsonmap.to_json(back)
    assert json.loads(text) == json.loads(json.dumps(again))
    assert back == source


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["Name", "Labels", "TaskTemplate", "ContainerSpec", "Mode", "Replicated", "Replicas", "Image", "Env", "Mounts"]


@settings(max_examples=60)
@given(st.recursive(JSON_VALUES, lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)))
def test_any_json_is_read_or_refused_as_invalid(data: Any) -> None:
    try:
        jsonmap.from_json(pb.ServiceSpec, data)
    except errors.Invalid:
        return


BAD: list[tuple[type[message.Message], Any, str]] = [
    (
        pb.ServiceSpec,
        {"TaskTemplate": {"ContainerSpec": {"StopGracePeriod": "1s"}}},
        "TaskTemplate.ContainerSpec.StopGracePeriod: expected an integer number of nanoseconds, got '1s'",
    ),
    (
        pb.ServiceSpec,
        {"Mode": {"Replicated": {"Replicas": -1}}},
        "Mode.Replicated.Replicas: expected a non-negative integer, got -1",
    ),
    (
        pb.ServiceSpec,
        {"Mode": {"Replicated": {"Replicas": 2.0}}},
        "Mode.Replicated.Replicas: expected an integer, got 2.0",
    ),
    (
        pb.ServiceSpec,
        {"Mode": {"Replicated": {"Replicas": True}}},
        "Mode.Replicated.Replicas: expected an integer, got true",
    ),
    (
        pb.ServiceSpec,
        {"Mode": {"Replicated": {}, "Global": {}}},
        "Mode: must specify only one of Replicated and Global",
    ),
    (pb.ServiceSpec, {"Labels": []}, "Labels: expected an object of strings, got a list"),
    (pb.ServiceSpec, {"Labels": {"a": 1}}, "Labels[a]: expected a string, got 1"),
    (pb.ServiceSpec, {"Name": 3}, "Name: expected a string, got 3"),
    (pb.ServiceSpec, [], "expected an object, got a list"),
    (
        pb.ServiceSpec,
        {"TaskTemplate": {"ContainerSpec": {"Env": ["a", 1]}}},
        "TaskTemplate.ContainerSpec.Env[1]: expected a string, got 1",
    ),
    (
        pb.ServiceSpec,
        {"TaskTemplate": {"ContainerSpec": {"Mounts": [{"Type": "nfs"}]}}},
        "TaskTemplate.ContainerSpec.Mounts[0].Type: expected one of bind, volume, tmpfs, got 'nfs'",
    ),
    (
        pb.ServiceSpec,
        {"EndpointSpec": {"Ports": [{"TargetPort": 2**40}]}},
        "EndpointSpec.Ports[0].TargetPort: expected an integer of at most 4294967295, got 1099511627776",
    ),
    (
        pb.ServiceSpec,
        {"UpdateConfig": {"MaxFailureRatio": "x"}},
        "UpdateConfig.MaxFailureRatio: expected a number, got 'x'",
    ),
    (
        pb.Task,
        {"CreatedAt": "yesterday"},
        "CreatedAt: expected a time such as 2006-01-02T15:04:05.999999999Z, got 'yesterday'",
    ),
    (pb.ConfigSpec, {"Data": "%%"}, "Data: expected a string of base64"),
]


@pytest.mark.parametrize(("kind", "data", "text"), BAD, ids=[text for _, _, text in BAD])
def test_errors_name_the_field(kind: type[message.Message], data: Any, text: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        jsonmap.from_json(kind, data)
    assert str(caught.value) == text


def test_presence_and_always() -> None:
    empty = jsonmap.to_json(pb.ServiceSpec())
    assert empty == {"Labels": {}}
    spec = jsonmap.from_json(
        pb.ServiceSpec, {"Mode": {"Replicated": {}}, "TaskTemplate": {"Resources": {"Limits": {}}}}
    )
    assert spec.mode.WhichOneof("mode") == "replicated"
    assert not spec.mode.replicated.HasField("replicas")
    assert jsonmap.to_json(spec)["TaskTemplate"] == {"Resources": {"Limits": {}}, "ForceUpdate": 0}
    zero = jsonmap.from_json(pb.ServiceSpec, {"Mode": {"Replicated": {"Replicas": 0}}})
    assert jsonmap.to_json(zero)["Mode"] == {"Replicated": {"Replicas": 0}}
    cluster = jsonmap.to_json(pb.ClusterSpec())
    assert cluster["EncryptionConfig"] == {"AutoLockManagers": False}
    assert cluster["Orchestration"] == {}


def test_hidden_fields_are_neither_written_nor_read() -> None:
    spec = pb.ContainerSpec(image="a", registry_auth="secret")
    assert jsonmap.to_json(spec) == {"Image": "a"}
    assert jsonmap.from_json(pb.ContainerSpec, {"RegistryAuth": "x", "registryAuth": "x"}).registry_auth == ""
    assert "RootCA" not in json.dumps(jsonmap.to_json(pb.Cluster(root_ca=pb.RootCA(key_pem=b"k"))))


def test_null_is_absent_case_does_not_matter_and_unknown_fields_are_ignored() -> None:
    spec = jsonmap.from_json(pb.ServiceSpec, {"name": "web", "Labels": None, "Mode": None, "Future": [{}]})
    assert spec == pb.ServiceSpec(name="web")
    task = jsonmap.from_json(pb.TaskSpec, {"ContainerSpec": {"Labels": {"a": None}}})
    assert dict(task.container.labels) == {"a": ""}


def test_numbers_keep_their_kind() -> None:
    config = pb.UpdateConfig(max_failure_ratio=0.1, delay=2**40)
    text = json.dumps(jsonmap.to_json(config))
    assert '"MaxFailureRatio": 0.1,' in text
    assert f'"Delay": {2**40}' in text
    assert json.dumps(jsonmap.to_json(pb.UpdateConfig())["MaxFailureRatio"]) == "0"


@given(FLOATS)
def test_floats_are_short_and_exact(value: float) -> None:
    short = jsonmap.to_json(pb.UpdateConfig(max_failure_ratio=value))["MaxFailureRatio"]
    assert struct.pack("f", short) == struct.pack("f", value)


TIMES = [
    ("2026-11-23T20:02:10.422315617Z", "2026-11-23T20:02:10.422315617Z"),
    ("2026-11-23T20:02:10Z", "2026-11-23T20:02:10.000000000Z"),
    ("2026-11-23T22:02:10.5+02:00", "2026-11-23T20:02:10.500000000Z"),
    ("2026-11-23t14:02:10-06:00", "2026-11-23T20:02:10.000000000Z"),
    ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000000Z"),
    ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000000Z"),
]


@pytest.mark.parametrize(("text", "written"), TIMES)
def test_times(text: str, written: str) -> None:
    assert jsonmap.format_time(jsonmap.parse_time(text)) == written


@pytest.mark.parametrize(
    "text", ["", "2026-11-23", "2026-11-23T20:02:10", "2026-13-23T20:02:10Z", "1", "2026-11-23T20:02:61Z"]
)
def test_times_without_zone_or_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        jsonmap.parse_time(text)


def test_a_time_outside_the_calendar_does_not_spoil_a_list() -> None:
    assert jsonmap.format_time(timestamp_pb2.Timestamp(seconds=2**60)).startswith("9999-12-31T23:59:59")


def test_words() -> None:
    assert jsonmap.word_of(pb.TaskState, pb.TASK_STATE_RUNNING) == "running"
    assert jsonmap.word_of(pb.UpdateState, 0) == ""
    assert list(jsonmap.words_of(pb.UpdateOrder)) == ["stop-first", "start-first"]
