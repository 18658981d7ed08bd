"""docs/parity.md names a test for every rule, and every test that it names exists."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "parity.md"
REFERENCE = re.compile(r"`([\w/]+\.py)::(\w+)`")
ROWS_MIN = 80  # a page that lost its tables would pass otherwise


def rows() -> list[str]:
    """The tables' rows without their heads."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    heads = ("| Rule |", "| Promise |", "|---")
    return [line for line in lines if not line.startswith(heads)]


def test_every_rule_names_a_test() -> None:
    found = rows()
    assert len(found) >= ROWS_MIN
    assert [row for row in found if not REFERENCE.search(row)] == []


def test_every_test_that_is_named_exists() -> None:
    known: dict[str, set[str]] = {}
    missing: list[str] = []
    for path, name in REFERENCE.findall(PAGE.read_text()):
        if path not in known:
            file = ROOT / "tests" / path
            tree = ast.parse(file.read_text()) if file.exists() else ast.Module([], [])
            known[path] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        if not name.startswith("test_") or name not in known[path]:
            missing.append(f"{path}::{name}")
    assert missing == []
