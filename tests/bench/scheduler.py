"""How fast the scheduler decides, and how fast a new leader gets through its first full pass.

Decisions on an in-memory view, no Raft. Seconds are CPU seconds of the one thread that decides, the least of a few
runs: on an idle machine that is the wall clock, on a busy one it is what the work itself takes.

Beside some figures stands what SwarmKit's own Go benchmark (BenchmarkScheduler1kNodes..) needs, measured in wall time
on the same kind of machine. That one waits until all tasks are assigned in its in-memory store, so what compares with
it is our decision and its application to the store together (`.._stored_s`), in transactions as the leader's loop makes
them. Neither side replicates or writes to disk.
"""

import asyncio
import functools
import gc
import time
from collections.abc import Callable, Iterable, Sequence

from manager import loops, plan
from manager.scheduler import scheduler
from manager.store import commit, store, views, watching
from skep import clock, ids, pb, stamps
from skep.daemon import main as daemon

RUNS = 5
IDLE_S = 10.0  # how long the idle loop is watched
NOW = 1_700_000_000.0
GB = 1000**3
SWARMKIT_PLACE_S = {1_000: 0.185, 10_000: 2.15, 100_000: 20.5}  # on 1,000 nodes: middle of its runs
SWARMKIT_CONSTRAINTS_S = {1_000: 0.425, 10_000: 2.25}

Change = Callable[[pb.ServiceSpec], object]


class Bed:
    """A store that is filled without operations: what is in it came about long ago."""

    def __init__(self, nodes: int) -> None:
        self.store = store.Store()
        self._ops: list[pb.Op] = []
        for number in range(nodes):
            self._node(number)

    def _create(self) -> pb.Object:
        op = pb.Op(kind=pb.OP_KIND_CREATE)
        self._ops.append(op)
        return op.object

    def _node(self, number: int) -> None:
        node = self._create().node
        node.id = f"node{number:06d}"
        node.status.state = pb.NODE_STATE_READY
        node.status.addr = "127.0.0.1"
        node.description.hostname = node.id
        node.description.platform.os = "linux"
        node.description.platform.architecture = "x86_64"
        node.description.resources.nano_cpus = stamps.to_nanos(64.0)
        node.description.resources.memory_bytes = 256 * GB
        node.spec.labels["zone"] = f"z{number % 3}"
        node.spec.labels["rack"] = f"r{number % 30}"
        node.spec.labels["disk"] = "ssd" if number % 2 else "spinning"

    def service(self, name: str, replicas: int, change: Change = lambda _: None) -> None:
        """A service with its revision."""
        revision = self._create().revision
        revision.id, revision.service_id, revision.number = f"{name}@1", name, 1
        revision.spec.name = name
        revision.spec.task.container.image = "demo:1"
        revision.spec.mode.replicated.replicas = replicas
        change(revision.spec)
        service = self._create().service
        service.id, service.name, service.revision_id, service.next_revision = name, name, revision.id, 2

    def task(self, service: str, slot: int, state: pb.TaskState.ValueType, node: str = "") -> None:
        """A task of the service."""
        task = self._create().task
        task.id = f"{service}.{slot:017d}"
        task.service_id = task.service_name = service
        task.revision_id = f"{service}@1"
        task.slot = slot
        task.node_id = node
        task.desired_state = pb.TASK_STATE_RUNNING
        task.status.state = state
        task.status.timestamp.CopyFrom(stamps.stamp(NOW - 3600))
        if state == pb.TASK_STATE_RUNNING:
            task.running_at.CopyFrom(stamps.stamp(NOW - 3600))

    def commit(self, ops: list[pb.Op] | None = None) -> None:
        """Applies what was created, or the operations of a plan."""
        refusal = self.store.apply_local(self._ops if ops is None else ops, stamps.stamp(NOW))
        if refusal is not None:
            raise refusal
        if ops is None:
            self._ops = []


