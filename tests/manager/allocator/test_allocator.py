"""NEW tasks become PENDING."""

from manager.allocator import allocator
from manager.store import ops
from skep import pb
from tests.manager.orchestrator import world


def put(w: world.World, task_id: str, desired: pb.TaskState.ValueType) -> None:
    w.write(ops.create(pb.Task(id=task_id, service_id="s", revision_id="r", slot=1, desired_state=desired)))


def test_new_tasks_become_pending_and_unwanted_ones_stay() -> None:
    w = world.World()
    put(w, "a", pb.TASK_STATE_RUNNING)
    put(w, "b", pb.TASK_STATE_READY)
    put(w, "c", pb.TASK_STATE_SHUTDOWN)
    decider = allocator.Allocator()
    result = decider.decide(w.view, w.clock.now(), w.rng, None)
    w.write(*result.ops)
    states = {task.id: (task.status.state, task.status.message) for task in w.view.tasks}
    pending = (pb.TASK_STATE_PENDING, "pending task scheduling")
    assert states == {"a": pending, "b": pending, "c": (pb.TASK_STATE_NEW, "")}
    assert decider.decide(w.view, w.clock.now(), w.rng, None).ops == []


def test_only_the_tasks_named() -> None:
    w = world.World()
    watch = w.store.watch({"task"}, lambda: None)
    put(w, "a", pb.TASK_STATE_RUNNING)
    put(w, "b", pb.TASK_STATE_RUNNING)
    decider = allocator.Allocator()
    assert [key for change in watch.take() for key in decider.touches(w.view, change)] == ["a", "b"]
    result = decider.decide(w.view, w.clock.now(), w.rng, frozenset({"b"}))
    assert [op.object.task.id for op in result.ops] == ["b"]
