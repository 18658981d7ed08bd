"""What a node is sent: everything once, then what changed, and no echo."""

from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher import assignments
from manager.store import ops, store, watching
from skep import pb
from tests.agent import joined


def filled(*rows: ops.AnyRow) -> store.Store:
    made = store.Store(checking=True)
    write(made, *(ops.create(row) for row in rows))
    return made


def write(target: store.Store, *operations: pb.Op) -> list[watching.Change]:
    watch = target.watch({"task"}, lambda: None)
    decoded = pb.Transaction.FromString(pb.Transaction(ops=operations).SerializeToString())
    assert target.apply(target.index + 1, [decoded]) == [None]
    watch.close()
    return watch.take()


def changed(target: store.Store, task_id: str) -> pb.Task:
    found = target.view().tasks.get(task_id)
    assert found is not None
    copy = pb.Task()
    copy.CopyFrom(found)
    return copy


def test_the_full_set_holds_what_is_assigned_and_each_revision_once() -> None:
    held = filled(
        joined.revision(),
        joined.task("t1", "n1"),
        joined.task("t2", "n1", state=pb.TASK_STATE_FAILED, desired=pb.TASK_STATE_SHUTDOWN),
        joined.task("t3", "n2"),
        joined.task("t4", "n1", state=pb.TASK_STATE_PENDING),
    )
    (message,) = assignments.Assigner("n1").full(held.view())
    assert (message.full, message.sequence) == (True, 1)
    assert [each.id for each in message.tasks] == ["t1", "t2"]
    assert [each.id for each in message.revisions] == ["r1"]


def test_differences_are_numbered_and_an_empty_one_is_none() -> None:
    held = filled(joined.revision(), joined.task("t1", "n1"))
    assigner = assignments.Assigner("n1")
    assigner.full(held.view())
    assert assigner.difference(held.view(), {"unknown": None}) == []
    write(held, ops.create(joined.task("t2", "n1")), ops.delete(changed(held, "t1")))
    (message,) = assigner.difference(held.view(), {"t1": None, "t2": None})
    assert message.sequence == 2
    assert list(message.removed_tasks) == ["t1"]
    assert [each.id for each in message.tasks] == ["t2"]
    assert not message.revisions


def test_a_revision_comes_again_after_its_last_task_was_removed() -> None:
    held = filled(joined.revision(), joined.task("t1", "n1"))
    assigner = assignments.Assigner("n1")
    assigner.full(held.view())
    write(held, ops.delete(changed(held, "t1")))
    assigner.difference(held.view(), {"t1": None})
    write(held, ops.create(joined.task("t2", "n1")))
    (message,) = assigner.difference(held.view(), {"t2": None})
    assert [each.id for each in message.revisions] == ["r1"]


def test_who_is_concerned_by_a_change() -> None:
    held = filled(joined.revision(), joined.task("t1", "n1", state=pb.TASK_STATE_PENDING))

    def after(state: pb.TaskState.ValueType, desired: pb.TaskState.ValueType = joined.RUN) -> list[str]:
        task = changed(held, "t1")
        task.status.state = state
        task.desired_state = desired
        (change,) = write(held, ops.update(task))
        return assignments.concerned(change)

    assert after(pb.TASK_STATE_PENDING) == []
    assert after(pb.TASK_STATE_ASSIGNED) == ["n1"]
    assert after(pb.TASK_STATE_PREPARING) == []  # the agent's own report
    task = changed(held, "t1")
    task.status.state = pb.TASK_STATE_RUNNING
    task.running_at.seconds = 5
    (change,) = write(held, ops.update(task))
    assert assignments.concerned(change) == []
    assert after(pb.TASK_STATE_RUNNING, pb.TASK_STATE_SHUTDOWN) == ["n1"]
    assert after(pb.TASK_STATE_ORPHANED, pb.TASK_STATE_SHUTDOWN) == ["n1"]
    (change,) = write(held, ops.delete(changed(held, "t1")))
    assert assignments.concerned(change) == ["n1"]


def test_large_sets_travel_in_parts() -> None:
    names = [f"t{number:04}" for number in range(assignments.TASKS_MAX * 2 + 1)]
    held = filled(joined.revision(), *(joined.task(name, "n1") for name in names))
    assigner = assignments.Assigner("n1")
    parts = assigner.full(held.view())
    assert [(each.full, each.more, each.sequence) for each in parts] == [
        (True, True, 1), (True, True, 2), (True, False, 3),
    ]  # fmt: skip
    assert [task.id for each in parts for task in each.tasks] == names
    write(held, *(ops.delete(changed(held, name)) for name in names))
    dirty = dict.fromkeys(names)
    messages = [each for _ in range(3) for each in assigner.difference(held.view(), dirty)]
    assert [name for each in messages for name in each.removed_tasks] == names
    assert not dirty


