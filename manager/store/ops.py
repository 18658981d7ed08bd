"""Building the operations of a transaction. Each names the version it was decided on."""

from typing import TypeAlias

from skep import errors, pb

AnyRow: TypeAlias = (
    pb.Cluster | pb.Node | pb.Service | pb.Revision | pb.Task | pb.Network | pb.Secret | pb.Config | pb.Volume
)

_FIELD: dict[type[AnyRow], str] = {
    pb.Cluster: "cluster",
    pb.Node: "node",
    pb.Service: "service",
    pb.Revision: "revision",
    pb.Task: "task",
    pb.Network: "network",
    pb.Secret: "secret",
    pb.Config: "config",
    pb.Volume: "volume",
}


def wrap(row: AnyRow) -> pb.Object:
    """The object as a member of pb.Object; copies it."""
    wrapped = pb.Object()
    getattr(wrapped, _FIELD[type(row)]).CopyFrom(row)
    return wrapped


def unwrap(wrapped: pb.Object) -> AnyRow:
    """The one object inside; Bug when it is empty."""
    field = wrapped.WhichOneof("kind")
    if field is None:
        raise errors.Bug("pb.Object without an object")
    row: AnyRow = getattr(wrapped, field)
    return row


def create(row: AnyRow) -> pb.Op:
    """Stores a new object; refused when the ID or a unique name is taken."""
    return pb.Op(kind=pb.OP_KIND_CREATE, object=wrap(row))


def update(row: AnyRow) -> pb.Op:
    """Replaces the stored object by `row`, a changed copy of what was read: its version says what that was."""
    return pb.Op(kind=pb.OP_KIND_UPDATE, object=wrap(row), based_on=row.version.index)


def delete(row: AnyRow) -> pb.Op:
    """Removes the object, if it is still the version that was read."""
    bare = type(row)(id=row.id)
    return pb.Op(kind=pb.OP_KIND_DELETE, object=wrap(bare), based_on=row.version.index)
