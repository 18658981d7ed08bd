"""The store: versions checked when applied, all or nothing, indexes, watches, snapshots, mutation found."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.store import commit, ops, store, watching
from skep import errors, pb, stamps

AT = stamps.stamp(1000.5)


def apply(target: store.Store, *transactions: list[pb.Op]) -> list[errors.SkepError | None]:
    entry = [pb.Transaction.FromString(pb.Transaction(ops=each, at=AT).SerializeToString()) for each in transactions]
    return target.apply(target.index + 1, entry)


def task(task_id: str, **fields: object) -> pb.Task:
    return pb.Task(id=task_id, **{"service_id": "s", **fields})  # type: ignore[arg-type]


def changed(target: store.Store, task_id: str) -> pb.Task:
    found = target.view().tasks.get(task_id)
    assert found is not None
    copy = pb.Task()
    copy.CopyFrom(found)
    return copy


def fresh() -> store.Store:
    return store.Store(checking=True)


def test_created_objects_carry_index_and_times() -> None:
    target = fresh()
    assert apply(target, [ops.create(task("t"))]) == [None]
    stored = changed(target, "t")
    assert stored.version.index == target.index == 1
    assert stored.created_at == stored.updated_at == AT


def test_an_update_needs_the_version_it_was_based_on() -> None:
    target = fresh()
    apply(target, [ops.create(task("t"))])
    first, second = changed(target, "t"), changed(target, "t")
    first.node_id, second.node_id = "n1", "n2"
    assert apply(target, [ops.update(first)]) == [None]
    (refusal,) = apply(target, [ops.update(second)])
    assert type(refusal) is errors.Conflict
    assert "out of sequence" in refusal.message
    assert changed(target, "t").node_id == "n1"


def test_two_transactions_of_one_entry_cannot_both_change_an_object() -> None:
    target = fresh()
    apply(target, [ops.create(task("t"))])
    one, other = changed(target, "t"), changed(target, "t")
    one.node_id, other.node_id = "n1", "n2"
    outcomes = apply(target, [ops.update(one)], [ops.update(other)])
    assert outcomes[0] is None
    assert isinstance(outcomes[1], errors.Conflict)


@pytest.mark.parametrize("kind", ["update", "delete"])
def test_what_is_gone_cannot_be_changed(kind: str) -> None:
    target = fresh()
    apply(target, [ops.create(task("t"))])
    gone = changed(target, "t")
    apply(target, [ops.delete(gone)])
    (refusal,) = apply(target, [getattr(ops, kind)(gone)])
    assert isinstance(refusal, errors.Conflict)


def test_a_transaction_happens_whole_or_not_at_all() -> None:
    target = fresh()
    apply(target, [ops.create(task("a", slot=1)), ops.create(task("b", slot=2))])
    kept = changed(target, "a")
    kept.node_id = "n1"
    stale = changed(target, "b")
    stale.version.index = 99
    outcome = apply(
        target, [ops.create(task("c")), ops.update(kept), ops.delete(changed(target, "b")), ops.update(stale)]
    )
    assert isinstance(outcome[0], errors.Conflict)
    view = target.view()
    assert {each.id for each in view.tasks} == {"a", "b"}
    assert [each.id for each in view.tasks.where("node", "n1")] == []
    assert sorted(each.id for each in view.tasks.where("service", "s")) == ["a", "b"]
    target.verify()


def test_names_are_unique_without_regard_to_case() -> None:
    target = fresh()
    apply(target, [ops.create(pb.Service(id="1", name="Web"))])
    (refusal,) = apply(target, [ops.create(pb.Service(id="2", name="wEB"))])
    assert isinstance(refusal, errors.AlreadyExists)
    assert "service wEB already exists" in refusal.message
    assert isinstance(apply(target, [ops.create(pb.Service(id="1", name="other"))])[0], errors.AlreadyExists)


@pytest.mark.parametrize("field", ["desired", "observed"])
def test_task_states_only_move_forward(field: str) -> None:
    target = fresh()
    apply(target, [ops.create(task("t", desired_state=pb.TASK_STATE_SHUTDOWN,
                                   status=pb.TaskStatus(state=pb.TASK_STATE_RUNNING)))])  # fmt: skip
    back = changed(target, "t")
    if field == "desired":
        back.desired_state = pb.TASK_STATE_RUNNING
    else:
        back.status.state = pb.TASK_STATE_READY
    assert isinstance(apply(target, [ops.update(back)])[0], errors.Conflict)


def test_entries_are_applied_once_and_in_order() -> None:
    target = fresh()
    target.apply(5, [])
    with pytest.raises(errors.Bug):
        target.apply(5, [])


def test_a_view_cannot_be_used_after_the_store_moved_on() -> None:
    target = fresh()
    view = target.view()
    apply(target, [ops.create(task("t"))])
    with pytest.raises(errors.Bug, match="take a new one"):
        view.tasks.get("t")


def test_a_mutated_object_is_found_with_the_name_of_who_got_it() -> None:
    target = fresh()
    apply(target, [ops.create(task("t"))])
    got = target.view().tasks.get("t")
    assert got is not None
    got.node_id = "changed in place"
    with pytest.raises(errors.Bug, match=r"task t was changed.*test_store\.py.*test_a_mutated_object"):
        target.verify()


def test_watchers_see_committed_changes_in_order_and_are_told_when_they_lag() -> None:
    target = fresh()
    woken: list[int] = []
    tasks = target.watch(["task"], lambda: woken.append(1), limit=3)
    services = target.watch(["service"], lambda: None)
    apply(target, [ops.create(task("a"))])
    moved = changed(target, "a")
    moved.node_id = "n1"
    apply(target, [ops.update(moved)])
    seen = tasks.take()
    assert [(change.id, change.old is None, change.index) for change in seen] == [("a", True, 1), ("a", False, 2)]
    assert len(woken) == 2
    assert services.take() == tasks.take() == []
    apply(target, [ops.create(task(str(number))) for number in range(4)])
    with pytest.raises(watching.Lagged):
        tasks.take()
    assert tasks.take() == []
    tasks.close()
    apply(target, [ops.create(task("late"))])
    assert tasks.take() == []


def test_a_refused_transaction_is_no_change() -> None:
    target = fresh()
    watcher = target.watch([], lambda: None)
    apply(target, [ops.create(task("t")), ops.create(task("t"))])
    assert watcher.take() == []


def test_a_frozen_picture_does_not_move() -> None:
    target = fresh()
    apply(target, [ops.create(task("t"))])
    frozen = target.freeze()
    apply(target, [ops.delete(changed(target, "t"))])
    assert [record.object.task.id for record in frozen.records() if record.HasField("object")] == ["t"]


@pytest.mark.parametrize("damage", ["no header", "one missing", "empty record"])
def test_a_snapshot_that_is_not_whole_is_refused_and_changes_nothing(damage: str) -> None:
    source = fresh()
    apply(source, [ops.create(task("a")), ops.create(task("b"))])
    records = list(source.freeze().records())
    broken = {"no header": records[1:], "one missing": records[:-1], "empty record": [*records, pb.SnapshotRecord()]}
    target = fresh()
    apply(target, [ops.create(task("kept"))])
    with pytest.raises(errors.Bug):
        target.take_over(store.thaw(broken[damage]))
    assert [each.id for each in target.view().tasks] == ["kept"]


def test_restoring_tells_watchers_to_start_over() -> None:
    source, target = fresh(), fresh()
    apply(source, [ops.create(task("a"))])
    watcher = target.watch([], lambda: None)
    target.take_over(store.thaw(source.freeze().records()))
    with pytest.raises(watching.Lagged):
        watcher.take()
    assert target.index == source.index


def test_what_a_snapshot_replaces_is_handed_back_to_be_freed_elsewhere() -> None:
    target, source = fresh(), fresh()
    apply(target, [ops.create(task("old"))])
    apply(source, [ops.create(task("new"))])
    old = target.view().tasks.get("old")
    before = target.take_over(store.thaw(source.freeze().records()))
    assert before.tables["task"].rows == {"old": old}
    before.discard()
    assert not any(table.rows or any(table.indexes.values()) for table in before.tables.values())
    assert [each.id for each in target.view().tasks] == ["new"]


def test_the_local_committer_raises_what_the_store_refuses() -> None:
    class Clock:
        def now(self) -> float:
            return 5.0

    async def main() -> None:
        target = fresh()
        committer = commit.LocalCommitter(target, Clock())
        assert await committer.commit([ops.create(task("t"))]) == 1
        with pytest.raises(errors.AlreadyExists):
            await committer.commit([ops.create(task("t"))])
        await committer.barrier()

    asyncio.run(main())


# A step: which of five tasks, what to do, and whether to lie about the version.
steps = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["create", "update", "delete"]), st.booleans()), max_size=4),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_replicas_that_apply_the_same_log_are_equal_and_indexes_agree_with_rows(
    log: list[list[tuple[int, str, bool]]],
) -> None:
    one, other = fresh(), fresh()
    for transaction in log:
        built: list[pb.Op] = []
        for number, kind, lie in transaction:
            stored = one.view().tasks.get(str(number))
            row = pb.Task(id=str(number), service_id=f"s{number % 2}", version=stored.version if stored else None)
            row.node_id = f"n{one.index % 3}"
            row.version.index += 7 if lie else 0
            built.append(getattr(ops, kind)(row))
        assert [type(r) for r in apply(one, built)] == [type(r) for r in apply(other, built)]
    dump = [record.SerializeToString(deterministic=True) for record in one.freeze().records()]
    assert dump == [record.SerializeToString(deterministic=True) for record in other.freeze().records()]
    restored = fresh()
    restored.take_over(store.thaw(one.freeze().records()))
    for target in (one, restored):
        view = target.view()
        for key in ("s0", "s1"):
            filed = sorted(t.id for t in view.tasks.where("service", key))
            assert filed == sorted(t.id for t in view.tasks if t.service_id == key)
            assert view.tasks.count("service", key) == sum(t.service_id == key for t in view.tasks)
        for node in view.tasks.keys("node"):
            assert {t.id for t in view.tasks.where("node", node)} == {t.id for t in view.tasks if t.node_id == node}
        target.verify()
