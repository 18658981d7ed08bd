"""What a node is to run, as messages for its session: the full set first, then differences.

Sans-IO, one `Assigner` per session. It sends what the store says now, so changes that pile up while an agent is slow
collapse into one. An agent's own statuses are not echoed.
"""

from manager.store import views, watching
from skep import pb

TASKS_MAX = 500  # per message
MESSAGE_BYTES_MAX = (
    1024 * 1024
)  # a message is closed at this size, so it is this and one task with its revision at most


class Assigner:
    """Remembers what one session has been sent."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._sequence = 0
        self._bytes = 0  # of the message that is being built
        self._tasks: dict[str, str] = {}  # its revision, by task
        self._revisions: dict[str, int] = {}  # how many of these tasks name it; the agent has exactly these
        self._payloads: dict[str, dict[str, None]] = {}  # of these revisions: IDs of the secrets and configs they name
        self._sent: dict[str, int] = {}  # secrets and configs that the agent has: how many of these revisions name it

    def full(self, view: views.View) -> list[pb.Assignments]:
        """Everything that is assigned to the node, in one message or more."""
        parts = [self._next(full=True)]
        for task in view.tasks.where("node", self._node_id):
            if task.status.state >= pb.TASK_STATE_ASSIGNED:
                self._continue(parts)
                self._add(parts, task, view)
        return parts

    def difference(self, view: views.View, dirty: dict[str, None]) -> list[pb.Assignments]:
        """What has become of these tasks, in one message, or more when a task brings much along.

        Takes out of `dirty` what it has looked at, not always all of it. Empty when it is nothing to the node, and then
        `dirty` is empty.
        """
        parts = [self._next(full=False)]
        while dirty and len(parts) == 1 and not self._is_full(parts[-1]):
            task_id = next(iter(dirty))
            del dirty[task_id]
            task = view.tasks.get(task_id)
            if task is not None and task.node_id == self._node_id and task.status.state >= pb.TASK_STATE_ASSIGNED:
                self._add(parts, task, view)
            elif task_id in self._tasks:
                self._revisions[self._tasks.pop(task_id)] -= 1
                parts[-1].removed_tasks.append(task_id)
        self._forget_revisions()
        if len(parts) > 1 or parts[0].tasks or parts[0].removed_tasks:
            return parts
        self._sequence -= 1
        return []

    def everything(self, view: views.View) -> list[str]:
        """IDs of all tasks that may have to be sent or removed, for when changes have been missed."""
        present = [task.id for task in view.tasks.where("node", self._node_id)]
        return list(dict.fromkeys([*present, *self._tasks]))

    def _next(self, *, full: bool) -> pb.Assignments:
        self._sequence += 1
        self._bytes = 0
        return pb.Assignments(sequence=self._sequence, full=full)

    def _continue(self, parts: list[pb.Assignments]) -> None:
        """Goes on in another message when the last one is full."""
        if self._is_full(parts[-1]):
            parts[-1].more = True
            parts.append(self._next(full=parts[-1].full))

    def _is_full(self, message: pb.Assignments) -> bool:
        return len(message.tasks) + len(message.removed_tasks) >= TASKS_MAX or self._bytes >= MESSAGE_BYTES_MAX

    def _add(self, parts: list[pb.Assignments], task: pb.Task, view: views.View) -> None:
        parts[-1].tasks.append(task)
        self._bytes += task.ByteSize()
        if task.id in self._tasks:
            return
        self._tasks[task.id] = task.revision_id
        if task.revision_id not in self._revisions:
            revision = view.revisions.get(task.revision_id)
            if revision is not None:  # the revision of a task that only waits to be removed may be gone
                parts[-1].revisions.append(revision)
                self._bytes += revision.ByteSize()
                self._add_payloads(parts, revision, view)
        self._revisions[task.revision_id] = self._revisions.get(task.revision_id, 0) + 1

    def _add_payloads(self, parts: list[pb.Assignments], revision: pb.Revision, view: views.View) -> None:
        """What the revision's references name. One that was removed meanwhile is left out: the agent says so then."""
        container = revision.spec.task.container
        secrets = dict.fromkeys(each.secret_id for each in container.secrets)
        configs = dict.fromkeys(each.config_id for each in container.configs)
        self._payloads[revision.id] = secrets | configs
        for secret_id in secrets:
            secret = view.secrets.get(secret_id)
            if self._first(secret_id) and secret is not None:
                self._continue(parts)
                parts[-1].secrets.append(secret)
                self._bytes += secret.ByteSize()
        for config_id in configs:
            config = view.configs.get(config_id)
            if self._first(config_id) and config is not None:
                self._continue(parts)
                parts[-1].configs.append(config)
                self._bytes += config.ByteSize()

    def _first(self, payload_id: str) -> bool:
        self._sent[payload_id] = self._sent.get(payload_id, 0) + 1
        return self._sent[payload_id] == 1

    def _forget_revisions(self) -> None:
        for revision_id in [each for each, count in self._revisions.items() if not count]:
            del self._revisions[revision_id]
            for payload_id in self._payloads.pop(revision_id, {}):
                self._sent[payload_id] -= 1
                if not self._sent[payload_id]:
                    del self._sent[payload_id]


def concerned(change: watching.Change) -> list[str]:
    """IDs of the nodes that must hear of a change of a task: none for what is an agent's own report."""
    old = change.old if isinstance(change.old, pb.Task) else None
    new = change.new if isinstance(change.new, pb.Task) else None
    if new is None:
        return [old.node_id] if old is not None and old.node_id else []
    if new.status.state < pb.TASK_STATE_ASSIGNED or not new.node_id:
        return []
    if old is None or old.node_id != new.node_id or old.status.state < pb.TASK_STATE_ASSIGNED:
        return [new.node_id]
    if new.status.state == pb.TASK_STATE_ORPHANED and old.status.state != new.status.state:
        return [new.node_id]
    return [new.node_id] if _wish(old) != _wish(new) else []


def _wish(task: pb.Task) -> pb.Task:
    """The task without what comes from its agent and what every write changes."""
    bare = pb.Task()
    bare.CopyFrom(task)
    for field in ("status", "version", "updated_at", "running_at", "evicted"):
        bare.ClearField(field)
    return bare
