"""Placement constraints: the language, its errors, and whether a node satisfies them.

A pure parser without any knowledge of the store. The texts of the errors are those of Docker's swarm mode: tools match
on them. Several constraints are joined by "and".
"""

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence

from skep import errors, pb

OPERATORS = ("==", "!=")
NODE_LABEL = "node.labels."
ENGINE_LABEL = "engine.labels."

_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(r"[a-z0-9:\-_ \t\r\n\f.*()?+\[\]\\^$|/]+", re.IGNORECASE | re.ASCII)
_ROLE = {pb.NODE_ROLE_WORKER: "worker", pb.NODE_ROLE_MANAGER: "manager"}

_Read = Callable[[pb.Node], str]
_PLAIN: dict[str, _Read] = {
    "node.id": lambda node: node.id,
    "node.hostname": lambda node: node.description.hostname,
    "node.role": lambda node: _ROLE.get(node.role, ""),
    "node.platform.os": lambda node: node.description.platform.os,
    "node.platform.arch": lambda node: node.description.platform.architecture,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Constraint:
    """One comparison, `key == value` or `key != value`."""

    key: str
    operator: str
    value: str

    @property
    def text(self) -> str:
        """The constraint as users write it."""
        return f"{self.key}{self.operator}{self.value}"

    @property
    def wants_equal(self) -> bool:
        """Whether the operator is ==."""
        return self.operator == "=="


def parse(expressions: Iterable[str]) -> tuple[Constraint, ...]:
    """The constraints that `expressions` spell. Raises Invalid in Docker's words."""
    return tuple(_parse_one(expression) for expression in expressions)


def _parse_one(expression: str) -> Constraint:
    for operator in OPERATORS:
        if operator not in expression:
            continue
        key, _, value = expression.partition(operator)
        key, value = key.strip(), value.strip()
        if not _KEY.fullmatch(key):
            raise errors.Invalid(f"key '{key}' is invalid")
        if not _VALUE.fullmatch(value):
            raise errors.Invalid(f"value '{value}' is invalid")
        return Constraint(key, operator, value)
    raise errors.Invalid(f"constraint expected one operator from {', '.join(OPERATORS)}")


def matches(constraints: Sequence[Constraint], node: pb.Node) -> bool:
    """Whether the node satisfies all of `constraints`."""
    return all(satisfied(constraint, node) for constraint in constraints)


def satisfied(constraint: Constraint, node: pb.Node) -> bool:
    """Whether the node satisfies `constraint`. An unknown key is satisfied by no node, whatever the operator."""
    if constraint.key.lower() == "node.ip":
        return _ip_satisfied(constraint, node.status.addr)
    found = attribute(constraint.key, node)
    if found is None:
        return False
    return (found.casefold() == constraint.value.casefold()) == constraint.wants_equal


def attribute(key: str, node: pb.Node) -> str | None:
    """The node's value of a constraint's key or a spread descriptor: "" when it has none, None for an unknown key.

    The key's first part is compared without regard to case, a label's own name with it.
    """
    lowered = key.lower()
    read = _PLAIN.get(lowered)
    if read is not None:
        return read(node)
    if len(key) > len(NODE_LABEL) and lowered.startswith(NODE_LABEL):
        return node.spec.labels.get(key[len(NODE_LABEL) :], "")
    if len(key) > len(ENGINE_LABEL) and lowered.startswith(ENGINE_LABEL):
        return node.description.engine.labels.get(key[len(ENGINE_LABEL) :], "")
    return None


def _ip_satisfied(constraint: Constraint, addr: str) -> bool:
    """An exact address or a network in CIDR notation; a malformed one is satisfied by no node."""
    try:
        network = ipaddress.ip_network(constraint.value, strict=False)
    except ValueError:
        return False
    try:
        inside = ipaddress.ip_address(addr) in network
    except ValueError:
        inside = False  # a node that has never spoken to us has no address
    return inside == constraint.wants_equal