def test_heavy_revisions_travel_in_parts() -> None:
    heavy = [joined.revision(f"r{number}", image="x" * assignments.MESSAGE_BYTES_MAX) for number in range(3)]
    held = filled(*heavy, *(joined.task(f"t{number}", "n1", revision_id=f"r{number}") for number in range(3)))
    assigner = assignments.Assigner("n1")
    assert [len(each.tasks) for each in assigner.full(held.view())] == [1, 1, 1]
    dirty = {"t0": None, "t1": None, "t2": None}
    assert len(assigner.difference(held.view(), dirty)) == 1
    assert not dirty  # the revisions are there already


def naming(revision_id: str, *secrets: str, configs: tuple[str, ...] = ()) -> pb.Revision:
    made = joined.revision(revision_id)
    container = made.spec.task.container
    for secret_id in secrets:
        container.secrets.add(secret_id=secret_id, secret_name=secret_id)
    for config_id in configs:
        container.configs.add(config_id=config_id, config_name=config_id)
    return made


def test_secrets_come_with_the_first_revision_that_names_them_and_again_after_the_last() -> None:
    held = filled(
        pb.Secret(id="s1", name="s1", spec=pb.SecretSpec(data=b"hush")),
        pb.Secret(id="s2", name="s2", spec=pb.SecretSpec(data=b"not for this node")),
        pb.Config(id="c1", name="c1", spec=pb.ConfigSpec(data=b"a=1")),
        naming("r1", "s1", "s1", "gone"),
        naming("r2", "s1", configs=("c1",)),
        joined.task("t1", "n1"),
    )
    assigner = assignments.Assigner("n1")
    (message,) = assigner.full(held.view())
    assert [each.spec.data for each in message.secrets] == [b"hush"]
    write(held, ops.create(joined.task("t2", "n1", revision_id="r2")))
    (message,) = assigner.difference(held.view(), {"t2": None})
    assert (len(message.secrets), [each.id for each in message.configs]) == (0, ["c1"])
    write(held, ops.delete(changed(held, "t1")), ops.delete(changed(held, "t2")))
    assigner.difference(held.view(), {"t1": None, "t2": None})
    write(held, ops.create(joined.task("t3", "n1")))
    (message,) = assigner.difference(held.view(), {"t3": None})
    assert [each.id for each in message.secrets] == ["s1"]


def test_much_payload_travels_in_parts_that_count_together() -> None:
    size = assignments.MESSAGE_BYTES_MAX // 2 + 1
    names = tuple(f"c{number}" for number in range(5))
    held = filled(
        *(pb.Config(id=name, name=name, spec=pb.ConfigSpec(data=b"x" * size)) for name in names),
        naming("r1", configs=names),
    )
    assigner = assignments.Assigner("n1")
    assigner.full(held.view())
    write(held, ops.create(joined.task("t1", "n1")))
    dirty = {"t1": None}
    parts = assigner.difference(held.view(), dirty)
    assert [(each.full, each.more, each.sequence) for each in parts] == [
        (False, True, 2), (False, True, 3), (False, False, 4),
    ]  # fmt: skip
    assert [each.id for part in parts for each in part.configs] == list(names)


STEPS = st.lists(st.tuples(st.sampled_from(["put", "drop", "look"]), st.integers(0, 5), st.integers(0, 2)), max_size=30)


@given(STEPS)
def test_an_agent_that_follows_the_messages_has_what_the_store_has(steps: list[tuple[str, int, int]]) -> None:
    held = filled(*(joined.revision(f"r{number}") for number in range(3)))
    assigner = assignments.Assigner("n1")
    tasks: dict[str, pb.Task] = {}
    revisions: dict[str, pb.Revision] = {}

    def take(message: pb.Assignments) -> None:
        revisions.update({each.id: each for each in message.revisions})
        tasks.update({each.id: each for each in message.tasks})
        for removed in message.removed_tasks:
            del tasks[removed]
        used = {each.revision_id for each in tasks.values()}
        assert used <= set(revisions)  # never a task without its revision
        for each in [each for each in revisions if each not in used]:
            del revisions[each]

    for part in assigner.full(held.view()):
        take(part)
    dirty: dict[str, None] = {}
    names: dict[int, str] = {}
    for turn, (verb, number, revision) in enumerate([*steps, ("look", 0, 0)]):
        exists = number in names
        name = names.get(number, f"t{number}-{turn}")  # an ID is never used again
        if verb == "put" and not exists:
            names[number] = name
            write(held, ops.create(joined.task(name, "n1", revision_id=f"r{revision}")))
            dirty[name] = None
        elif verb == "drop" and exists:
            del names[number]
            write(held, ops.delete(changed(held, name)))
            dirty[name] = None
        elif verb == "look":
            for message in assigner.difference(held.view(), dirty):
                take(message)
            assert not dirty
    assert tasks == {each.id: each for each in held.view().tasks}