def pending(nodes: int, services: int, tasks_each: int, change: Change = lambda _: None) -> Bed:
    """Services whose tasks all wait for a node."""
    bed = Bed(nodes)
    for number in range(services):
        name = f"service{number:06d}"
        bed.service(name, tasks_each, change)
        for slot in range(1, tasks_each + 1):
            bed.task(name, slot, pb.TASK_STATE_PENDING)
    bed.commit()
    return bed


def decide_s(bed: Bed, expected: int, *, dirty: frozenset[str] | None = None, runs: int = RUNS) -> float:
    """The time of one decision from the view to the finished plan, in seconds."""
    times: list[float] = []
    for _ in range(runs):
        gc.collect()
        view = bed.store.view()
        started = time.process_time()
        result = scheduler.Scheduler().decide(view, NOW, ids.seeded_rng(1), dirty)
        times.append(time.process_time() - started)
        placed = sum(op.object.task.status.state == pb.TASK_STATE_ASSIGNED for op in result.ops)
        if placed != expected:
            raise AssertionError(f"{placed} tasks placed instead of {expected}")
        del result
    return min(times)


def stored_s(make: Callable[[], Bed], *, runs: int = RUNS) -> float:
    """The time of one decision and its application to the store, in parts as the leader's loop makes them."""
    times: list[float] = []
    for _ in range(runs):
        bed = make()
        gc.collect()
        started = time.process_time()
        result = scheduler.Scheduler().decide(bed.store.view(), NOW, ids.seeded_rng(1), None)
        for first in range(0, len(result.ops), loops.OPS_MAX):
            bed.commit(result.ops[first : first + loops.OPS_MAX])
        times.append(time.process_time() - started)
    return min(times)


def constrained(spec: pb.ServiceSpec) -> None:
    """Three constraints that half of the nodes satisfy."""
    spec.task.placement.constraints.extend(["node.labels.disk==ssd", "node.role==worker", "node.platform.os!=windows"])


def spread(spec: pb.ServiceSpec) -> None:
    """A preference of two levels."""
    for descriptor in ("node.labels.zone", "node.labels.rack"):
        spec.task.placement.preferences.add().spread.spread_descriptor = descriptor


