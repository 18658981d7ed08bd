"""The constraint language: its grammar, its errors in Docker's words, and what satisfies it."""

import pytest

from manager.scheduler import constraints
from skep import errors, pb

OPERATOR = "constraint expected one operator from ==, !="


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", OPERATOR),
        ("node.role", OPERATOR),
        ("node.role=manager", OPERATOR),
        ("node.cpus > 3", OPERATOR),
        ("node role==manager", "key 'node role' is invalid"),
        ("==manager", "key '' is invalid"),
        ("a==manager", "key 'a' is invalid"),  # a key has two characters at least
        ("1node==x", "key '1node' is invalid"),
        ("node.role==", "value '' is invalid"),
        ("node.role==a~b", "value 'a~b' is invalid"),
        ("node.role==a==b", "value 'a==b' is invalid"),
        ("node.role!=a!=b", "value 'a!=b' is invalid"),
        ("nöde.id==x", "key 'nöde.id' is invalid"),
    ],
)
def test_errors_are_dockers(expression: str, message: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        constraints.parse([expression])
    assert caught.value.message == message


def test_spaces_around_are_no_part_of_it() -> None:
    found = constraints.parse(["  node.role  ==  manager ", "node.labels.a!=b c"])
    assert found == (
        constraints.Constraint("node.role", "==", "manager"),
        constraints.Constraint("node.labels.a", "!=", "b c"),
    )
    assert [constraint.text for constraint in found] == ["node.role==manager", "node.labels.a!=b c"]


def node() -> pb.Node:
    made = pb.Node(id="ABC123", role=pb.NODE_ROLE_MANAGER)
    made.description.hostname = "alpha"
    made.description.platform.os = "linux"
    made.description.platform.architecture = "x86_64"
    made.description.engine.labels["driver"] = "overlay2"
    made.spec.labels["Zone"] = "east"
    made.status.addr = "10.1.2.3"
    return made


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("node.id==abc123", True),
        ("NODE.ID==abc123", True),
        ("node.id!=abc123", False),
        ("node.hostname==ALPHA", True),
        ("node.hostname!=beta", True),
        ("node.role==manager", True),
        ("node.role==worker", False),
        ("node.role!=worker", True),
        ("node.platform.os==Linux", True),
        ("node.platform.arch==x86_64", True),
        ("node.platform.arch==amd64", False),  # as the node reports it
        ("node.labels.Zone==EAST", True),
        ("node.labels.zone==east", False),  # a label's name keeps its case
        ("Node.Labels.Zone==east", True),
        ("node.labels.none==x", False),
        ("node.labels.none!=x", True),
        ("node.labels.==x", False),
        ("engine.labels.driver==overlay2", True),
        ("engine.labels.driver!=overlay2", False),
        ("engine.labels.none!=x", True),
        ("node.ip==10.1.2.3", True),
        ("node.ip!=10.1.2.3", False),
        ("node.ip==10.1.0.0/16", True),
        ("node.ip!=10.1.0.0/16", False),
        ("node.ip==10.2.0.0/16", False),
        ("node.ip!=10.2.0.0/16", True),
        ("node.ip==10.1.2", False),
        ("node.ip!=10.1.2", False),  # malformed: nobody
        ("node.ip==2001:db8::/32", False),
        ("node.colour==red", False),
        ("node.colour!=red", False),  # unknown key: nobody
        ("node.labels==x", False),
    ],
)
def test_satisfied(expression: str, expected: bool) -> None:
    assert constraints.matches(constraints.parse([expression]), node()) is expected


def test_all_must_hold() -> None:
    both = constraints.parse(["node.role==manager", "node.labels.Zone==west"])
    assert not constraints.matches(both, node())
    assert constraints.matches((), node())


def test_a_node_that_has_said_nothing_yet() -> None:
    bare = pb.Node(id="n")
    assert constraints.matches(constraints.parse(["node.hostname!=x", "node.ip!=10.0.0.1"]), bare)
    assert not constraints.matches(constraints.parse(["node.ip==10.0.0.1"]), bare)
