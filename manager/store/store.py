"""The store: applies transactions, hands out views, feeds watchers, makes and takes snapshots.

It is the state machine behind Raft. Nothing here depends on anything but the entries applied: time and IDs are inside
them. Transactions are checked here, when applied, so a stale leader or a raced writer can never overwrite what it has
not seen.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator

from google.protobuf import timestamp_pb2

from manager.store import ops, tables, views, watching
from skep import errors, pb

SNAPSHOT_FORMAT = 1
SCHEMAS: tuple[tables.Schema[tables.Row], ...] = (
    tables.CLUSTER, tables.NODE, tables.SERVICE, tables.REVISION, tables.TASK, tables.NETWORK, tables.SECRET,
    tables.CONFIG, tables.VOLUME,
)  # type: ignore[assignment]  # fmt: skip


class Store:
    """Tables at one Raft index.

    `checking` is for tests: it keeps a fingerprint of every object and finds one that was changed in place, naming
    who had got it.
    """

    def __init__(self, *, checking: bool = False) -> None:
        self.index = 0
        self._tables: dict[str, tables.Table[tables.Row]] = {s.kind: tables.Table(s) for s in SCHEMAS}
        self._watches: list[watching.Watch] = []
        self._view: views.View | None = None  # of this index
        self._guard = _MutationGuard() if checking else None

    # ---------------------------------------------------------------- reading

    def view(self) -> views.View:
        """The state now. Do not keep it across an await."""
        if self._view is None or self._view.index != self.index:
            self._view = self._new_view()
        return self._view

    def _new_view(self) -> views.View:
        index = self.index

        def check() -> None:
            if self.index != index:
                raise errors.Bug(f"a view of index {index} was used at index {self.index}: take a new one")

        return views.View(self._tables, index, check, self._guard.seen if self._guard else None)

    def freeze(self) -> "Frozen":
        """An independent picture of this moment, safe to read from another thread."""
        return Frozen(self.index, {kind: table.rows.copy() for kind, table in self._tables.items()})

    def copy(self) -> "Store":
        """An independent store with the same content, for what-if questions. The rows are shared."""
        other = Store()
        other.index = self.index
        other._tables = {kind: table.copy() for kind, table in self._tables.items()}
        return other

    def watch(
        self, kinds: Iterable[str], wake: Callable[[], None], *, limit: int = watching.WATCH_BACKLOG_MAX
    ) -> watching.Watch:
        """Follows changes from now on; no kinds means all. `wake` is called after each applied entry that matters."""
        watcher = watching.Watch(frozenset(kinds), wake, self._watches.remove, limit)
        self._watches.append(watcher)
        return watcher

    # ---------------------------------------------------------------- writing

    def apply(self, index: int, transactions: Iterable[pb.Transaction]) -> list[errors.SkepError | None]:
        """Applies one Raft entry. For each transaction: None when it took effect, else why nothing of it did.

        Takes ownership of the objects in the transactions. Never raises for what a transaction says.
        """
        if index <= self.index:
            raise errors.Bug(f"entry {index} applied after {self.index}")
        self.index = index
        changes: list[watching.Change] = []
        outcomes = [self._apply_one(transaction.ops, transaction.at, changes) for transaction in transactions]
        self._tell(changes)
        return outcomes

    def apply_local(self, operations: Iterable[pb.Op], at: timestamp_pb2.Timestamp) -> errors.SkepError | None:
        """One transaction that never travels, as the next entry: its operations become the store's without a copy."""
        self.index += 1
        changes: list[watching.Change] = []
        refusal = self._apply_one(operations, at, changes)
        self._tell(changes)
        return refusal

    def _tell(self, changes: list[watching.Change]) -> None:
        if self._guard is not None:
            self._guard.verify()
        if changes:
            for watcher in list(self._watches):
                watcher.offer(changes)

    def _apply_one(
        self, operations: Iterable[pb.Op], at: timestamp_pb2.Timestamp, changes: list[watching.Change]
    ) -> errors.SkepError | None:
        """One transaction, whole or not at all; adds to `changes`, returns the refusal."""
        undo = len(changes)
        for op in operations:
            try:
                changes.append(self._apply_op(op, at))
            except errors.SkepError as error:
                self._roll_back(changes, undo)
                return error
        return None

    def _apply_op(self, op: pb.Op, at: timestamp_pb2.Timestamp) -> watching.Change:
        wrapped = op.object
        kind = wrapped.WhichOneof("kind")
        if kind is None:
            raise errors.Invalid("an operation without an object")
        row: ops.AnyRow = getattr(wrapped, kind)
        row_id = row.id
        table = self._tables[kind]
        stored = table.rows.get(row_id)
        if op.kind == pb.OP_KIND_CREATE:
            if not row_id or stored is not None:
                raise errors.AlreadyExists(f"{kind} {row_id} already exists")
            self._check_unique(table, row)
            row.created_at.CopyFrom(at)
            return self._put(kind, row_id, row, at)
        if stored is None:
            raise errors.Conflict(f"{kind} {row_id} does not exist any more")
        if stored.version.index != op.based_on:
            raise errors.Conflict("update out of sequence")
        if op.kind == pb.OP_KIND_DELETE:
            old = table.pop(row_id)
            if self._guard is not None:
                self._guard.forget(kind, old)
            return watching.Change(self.index, kind, row_id, old, None)  # type: ignore[arg-type]
        if kind == "task":
            _check_forward(stored, row)  # type: ignore[arg-type]
        elif table.schema.unique is not None:
            self._check_unique(table, row)
        return self._put(kind, row_id, row, at)

    def _put(self, kind: str, row_id: str, row: ops.AnyRow, at: timestamp_pb2.Timestamp) -> watching.Change:
        row.version.index = self.index
        row.updated_at.CopyFrom(at)
        old = self._tables[kind].put(row)
        if self._guard is not None:
            self._guard.remember(kind, row)
        return watching.Change(self.index, kind, row_id, old, row)  # type: ignore[arg-type]

    @staticmethod
    def _check_unique(table: tables.Table[tables.Row], row: ops.AnyRow) -> None:
        unique = table.schema.unique
        if unique is None:
            return
        key = table.schema.key(unique, row)
        for other in () if key is None else table.indexes[unique].get(key, ()):
            if other != row.id:
                name = getattr(row, "name", key)
                raise errors.AlreadyExists(
                    f"name conflicts with an existing object: {table.schema.kind} {name} already exists"
                )

    def _roll_back(self, changes: list[watching.Change], keep: int) -> None:
        while len(changes) > keep:
            change = changes.pop()
            table = self._tables[change.kind]
            if change.new is not None and self._guard is not None:
                self._guard.forget(change.kind, change.new)
            if change.old is None:
                table.pop(change.id)
            else:
                table.put(change.old)
                if self._guard is not None:
                    self._guard.remember(change.kind, change.old)

    # ---------------------------------------------------------------- snapshots

    def take_over(self, content: "Content") -> "Content":
        """Makes `content` this store's, at once; watchers are told to start over. Returns what was there before."""
        before = Content(self.index, self._tables)
        self.index, self._tables = content.index, content.tables
        self._view = None
        if self._guard is not None:
            self._guard = _MutationGuard()
            for kind, table in self._tables.items():
                for row in table.rows.values():
                    self._guard.remember(kind, row)
        for watcher in list(self._watches):
            watcher.reset()
        return before

    def verify(self) -> None:
        """Checking mode only: raises Bug when a stored object was changed in place."""
        if self._guard is not None:
            self._guard.verify()


