"""--format."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep import errors
from skep.cli import template

DATA = {
    "ID": "abc",
    "Spec": {"Name": "web", "Labels": {"b": "2", "a": "1"}, "Env": ["A=1", "B=2"], "Replicas": 3, "Init": False},
    "Empty": None,
}


def render(source: str) -> str:
    return template.Template(source).render(DATA)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{.ID}} {{.Spec.Name}}", "abc web"),
        ("{{ upper .Spec.Name }}{{lower \"X\"}}", "WEBx"),
        ("{{json .Spec.Env}}", '["A=1","B=2"]'),
        ("{{.Spec.Labels}}", "map[a:1 b:2]"),
        ("{{.Spec.Env}}", "[A=1 B=2]"),
        ("{{range .Spec.Env}}<{{.}}>{{end}}", "<A=1><B=2>"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range .Spec.Env}}{{$.ID}}{{end}}", "abcabc"),
        ("{{if .Spec.Init}}yes{{else if .ID}}maybe{{else}}no{{end}}", "maybe"),
        ("{{with .Spec}}{{.Name}}{{end}}", "web"),
        ('{{join .Spec.Env ","}}', "A=1,B=2"),
        ("{{.Spec.Name | upper | printf \"%s!\"}}", "WEB!"),
        ('{{index .Spec.Labels "a"}}{{index .Spec.Env 1}}', "1B=2"),
        ("{{len .Spec.Env}}", "2"),
        ("{{(index .Spec.Env 0) | lower}}", "a=1"),
        ('{{if eq .Spec.Replicas 3}}three{{end}}', "three"),
        ('{{if and .ID (not .Spec.Init)}}ok{{end}}', "ok"),
        ("{{.Nope.Deeper}}", "<no value>"),
        ("a {{- .ID -}} b", "aabcb"),
        ("{{/* a remark */}}x", "x"),
        ("plain", "plain"),
        ('{{println "a" 1}}', "a 1\n"),
        ("{{.Spec.Init}}", "false"),
    ],
)  # fmt: skip
def test_the_language(source: str, expected: str) -> None:
    assert render(source) == expected


@pytest.mark.parametrize(
    "source",
    ["{{.ID", "{{range .Spec.Env}}x", "{{end}}", "{{nope .ID}}", "{{.ID.X.Y}}",
     "{{join}}", "{{|}}", "{{(.ID}}", "{{range .ID}}{{end}}",
     "{{.ID .ID}}", "{{?}}", '{{index .Spec.Env 9}}', "{{" + "(" * 80 + ".ID" + ")" * 80 + "}}", "{{if .ID}}" * 80],
)  # fmt: skip
def test_what_is_wrong_is_invalid_and_says_so(source: str) -> None:
    with pytest.raises(errors.Invalid, match="--format"):
        render(source)


def test_rows_refuse_unknown_fields_and_name_the_known() -> None:
    with pytest.raises(errors.Invalid, match=r"\.Nme.*\.ID, \.Name"):
        template.Template("{{.Nme}}", strict=True).render({"ID": "1", "Name": "n"})


@given(st.text(alphabet='{}.|() aI"D-range', max_size=40))
def test_nothing_but_invalid_is_ever_raised(source: str) -> None:
    with contextlib.suppress(errors.Invalid):
        render(source)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each, max_size=3)))
def test_json_comes_back(value: object) -> None:
    assert json.loads(template.Template("{{json .}}").render(value)) == value
