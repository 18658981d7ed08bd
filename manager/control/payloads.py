"""Secrets and configs: what one request means for the store. Pure functions from a view to operations.

The two differ in how much they hold and in whether their data is ever shown again; both are fixed at creation but for
their labels. A payload never stands in an error text.
"""

import dataclasses
import hmac
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from manager.control import lookup
from manager.store import ops, views
from skep import errors, pb

Kind = Literal["secret", "config"]
Payload: TypeAlias = pb.Secret | pb.Config
Spec: TypeAlias = pb.SecretSpec | pb.ConfigSpec

DATA_BYTES_MAX: dict[Kind, int] = {"secret": 512_000 - 1, "config": 1_024_000 - 1}
LABEL_BYTES_MAX = 64 * 1024  # all labels of one object together
NAME_CHARS_MAX = 64
REFERENCES_MAX = 200  # of one service; each is a file and a mount in every container
TEMPLATES = ("", "golang")

_NAME = re.compile(r"[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class _Reference:
    """A reference of a service to a payload, of either kind."""

    object_id: str
    name: str
    file: pb.FileTarget | None


def create(view: views.View, kind: Kind, spec: Spec, *, object_id: str) -> list[pb.Op]:
    """A new secret or config. Raises Invalid, Unimplemented or AlreadyExists."""
    check(kind, spec)
    table = view.secrets if kind == "secret" else view.configs
    for _ in table.where("name", spec.name.lower()):
        raise errors.AlreadyExists(f"name conflicts with an existing object: {kind} {spec.name} already exists")
    return [ops.create(_row(object_id, spec))]


def _row(object_id: str, spec: Spec) -> Payload:
    if isinstance(spec, pb.SecretSpec):
        return pb.Secret(id=object_id, name=spec.name, spec=spec)
    return pb.Config(id=object_id, name=spec.name, spec=spec)


def check(kind: Kind, spec: Spec) -> None:
    """Raises when there cannot be such a secret or config."""
    check_name(spec.name)
    _check_labels(kind, spec)
    if isinstance(spec, pb.SecretSpec) and spec.HasField("driver"):
        raise errors.Unimplemented("this version of skep has no drivers for secrets: create it with its data")
    most = DATA_BYTES_MAX[kind]
    if not 0 < len(spec.data) <= most:
        raise errors.Invalid(f"{kind} data must be larger than 0 and less than {most + 1} bytes")
    if spec.templating.name not in TEMPLATES:
        raise errors.Invalid(f"unrecognized template type {spec.templating.name!r}: there is golang")


def check_name(name: str) -> None:
    """Raises Invalid unless `name` can name a secret or a config."""
    if not name:
        raise errors.Invalid("name must be provided")
    if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
        raise errors.Invalid(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be "
            "[a-zA-Z0-9]"
        )


def _check_labels(kind: Kind, spec: Spec) -> None:
    size = sum(len(key.encode()) + len(value.encode()) for key, value in spec.labels.items())
    if size > LABEL_BYTES_MAX:
        raise errors.Invalid(f"the {kind}'s labels have {size} bytes, more than the {LABEL_BYTES_MAX} that are allowed")


def update(view: views.View, kind: Kind, reference: str, spec: Spec, *, version: int) -> list[pb.Op]:
    """Replaces the labels; nothing when they are the same.

    Raises NotFound, Conflict when the object has moved, and Invalid when anything else would change.
    """
    row = _find(view, kind, reference)
    if row.version.index != version:
        raise errors.Conflict("update out of sequence")
    # A client that has read a secret does not have its data: none means the same.
    if spec.name != row.name or (spec.data and not hmac.compare_digest(spec.data, row.spec.data)):
        raise errors.Invalid("only updates to Labels are allowed")
    if spec.HasField("templating") and spec.templating != row.spec.templating:
        raise errors.Invalid("only updates to Labels are allowed")
    _check_labels(kind, spec)
    if dict(spec.labels) == dict(row.spec.labels):
        return []
    changed = type(row)()
    changed.CopyFrom(row)  # type: ignore[arg-type]
    changed.spec.labels.clear()
    changed.spec.labels.update(spec.labels)
    return [ops.update(changed)]


def remove(view: views.View, kind: Kind, reference: str) -> list[pb.Op]:
    """Deletes the object. Raises NotFound, and Invalid while a service asks for it.

    As in Docker, only what services ask for now counts: neither their previous revisions nor tasks that are left.
    """
    row = _find(view, kind, reference)
    users = [service.name for service in view.services if row.id in _named(view.spec(service), kind)]
    if users:
        word = "service" if len(users) == 1 else "services"
        raise errors.Invalid(f"{kind} '{row.name}' is in use by the following {word}: {', '.join(sorted(users))}")
    return [ops.delete(row)]


def _find(view: views.View, kind: Kind, reference: str) -> Payload:
    return lookup.secret(view, reference) if kind == "secret" else lookup.config(view, reference)


def _named(spec: pb.ServiceSpec, kind: Kind) -> list[str]:
    return [each.object_id for each in _references(spec.task.container, kind)]


def _references(container: pb.ContainerSpec, kind: Kind) -> list[_Reference]:
    if kind == "secret":
        return [
            _Reference(each.secret_id, each.secret_name, each.file if each.HasField("file") else None)
            for each in container.secrets
        ]
    return [
        _Reference(each.config_id, each.config_name, each.file if each.HasField("file") else None)
        for each in container.configs
    ]


def check_references(container: pb.ContainerSpec) -> None:
    """What is wrong with a service's references in itself. Raises Invalid."""
    kinds: Sequence[Kind] = ("secret", "config")
    if len(container.secrets) + len(container.configs) > REFERENCES_MAX:
        raise errors.Invalid(f"ContainerSpec: more than {REFERENCES_MAX} secrets and configs")
    for kind in kinds:
        taken: dict[str, str] = {}
        for each in _references(container, kind):
            _check_reference(kind, each)
            assert each.file is not None
            target = each.file.name
            if target in taken:
                raise errors.Invalid(
                    f"{kind} references '{taken[target]}' and '{each.name}' have a conflicting target: '{target}'"
                )
            taken[target] = each.name


def _check_reference(kind: Kind, each: _Reference) -> None:
    if not each.object_id or not each.name:
        raise errors.Invalid(f"malformed {kind} reference")
    if each.file is None:
        raise errors.Invalid(f"malformed {kind} reference, no target provided")
    target = each.file.name
    if not target or target.endswith("/") or "\0" in target or ".." in target.split("/"):
        raise errors.Invalid(f"malformed file {kind} reference, invalid target file name provided")
    for word, number in (("UID", each.file.uid), ("GID", each.file.gid)):
        if number and not (number.isascii() and number.isdigit() and int(number) < 2**31):
            raise errors.Invalid(f"malformed file {kind} reference, {word} {number!r} must be a number")
    if each.file.mode > 0o7777:  # noqa: PLR2004 - twelve bits
        raise errors.Invalid(f"malformed file {kind} reference, mode {each.file.mode:o} has more than 12 bits")


def check_present(view: views.View, spec: pb.ServiceSpec) -> None:
    """Raises Invalid unless all that the service refers to exists, under the names it gives them."""
    for kind in ("secret", "config"):
        missing: dict[str, None] = {}
        for each in _references(spec.task.container, kind):
            row = view.secrets.get(each.object_id) if kind == "secret" else view.configs.get(each.object_id)
            if row is None or row.name != each.name:
                missing[each.name] = None
        if missing:
            raise errors.Invalid(f"{kind}{'s' if len(missing) > 1 else ''} not found: {', '.join(missing)}")