@dataclasses.dataclass(frozen=True)
class Content:
    """Tables at one index that no store uses: made by `thaw` to be taken over, or left behind by that."""

    index: int
    tables: dict[str, tables.Table[tables.Row]]

    def discard(self) -> None:
        """Frees it row by row. For another thread: freed at once, a large content would hold up everybody."""
        for table in self.tables.values():
            while table.rows:
                table.rows.popitem()
            for index in table.indexes.values():
                while index:
                    index.popitem()


def thaw(records: Iterable[pb.SnapshotRecord]) -> Content:
    """The content of a snapshot. Concerns no store yet, so it may run in any thread. Bug when it is not whole."""
    iterator = iter(records)
    first = next(iterator, pb.SnapshotRecord())
    if first.WhichOneof("record") != "header" or first.header.format != SNAPSHOT_FORMAT:
        raise errors.Bug("not a snapshot of this format")
    fresh: dict[str, tables.Table[tables.Row]] = {s.kind: tables.Table(s) for s in SCHEMAS}
    count = 0
    for record in iterator:
        table = record.object.WhichOneof("kind")
        if table is None:
            raise errors.Bug("snapshot record without an object")
        fresh[table].put(getattr(record.object, table))
        count += 1
    if count != first.header.objects:
        raise errors.Bug(f"snapshot holds {count} objects and announces {first.header.objects}")
    return Content(first.header.index, fresh)


class Frozen:
    """The content of the store at one index, detached from it."""

    def __init__(self, index: int, rows: dict[str, dict[str, tables.Row]]) -> None:
        self.index = index
        self._rows = rows

    def records(self) -> Iterator[pb.SnapshotRecord]:
        """The snapshot, record by record: a header, then every object."""
        count = sum(len(rows) for rows in self._rows.values())
        yield pb.SnapshotRecord(header=pb.SnapshotHeader(format=SNAPSHOT_FORMAT, index=self.index, objects=count))
        for rows in self._rows.values():
            for row in rows.values():
                yield pb.SnapshotRecord(object=ops.wrap(row))  # type: ignore[arg-type]


def _check_forward(stored: pb.Task, task: pb.Task) -> None:
    """Task states only move forward, whoever writes them."""
    if task.desired_state < stored.desired_state:
        raise errors.Conflict(f"task {task.id}: desired state cannot go back")
    if task.status.state < stored.status.state:
        raise errors.Conflict(f"task {task.id}: observed state cannot go back")


class _MutationGuard:
    """Fingerprints of all stored objects and who was handed them."""

    def __init__(self) -> None:
        self._fingerprints: dict[tuple[str, str], tuple[tables.Row, bytes]] = {}
        self._readers: dict[int, str] = {}

    def remember(self, kind: str, row: tables.Row) -> None:
        self._fingerprints[kind, row.id] = (row, _fingerprint(row))

    def forget(self, kind: str, row: tables.Row) -> None:
        self._fingerprints.pop((kind, row.id), None)
        self._readers.pop(id(row), None)

    def seen(self, row: tables.Row) -> None:
        frame = sys._getframe(2)
        self._readers[id(row)] = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"

    def verify(self) -> None:
        for (kind, row_id), (row, fingerprint) in self._fingerprints.items():
            if _fingerprint(row) != fingerprint:
                reader = self._readers.get(id(row), "nobody on record")
                raise errors.Bug(f"{kind} {row_id} was changed in the store; last handed out at {reader}")


def _fingerprint(row: tables.Row) -> bytes:
    encoded: bytes = row.SerializeToString(deterministic=True)  # type: ignore[attr-defined]
    return encoded