def loaded(nodes: int, tasks_each: int) -> Bed:
    """Nodes that run tasks, settled; service0 has one more task to place."""
    bed = Bed(nodes)
    services = max(1, nodes * tasks_each // 100)
    for number in range(services):
        bed.service(f"service{number:06d}", 100)
    for number in range(nodes * tasks_each):
        node = f"node{number % nodes:06d}"
        bed.task(f"service{number // 100:06d}", number % 100 + 1, pb.TASK_STATE_RUNNING, node)
    bed.commit()
    return bed


def one_ms(nodes: int) -> float:
    """One task of a new service onto nodes with ten tasks each, in milliseconds."""
    bed = loaded(nodes, 10)
    bed.service("new", 1)
    bed.task("new", 1, pb.TASK_STATE_PENDING)
    bed.commit()
    return decide_s(bed, 1, dirty=frozenset({"new"}), runs=7) * 1000


def full_pass_s(bed: Bed) -> tuple[float, int]:
    """Every decider once on everything, as a new leader does: seconds, and how many operations came of it."""
    gc.collect()
    rng = ids.seeded_rng(1)
    count = 0
    started = time.process_time()
    for decider in loops.default_deciders():
        count += len(decider.decide(bed.store.view(), NOW, rng, None).ops)
    return time.process_time() - started, count


def idle_cpu_pct(bed: Bed) -> float:
    """CPU of the leader's loop over a settled cluster in which nothing changes, in percent of one core."""

    async def main() -> float:
        wall = clock.SystemClock()
        first = asyncio.Event()
        deciders: list[plan.Decider] = [*loops.default_deciders(), Last(first)]
        committer = commit.LocalCommitter(bed.store, wall)
        loop = loops.LeaderLoop(
            store=bed.store, committer=committer, deciders=deciders, clock=wall, rng=ids.seeded_rng(1)
        )
        before = bed.store.index
        running = asyncio.create_task(loop.run())
        await first.wait()
        cpu, started = time.process_time(), time.perf_counter()
        await asyncio.wait([running], timeout=IDLE_S)
        used = 100 * (time.process_time() - cpu) / (time.perf_counter() - started)
        if running.done() or bed.store.index != before:
            raise AssertionError("a settled cluster was changed, or its loop ended")
        running.cancel()
        await asyncio.wait([running])
        return used

    return asyncio.run(main())


class Last:
    """A decider after all others: says that a pass is over."""

    name = "last"
    kinds: frozenset[str] = frozenset()

    def __init__(self, over: asyncio.Event) -> None:
        self._over = over

    def touches(self, state: views.View, change: watching.Change) -> Iterable[str]:
        del state, change
        return ()

    def decide(self, state: views.View, now: float, rng: ids.Rng, dirty: frozenset[str] | None) -> plan.Plan:
        del state, now, rng, dirty
        self._over.set()
        return plan.Plan()


def report(name: str, value: float, unit: str, *, swarmkit: float | None = None) -> float:
    """One figure a line, and the comparison as a comment."""
    print(f"{name}: {value:.3g} {unit}", flush=True)
    if swarmkit is not None:
        print(f"# SwarmKit's own Go benchmark: {swarmkit:g} {unit}, {swarmkit / value:.1f} times as long", flush=True)
    return value


def growth(what: str, times: float, few: float, many: float) -> None:
    """How the cost has grown, as a comment."""
    print(f"# {times:g} times the {what}: {many / few:.1f} times as long", flush=True)


def by_tasks() -> None:
    """More tasks on the same nodes, with and without constraints."""
    decided: dict[int, float] = {}
    for tasks in (1_000, 10_000, 100_000):
        bed = pending(1_000, 1, tasks)
        decided[tasks] = report(f"scheduler.place.{tasks}x1000_s", decide_s(bed, tasks), "s")
        value = stored_s(functools.partial(pending, 1_000, 1, tasks))
        report(f"scheduler.place.{tasks}x1000_stored_s", value, "s", swarmkit=SWARMKIT_PLACE_S[tasks])
    growth("tasks", 100, decided[1_000], decided[100_000])
    for tasks in (1_000, 10_000):
        report(f"scheduler.constraints.{tasks}x1000_s", decide_s(pending(1_000, 1, tasks, constrained), tasks), "s")
        value = stored_s(functools.partial(pending, 1_000, 1, tasks, constrained))
        report(f"scheduler.constraints.{tasks}x1000_stored_s", value, "s", swarmkit=SWARMKIT_CONSTRAINTS_S[tasks])


def by_nodes() -> None:
    """The same tasks on more nodes."""
    decided = {
        nodes: report(f"scheduler.place.10000x{nodes}_s", decide_s(pending(nodes, 1, 10_000), 10_000), "s")
        for nodes in (100, 10_000)
    }
    growth("nodes", 100, decided[100], decided[10_000])
    for nodes in (100, 1_000, 10_000):
        report(f"scheduler.one.1x{nodes}_ms", one_ms(nodes), "ms")


def main(arguments: Sequence[str]) -> None:
    gc.set_threshold(*daemon.GC_THRESHOLDS)
    by_tasks()
    by_nodes()
    report("scheduler.services.10000x10000_s", decide_s(pending(10_000, 10_000, 1), 10_000), "s")
    report("scheduler.spread.10000x1000_s", decide_s(pending(1_000, 1_000, 10, spread), 10_000), "s")
    bed = loaded(1_000, 100)
    times = [full_pass_s(bed) for _ in range(RUNS)]
    if any(count for _, count in times):
        raise AssertionError("a settled cluster needs no operations")
    report("deciders.takeover.100000_s", min(seconds for seconds, _ in times), "s")
    if "quick" not in arguments:
        report("deciders.idle_cpu_pct", idle_cpu_pct(bed), "%")
