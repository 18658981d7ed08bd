"""Tables and their indexes.

Rows are protobuf messages that must not be changed once stored: copy, change, write. Iteration order is insertion
order everywhere, hence the same on every replica and under every hash seed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from skep import pb


class Row(Protocol):
    """What all objects of the store have in common."""

    id: str

    @property
    def version(self) -> pb.Version: ...


R = TypeVar("R", bound=Row)
Keys = Callable[[R], list[str]]


@dataclasses.dataclass(frozen=True)
class Schema(Generic[R]):
    """One table: its field in pb.Object, its indexes, and which index must be unique."""

    kind: str
    message: type[R]
    indexes: dict[str, Keys[R]]
    unique: str | None = None  # index whose keys may occur once; used for names


class Table(Generic[R]):
    """Rows by ID plus secondary indexes. Only the store writes here."""

    def __init__(self, schema: Schema[R]) -> None:
        self.schema = schema
        self.rows: dict[str, R] = {}
        self.indexes: dict[str, dict[str, dict[str, None]]] = {name: {} for name in schema.indexes}

    def put(self, row: R) -> R | None:
        """Stores `row`, returns the row it replaced."""
        old = self.rows.get(row.id)
        for name, keys in self.schema.indexes.items():
            new_keys = keys(row)
            index = self.indexes[name]
            if old is not None:
                old_keys = keys(old)
                if old_keys == new_keys:
                    continue
                self._unlink(index, old_keys, row.id)
            for key in new_keys:
                index.setdefault(key, {})[row.id] = None
        self.rows[row.id] = row
        return old

    def pop(self, row_id: str) -> R:
        """Removes and returns a row; KeyError when there is none."""
        row = self.rows.pop(row_id)
        for name, keys in self.schema.indexes.items():
            self._unlink(self.indexes[name], keys(row), row_id)
        return row

    @staticmethod
    def _unlink(index: dict[str, dict[str, None]], keys: Iterable[str], row_id: str) -> None:
        for key in keys:
            bucket = index[key]
            del bucket[row_id]
            if not bucket:
                del index[key]

    def where(self, index: str, key: str) -> Iterator[R]:
        """Rows that the index files under `key`, oldest first."""
        for row_id in self.indexes[index].get(key, ()):
            yield self.rows[row_id]

    def copy(self) -> "Table[R]":
        """An independent table that shares the rows."""
        other = Table(self.schema)
        other.rows = self.rows.copy()
        other.indexes = {
            name: {key: bucket.copy() for key, bucket in index.items()} for name, index in self.indexes.items()
        }
        return other


def _active(task: pb.Task) -> list[str]:
    """The task's node while it counts as one of the node's tasks: given to it, not ended, wished."""
    counts = (
        pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING
        and task.desired_state <= pb.TASK_STATE_COMPLETE
    )
    return [task.node_id] if counts else []


def _spec_name(row: pb.Network | pb.Secret | pb.Config | pb.Volume) -> list[str]:
    return [row.name.lower()]


CLUSTER: Schema[pb.Cluster] = Schema("cluster", pb.Cluster, {})
NODE: Schema[pb.Node] = Schema("node", pb.Node, {"hostname": lambda n: [n.description.hostname]})
SERVICE: Schema[pb.Service] = Schema("service", pb.Service, {"name": lambda s: [s.name.lower()]}, unique="name")
REVISION: Schema[pb.Revision] = Schema(
    "revision",
    pb.Revision,
    {"service": lambda r: [r.service_id], "mode": lambda r: [r.spec.mode.WhichOneof("mode") or ""]},
)
TASK: Schema[pb.Task] = Schema(
    "task",
    pb.Task,
    {
        "service": lambda t: [t.service_id],
        "node": lambda t: [t.node_id] if t.node_id else [],
        "active": _active,  # how many tasks load a node, without looking at them
        "slot": lambda t: [f"{t.service_id}/{t.slot or t.node_id}"],
        "revision": lambda t: [t.revision_id],
        "state": lambda t: [str(t.status.state)],
        "desired": lambda t: [str(t.desired_state)],
    },
)
NETWORK: Schema[pb.Network] = Schema("network", pb.Network, {"name": _spec_name}, unique="name")
SECRET: Schema[pb.Secret] = Schema("secret", pb.Secret, {"name": _spec_name}, unique="name")
CONFIG: Schema[pb.Config] = Schema("config", pb.Config, {"name": _spec_name}, unique="name")
VOLUME: Schema[pb.Volume] = Schema("volume", pb.Volume, {"name": _spec_name}, unique="name")
