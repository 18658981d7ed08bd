"""Reading the store.

A View shows one moment: the state after one Raft index. It costs nothing to make and must not be kept across an
await; using one after the store has moved on raises Bug. What must live longer takes `Store.freeze()`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from manager.store import tables
from skep import errors, pb

R = TypeVar("R", bound=tables.Row)
Guard = Callable[[tables.Row], None]


class TableView(Generic[R]):
    """Reads one table. The rows are shared: never change one, copy it first."""

    __slots__ = ("_check", "_seen", "_table")

    def __init__(self, table: tables.Table[R], check: Callable[[], None], seen: Guard | None) -> None:
        self._table = table
        self._check = check
        self._seen = seen

    def get(self, row_id: str) -> R | None:
        """The object with this ID, or None."""
        self._check()
        row = self._table.rows.get(row_id)
        if row is not None and self._seen is not None:
            self._seen(row)
        return row

    def where(self, index: str, key: str) -> Iterator[R]:
        """The objects that the index files under `key`, oldest first."""
        self._check()
        if self._seen is None:
            return self._table.where(index, key)
        return self._watched(self._table.where(index, key), self._seen)

    def count(self, index: str, key: str) -> int:
        """How many objects the index files under `key`, without touching them."""
        self._check()
        return len(self._table.indexes[index].get(key, ()))

    def ids(self, index: str, key: str) -> Iterable[str]:
        """IDs of the objects that the index files under `key`, without touching them."""
        self._check()
        return self._table.indexes[index].get(key, {}).keys()

    def counts(self, index: str, keys: Iterable[str]) -> list[int]:
        """`count` of many keys at once."""
        self._check()
        found = self._table.indexes[index]
        return [len(found[key]) if key in found else 0 for key in keys]

    def keys(self, index: str) -> list[str]:
        """All keys of an index, in order of first appearance."""
        self._check()
        return list(self._table.indexes[index])

    def __iter__(self) -> Iterator[R]:
        self._check()
        if self._seen is None:
            return iter(self._table.rows.values())
        return self._watched(iter(self._table.rows.values()), self._seen)

    def __len__(self) -> int:
        self._check()
        return len(self._table.rows)

    @staticmethod
    def _watched(rows: Iterator[R], seen: Guard) -> Iterator[R]:
        for row in rows:
            seen(row)
            yield row


class View:
    """All tables at one index."""

    def __init__(
        self, all_tables: dict[str, tables.Table[tables.Row]], index: int, check: Callable[[], None], seen: Guard | None
    ) -> None:
        self.index = index

        def table(schema: tables.Schema[R]) -> TableView[R]:
            return TableView(all_tables[schema.kind], check, seen)  # type: ignore[arg-type]

        self.clusters = table(tables.CLUSTER)
        self.nodes = table(tables.NODE)
        self.services = table(tables.SERVICE)
        self.revisions = table(tables.REVISION)
        self.tasks = table(tables.TASK)
        self.networks = table(tables.NETWORK)
        self.secrets = table(tables.SECRET)
        self.configs = table(tables.CONFIG)
        self.volumes = table(tables.VOLUME)

    @property
    def cluster(self) -> pb.Cluster:
        """The cluster object; Unavailable before the first leader has written it."""
        for cluster in self.clusters:
            return cluster
        raise errors.Unavailable("the cluster is still being set up: try again in a moment")

    def revision(self, revision_id: str) -> pb.Revision:
        """A revision that must exist: tasks and services keep theirs alive. Bug when it does not."""
        revision = self.revisions.get(revision_id)
        if revision is None:
            raise errors.Bug(f"revision {revision_id} is referred to but not stored")
        return revision

    def spec(self, service: pb.Service) -> pb.ServiceSpec:
        """What the service asks for now."""
        return self.revision(service.revision_id).spec
