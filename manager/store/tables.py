"""Tables and their indexes.

Rows are protobuf messages that must not be changed once stored: copy, change, write. Iteration order is insertion
order everywhere, hence the same on every replica and under every hash seed.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from skep import pb


class Row(Protocol):
    """What all objects of the store have in common."""

    id: str

    @property
    def version(self) -> pb.Version: ...


R = TypeVar("R", bound=Row)


@dataclasses.dataclass(frozen=True)
class Schema(Generic[R]):
    """One table: its field in pb.Object, its indexes, and which index must be unique."""

    kind: str
    message: type[R]
    indexes: tuple[str, ...]
    keys: Callable[[R], tuple[str | None, ...]]  # under what each index files the row; None: not at all
    unique: str | None = None  # index whose keys may occur once; used for names

    def key(self, index: str, row: R) -> str | None:
        """Under what one index files the row."""
        return self.keys(row)[self.indexes.index(index)]


class Table(Generic[R]):
    """Rows by ID plus secondary indexes. Only the store writes here."""

    def __init__(self, schema: Schema[R]) -> None:
        self.schema = schema
        self.rows: dict[str, R] = {}
        self.indexes: dict[str, dict[str, dict[str, None]]] = {name: {} for name in schema.indexes}

    def put(self, row: R) -> R | None:
        """Stores `row`, returns the row it replaced."""
        row_id = row.id
        keys_of = self.schema.keys
        new_keys = keys_of(row)
        old = self.rows.get(row_id)
        if old is None:
            for index, key in zip(self.indexes.values(), new_keys, strict=True):
                if key is None:
                    continue
                bucket = index.get(key)
                if bucket is None:  # setdefault would make a dict for every row
                    index[key] = {row_id: None}
                else:
                    bucket[row_id] = None
        else:
            old_keys = keys_of(old)
            if old_keys != new_keys:
                self._file_anew(row_id, old_keys, new_keys)
        self.rows[row_id] = row
        return old

    def _file_anew(self, row_id: str, old_keys: tuple[str | None, ...], new_keys: tuple[str | None, ...]) -> None:
        for index, old, new in zip(self.indexes.values(), old_keys, new_keys, strict=True):
            if old is new or old == new:
                continue
            if old is not None:
                self._unlink(index, old, row_id)
            if new is not None:
                index.setdefault(new, {})[row_id] = None

    def pop(self, row_id: str) -> R:
        """Removes and returns a row; KeyError when there is none."""
        row = self.rows.pop(row_id)
        for index, key in zip(self.indexes.values(), self.schema.keys(row), strict=True):
            if key is not None:
                self._unlink(index, key, row_id)
        return row

    @staticmethod
    def _unlink(index: dict[str, dict[str, None]], key: str, row_id: str) -> None:
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


_ASSIGNED, _RUNNING, _COMPLETE = pb.TASK_STATE_ASSIGNED, pb.TASK_STATE_RUNNING, pb.TASK_STATE_COMPLETE
TAKES = "yes"  # the one key of the index "takes": nodes of which `takes` is true
_STATE_KEYS: dict[int, str] = {number: str(number) for number in pb.TaskState.values()}


def _no_keys(row: pb.Cluster) -> tuple[str | None, ...]:
    del row
    return ()


def takes(node: pb.Node) -> bool:
    """Whether the node takes new tasks at all: ready, active and well."""
    return (
        node.status.state == pb.NODE_STATE_READY
        and node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE
        and not node.description.conditions
    )


def _node_keys(node: pb.Node) -> tuple[str | None, ...]:
    return node.description.hostname, TAKES if takes(node) else None


def _service_keys(service: pb.Service) -> tuple[str | None, ...]:
    return (service.name.lower(),)


def _revision_keys(revision: pb.Revision) -> tuple[str | None, ...]:
    return revision.service_id, revision.spec.mode.WhichOneof("mode") or ""


def _task_keys(task: pb.Task) -> tuple[str | None, ...]:
    """Called twice for every change of a task: reads every field once."""
    state, desired = task.status.state, task.desired_state
    service_id, node_id = task.service_id, task.node_id or None
    active = node_id if _ASSIGNED <= state <= _RUNNING and desired <= _COMPLETE else None
    return (
        service_id,
        node_id,
        active,
        f"{service_id}/{task.slot or node_id or ''}",
        task.revision_id,
        _STATE_KEYS.get(state) or str(state),  # one that a newer version knows
        _STATE_KEYS.get(desired) or str(desired),
    )


def _named(row: pb.Network | pb.Secret | pb.Config | pb.Volume) -> tuple[str | None, ...]:
    return (row.name.lower(),)


CLUSTER: Schema[pb.Cluster] = Schema("cluster", pb.Cluster, (), _no_keys)
NODE: Schema[pb.Node] = Schema("node", pb.Node, ("hostname", "takes"), _node_keys)
SERVICE: Schema[pb.Service] = Schema("service", pb.Service, ("name",), _service_keys, unique="name")
REVISION: Schema[pb.Revision] = Schema("revision", pb.Revision, ("service", "mode"), _revision_keys)
TASK: Schema[pb.Task] = Schema(
    "task",
    pb.Task,
    # active: a node's tasks that count, so that their number is known without looking at them: given to the node, not
    # ended, wished.
    ("service", "node", "active", "slot", "revision", "state", "desired"),
    _task_keys,
)
NETWORK: Schema[pb.Network] = Schema("network", pb.Network, ("name",), _named, unique="name")
SECRET: Schema[pb.Secret] = Schema("secret", pb.Secret, ("name",), _named, unique="name")
CONFIG: Schema[pb.Config] = Schema("config", pb.Config, ("name",), _named, unique="name")
VOLUME: Schema[pb.Volume] = Schema("volume", pb.Volume, ("name",), _named, unique="name")
