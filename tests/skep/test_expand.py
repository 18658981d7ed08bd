"""Placeholders: what they become, and what is refused."""

import pytest

from skep import errors, expand

FIELDS = {**dict.fromkeys(expand.FIELDS, "x"), ".Task.Slot": "3", ".Service.Name": "web", ".Node.Hostname": "n1"}
LABELS = {"tier": "front", "com.x/y": "z"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{.Service.Name}}-{{ .Task.Slot }}", "web-3"),
        ("a {{- .Task.Slot -}} b", "a3b"),
        ("{{.Service.Labels.tier}}", "front"),
        ('{{index .Service.Labels "com.x/y"}}', "z"),
        ('{{index .Service.Labels "none"}}', ""),
        ('{{join "-" .Service.Name .Task.Slot (index .Service.Labels "tier")}}', "web-3-front"),
        ('{{join "," "a" `b` "c\\"d"}}', 'a,b,c"d'),
        ('{{"}}"}}', "}}"),
        ("{{/* nothing */}}x", "x"),
        ("{{shout .Task.Slot}}", "3!"),
    ],
)
def test_expands(text: str, expected: str) -> None:
    assert expand.expand(text, FIELDS, LABELS, {"shout": lambda words: words[0] + "!"}) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{.Nope}}", "is not known"),
        ("{{.Service.Labels.none}}", 'map has no entry for key "none"'),
        ("{{.Service.Labels}}", "is not known"),
        ("{{index .Task.Slot}}", "write index"),
        ("{{join .Service.Labels}}", "is a map"),
        ("{{.Task.Slot", "unclosed"),
        ("{{}}", "missing"),
        ("{{(.Task.Slot}}", "missing"),
        ("{{" + "(" * 30 + "}}", "too many parentheses"),
        ("{{.Task.Slot .Task.ID}}", "not expected"),
        ("{{$x}}", "cannot read"),
    ],
)
def test_refuses(text: str, problem: str) -> None:
    with pytest.raises(errors.Invalid, match=problem):
        expand.expand(text, FIELDS, LABELS)
