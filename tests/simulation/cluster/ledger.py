"""What the cluster has agreed on, kept beside it, and what must hold of it at every entry.

Every manager's store is watched: equal at equal index (by a digest over all objects), and every entry that is applied
for the first time is judged: version checks, tasks that only move forward, nodes that may be given tasks.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from typing_extensions import override

from manager import plan
from manager.store import ops, store, views, watching
from skep import errors, ids, pb, stamps
from tests.simulation import shadow

Key = tuple[str, str]  # kind, ID


class WatchedStore(store.Store):
    """The real store, which tells the ledger of everything."""

    def __init__(self, name: str, ledger: "Ledger", *, checking: bool) -> None:
        super().__init__(checking=checking)
        self._name = name
        self._ledger = ledger
        self._digests: dict[Key, int] = {}
        self._digest = 0
        self._own = self.watch((), lambda: None)

    @override
    def apply(self, index: int, transactions: Iterable[pb.Transaction]) -> list[errors.SkepError | None]:
        batch = list(transactions)
        outcomes = super().apply(index, batch)
        changes = self._own.take()
        for change in changes:
            self._enter((change.kind, change.id), change.new)
        self._ledger.applied(self._name, index, batch, outcomes, changes)
        self._ledger.compare(self._name, index, self._digest)
        return outcomes

    @override
    def take_over(self, content: store.Content) -> store.Content:
        before = super().take_over(content)
        self._digests.clear()
        self._digest = 0
        with contextlib.suppress(watching.Lagged):
            self._own.take()
        for record in self.freeze().records():
            if record.WhichOneof("record") == "object":
                row = ops.unwrap(record.object)
                self._enter((record.object.WhichOneof("kind") or "", row.id), row)
        self._ledger.compare(self._name, self.index, self._digest)
        return before

    def _enter(self, key: Key, row: ops.AnyRow | None) -> None:
        self._digest ^= self._digests.pop(key, 0)
        if row is not None:
            digest = hashlib.blake2b(row.SerializeToString(deterministic=True), key=key[0].encode(), digest_size=16)
            self._digests[key] = int.from_bytes(digest.digest(), "big")
            self._digest ^= self._digests[key]


class Ledger:
    """The agreed state, and the history that the checks need."""

    def __init__(self) -> None:
        self.index = 0
        self.objects: dict[Key, Any] = {}
        self.written_off: dict[str, None] = {}  # tasks that were unwanted while their node was lost: see running.py
        # Tasks whose wish became RUNNING after READY: how long by the leader's clock each of the others of its service
        # had not changed by then, and it had been there. What an agent says afterwards changes nothing about that.
        self.waited_s: dict[str, dict[str, float]] = {}
        self.entries = 0
        self.transactions = 0
        self.refused = 0
        self.fell_back: Callable[[str, str], None] = lambda name, revision_id: None  # a service did, by itself
        self.changed: Callable[[], None] = lambda: None  # called after every entry
        self._of_service: dict[str, dict[str, None]] = {}
        self._on_node: dict[str, dict[str, None]] = {}
        self._assigned: list[pb.Task] = []  # by the entry that is being looked at
        self._digests: dict[int, tuple[str, int]] = {}
        self._decided_on: dict[str, int] = {}  # task -> index of the view on which it was assigned
        self._takes: dict[str, list[tuple[int, bool]]] = {}  # node -> since which index it takes tasks, or not

    def rows(self, kind: str) -> list[Any]:
        """All agreed objects of a kind."""
        return [row for (each, _), row in self.objects.items() if each == kind]

    def get(self, kind: str, row_id: str) -> Any:
        """An agreed object, or None."""
        return self.objects.get((kind, row_id))

    def of_service(self, service_id: str) -> list[pb.Task]:
        """The agreed tasks of a service."""
        return [self.objects["task", task_id] for task_id in self._of_service.get(service_id, ())]

    def on_node(self, node_id: str) -> list[pb.Task]:
        """The agreed tasks on a node."""
        return [self.objects["task", task_id] for task_id in self._on_node.get(node_id, ())]

    # ---------------------------------------------------------------- replicas

    def compare(self, name: str, index: int, digest: int) -> None:
        """All managers' stores are equal at equal index."""
        first, known = self._digests.setdefault(index, (name, digest))
        shadow.require(known == digest, f"{name}'s store differs from {first}'s at index {index}")

    def applied(
        self, name: str, index: int, batch: Sequence[pb.Transaction], outcomes: Sequence[errors.SkepError | None],
        changes: Sequence[watching.Change],
    ) -> None:  # fmt: skip
        """A manager has applied an entry."""
        if index <= self.index:
            return
        self.index = index
        self.entries += 1
        touched: dict[Key, None] = {}  # by an earlier transaction of this entry
        for transaction, outcome in zip(batch, outcomes, strict=True):
            self.transactions += 1
            if outcome is None:
                self._check_versions(name, index, transaction, touched)
            else:
                self.refused += 1
        for change in changes:
            known = self.objects.get((change.kind, change.id))
            old = None if change.old is None else change.old.version.index
            if change.old is not None and change.old.version.index != index:
                shadow.require(known is not None, f"{change.kind} {change.id} changed at {index}, but was not there")
                shadow.require(_version(known) == old, f"{change.kind} {change.id} is not what it was at {index}")
            self._change(index, change)
        for task in self._assigned:
            self._check_room(index, task)
        self._assigned.clear()
        self.changed()

    def _check_versions(self, name: str, index: int, transaction: pb.Transaction, touched: dict[Key, None]) -> None:
        """A transaction took effect: everything that it was decided on was still so."""
        keys: dict[Key, None] = {}
        for op in transaction.ops:
            kind = op.object.WhichOneof("kind") or ""
            key = kind, ops.unwrap(op.object).id
            keys[key] = None
            stored = self.objects.get(key)
            if op.kind == pb.OP_KIND_CREATE:
                shadow.require(stored is None or key in touched, f"{name} created {kind} {key[1]} anew at {index}")
                continue
            now = _version(stored)
            shadow.require(
                key not in touched and now == op.based_on,
                f"{name} let a change of {kind} {key[1]} based on {op.based_on} pass at {index}, when it was at {now}",
            )
        touched.update(keys)

    # ---------------------------------------------------------------- one change after the other

    def _change(self, index: int, change: watching.Change) -> None:
        key = change.kind, change.id
        if change.new is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = change.new
        if change.kind == "task":
            self._file(change.old, change.new)
        if change.kind == "node":
            self._node_changed(index, change.id, change.new)
        elif change.kind == "service" and isinstance(change.new, pb.Service):
            now, before = change.new.update_status, getattr(change.old, "update_status", pb.UpdateStatus())
            if now != before and now.message.startswith("update rolled back"):
                self.fell_back(change.new.name, change.new.revision_id)
        elif change.kind == "task" and isinstance(change.new, pb.Task):
            self._task_changed(index, change.old if isinstance(change.old, pb.Task) else None, change.new)

    def _node_changed(self, index: int, node_id: str, node: Any) -> None:
        takes = (
            node is not None
            and node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE
            and node.status.state == pb.NODE_STATE_READY
        )
        self._takes.setdefault(node_id, []).append((index, takes))
        if node is None or node.status.state == pb.NODE_STATE_DOWN:
            for task in self.on_node(node_id):
                self._write_off(task)

    def _task_changed(self, index: int, old: pb.Task | None, new: pb.Task) -> None:
        if old is not None:
            forward = new.status.state >= old.status.state and new.desired_state >= old.desired_state
            shadow.require(forward, f"task {new.id} went back at {index}: {states(old)} -> {states(new)}")
            moved = old.node_id and new.node_id != old.node_id
            shadow.require(not moved, f"task {new.id} moved from node {old.node_id} to {new.node_id} at {index}")
            if old.desired_state < pb.TASK_STATE_RUNNING <= new.desired_state:
                self._let_go(new)
            if old.status.state < pb.TASK_STATE_ASSIGNED == new.status.state:
                self._check_assignment(index, new)
                self._assigned.append(new)
        node = self.get("node", new.node_id)
        if new.node_id and (node is None or node.status.state == pb.NODE_STATE_DOWN):
            self._write_off(new)

    def _let_go(self, task: pb.Task) -> None:
        now = stamps.seconds(task.updated_at)
        created_at = stamps.seconds(task.created_at)
        self.waited_s[task.id] = {
            other.id: now - max(created_at, stamps.seconds(other.updated_at))
            for other in self.of_service(task.service_id)
            if other.id != task.id
        }

    def _write_off(self, task: pb.Task) -> None:
        if task.desired_state > pb.TASK_STATE_COMPLETE:
            self.written_off[task.id] = None

    def _check_assignment(self, index: int, task: pb.Task) -> None:
        """The node took tasks in the state that the scheduler had before it.

        Between that state and this entry the node may have been drained or lost: versions guard the task, and the
        orchestrator moves it on. What must never be is a scheduler that knew.
        """
        decided = self._decided_on.get(task.id)
        shadow.require(decided is not None, f"task {task.id} was assigned by nobody at {index}")
        takes = False
        for since, able in self._takes.get(task.node_id, ()):
            if since <= (decided or 0):
                takes = able
        shadow.require(takes, f"task {task.id} was put on node {task.node_id}, which takes none (entry {index})")

    def _check_room(self, index: int, task: pb.Task) -> None:
        """The node has what all its tasks were promised, no port twice, and no more of the service than it may."""
        node = self.get("node", task.node_id)
        if node is None:
            return  # deleted meanwhile
        memory_bytes, ports, alike = 0, [], 0
        for other in self.on_node(task.node_id):
            if not pb.TASK_STATE_ASSIGNED <= other.status.state <= pb.TASK_STATE_RUNNING:
                continue
            spec = self.get("revision", other.revision_id).spec
            memory_bytes += spec.task.resources.reservations.memory_bytes
            ports += [port.published_port for port in spec.endpoint.ports if port.publish_mode == pb.PUBLISH_MODE_HOST]
            alike += other.service_id == task.service_id and other.desired_state <= pb.TASK_STATE_COMPLETE
        where = f"with task {task.id} ({task.service_name}) on node {node.id} at {index}"
        have_bytes = node.description.resources.memory_bytes
        shadow.require(memory_bytes <= have_bytes, f"{memory_bytes} bytes of {have_bytes} are promised {where}")
        shadow.require(len(ports) == len(set(ports)), f"a host port is taken twice {where}")
        most = self.get("revision", task.revision_id).spec.task.placement.max_replicas
        shadow.require(not most or alike <= most, f"{alike} tasks of a service that may have {most} a node {where}")

    def _file(self, old: Any, new: Any) -> None:
        for table, key in ((self._of_service, "service_id"), (self._on_node, "node_id")):
            if old is not None:
                table.get(getattr(old, key), {}).pop(old.id, None)
            if new is not None:
                table.setdefault(getattr(new, key), {})[new.id] = None

    # ---------------------------------------------------------------- deciders

    def watch_decider(self, decider: plan.Decider) -> plan.Decider:
        """The decider, whose assignments are noted with the state they were decided on."""
        return _Noting(decider, self._decided_on)


class _Noting:
    """A decider and a notebook."""

    def __init__(self, decider: plan.Decider, notes: dict[str, int]) -> None:
        self._decider = decider
        self._notes = notes
        self.name = decider.name
        self.kinds = decider.kinds

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        return self._decider.touches(state, change)

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        result = self._decider.decide(state, now, rng, dirty)
        for op in result.ops:
            task = op.object.task
            if op.object.WhichOneof("kind") == "task" and task.status.state == pb.TASK_STATE_ASSIGNED:
                self._notes[task.id] = state.index
        return result


def _version(row: Any) -> int:
    return 0 if row is None else int(row.version.index)


def states(task: pb.Task) -> str:
    """What is and what is wished, in words."""
    return f"{pb.TaskState.Name(task.status.state)} wished {pb.TaskState.Name(task.desired_state)}"
