"""What this node was told to run and how far it came, on disk: an agent that starts again goes on from here.

One SQLite file, written in the event loop: a write is well under a millisecond, because it survives the death of the
process (`kill -9`) but waits for no disk. After a power cut the last writes may be missing; what ran has ended then
anyway, and nothing is started before the managers have sent the full set again (`boot`, `Worker`).
"""

import contextlib
import dataclasses
import math
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator

import structlog

from skep import pb

log = structlog.get_logger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, task BLOB NOT NULL, status BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revisions (id TEXT PRIMARY KEY, revision BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS node (only INTEGER PRIMARY KEY CHECK (only = 1), node BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS description (only INTEGER PRIMARY KEY CHECK (only = 1), description BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS boot (only INTEGER PRIMARY KEY CHECK (only = 1), boot TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lease (
    only INTEGER PRIMARY KEY CHECK (only = 1), boot TEXT NOT NULL, proven_at REAL NOT NULL
);
"""
IN_MEMORY = ":memory:"
BUSY_S = 5.0  # how long a previous process of this agent may take to let go of the file


@dataclasses.dataclass(frozen=True)
class Known:
    """One recorded task: as assigned, and its latest status here."""

    task: pb.Task
    status: pb.TaskStatus


class Record:
    """The local record. A damaged file is put aside and the record starts empty."""

    def __init__(self, path: pathlib.Path | str) -> None:
        """Opens or creates the file at `path`; ":memory:" keeps nothing beyond this object."""
        self._db = _open(str(path))

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Gathers many writes into one transaction."""
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def tasks(self) -> list[Known]:
        """All recorded tasks, by ID."""
        rows = self._db.execute("SELECT task, status FROM tasks ORDER BY id")
        return [Known(pb.Task.FromString(task), pb.TaskStatus.FromString(status)) for task, status in rows]

    def revisions(self) -> dict[str, pb.Revision]:
        """All recorded revisions, by ID."""
        rows = self._db.execute("SELECT id, revision FROM revisions ORDER BY id")
        return {revision_id: pb.Revision.FromString(blob) for revision_id, blob in rows}

    def node(self) -> pb.Node | None:
        """This node's own object as it was last heard; None before the first session."""
        row = self._db.execute("SELECT node FROM node").fetchone()
        return pb.Node.FromString(row[0]) if row else None

    def description(self) -> pb.NodeDescription | None:
        """What the runtime last said of this machine; None when it never did."""
        row = self._db.execute("SELECT description FROM description").fetchone()
        return pb.NodeDescription.FromString(row[0]) if row else None

    def save_description(self, description: pb.NodeDescription) -> None:
        """Records that."""
        self._db.execute("INSERT OR REPLACE INTO description VALUES (1, ?)", (description.SerializeToString(),))

    def boot(self) -> str:
        """In which boot of the machine the record was last known to be whole; "" when it never was."""
        row = self._db.execute("SELECT boot FROM boot").fetchone()
        return str(row[0]) if row else ""

    def save_boot(self, boot: str) -> None:
        """Nothing is missing in the record now, and nothing will be in this boot."""
        self._db.execute("INSERT OR REPLACE INTO boot VALUES (1, ?)", (boot,))

    def proven_at(self, boot: str) -> float:
        """See `lease.Lease`: the uptime of the latest answered heartbeat on record; minus infinity without one."""
        row = self._db.execute("SELECT proven_at FROM lease WHERE boot = ?", (boot,)).fetchone()
        return float(row[0]) if row else -math.inf

    def save_proven(self, boot: str, proven_at: float) -> None:
        """Records that uptime."""
        self._db.execute("INSERT OR REPLACE INTO lease VALUES (1, ?, ?)", (boot, proven_at))

    def save_task(self, task: pb.Task, status: pb.TaskStatus) -> None:
        """Records a task as assigned, with its status here."""
        values = (task.id, task.SerializeToString(), status.SerializeToString())
        self._db.execute("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?)", values)

    def save_status(self, task_id: str, status: pb.TaskStatus) -> None:
        """Records the latest status of a task; nothing happens when the task is not on record."""
        self._db.execute("UPDATE tasks SET status = ? WHERE id = ?", (status.SerializeToString(), task_id))

    def save_revision(self, revision: pb.Revision) -> None:
        """Records a revision."""
        self._db.execute("INSERT OR REPLACE INTO revisions VALUES (?, ?)", (revision.id, revision.SerializeToString()))

    def save_node(self, node: pb.Node) -> None:
        """Records this node's own object."""
        self._db.execute("INSERT OR REPLACE INTO node VALUES (1, ?)", (node.SerializeToString(),))

    def drop_task(self, task_id: str) -> None:
        """Forgets a task."""
        self._db.execute("DELETE FROM tasks WHERE id = ?", (task_id,))

    def drop_revisions(self, revision_ids: Iterable[str]) -> None:
        """Forgets revisions."""
        self._db.executemany("DELETE FROM revisions WHERE id = ?", [(each,) for each in revision_ids])


def _open(path: str) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if path == IN_MEMORY or isinstance(error, sqlite3.OperationalError):
            raise  # no such directory, no permission, disk full: nothing is wrong with the content
        aside = f"{path}.damaged"
        log.exception("record.damaged", path=path, kept_as=aside)
        pathlib.Path(path).replace(aside)
        for suffix in ("-wal", "-shm"):
            pathlib.Path(path + suffix).unlink(missing_ok=True)
        return _connect(path)


def _connect(path: str) -> sqlite3.Connection:
    if path != IN_MEMORY:
        pathlib.Path(path).touch(mode=0o600)  # revisions carry registry credentials
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(SCHEMA)
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
