"""Laws that hold whatever users do and whatever nodes suffer."""

import random
from collections.abc import Callable

import hypothesis
from hypothesis import strategies as st

from manager import plan
from manager.orchestrator import rebalance, tasks
from manager.store import ops, watching
from skep import pb, stamps
from tests.manager.orchestrator import world

NODES = 4
SERVICES = ("a", "b", "c")
hypothesis.settings.register_profile("deciders", deadline=None, max_examples=40, derandomize=True)
SETTINGS = hypothesis.settings.get_profile("deciders")


def shape(rng: random.Random) -> Callable[[pb.ServiceSpec], object]:
    """A random wish, small enough that some fit and some do not."""
    memory = rng.choice([0, 0, 1, 2, 3]) * world.GB
    cpus = rng.choice([0.0, 0.0, 0.0, 1.0, 1.5])
    gpus = rng.choice([0, 0, 0, 1, 2])
    port = rng.choice([0, 0, 0, 8080, 8081])
    limit = rng.choice([0, 0, 0, 1, 2])
    zone = rng.choice(["", "", "node.labels.zone==east", "node.labels.zone!=east"])
    parallelism = rng.choice([0, 1, 2])
    order = rng.choice([pb.UPDATE_ORDER_STOP_FIRST, pb.UPDATE_ORDER_START_FIRST])
    action = rng.choice([pb.FAILURE_ACTION_PAUSE, pb.FAILURE_ACTION_CONTINUE, pb.FAILURE_ACTION_ROLLBACK])
    attempts = rng.choice([0, 0, 1, 3])
    condition = rng.choice(
        [pb.RESTART_CONDITION_ANY] * 3 + [pb.RESTART_CONDITION_ON_FAILURE, pb.RESTART_CONDITION_NONE]
    )
    image = f"demo:{rng.randrange(3)}"

    def change(spec: pb.ServiceSpec) -> None:
        spec.task.container.image = image
        reserved = spec.task.resources.reservations
        reserved.CopyFrom(pb.Resources(nano_cpus=stamps.to_nanos(cpus), memory_bytes=memory))
        if gpus:
            reserved.generic.add().discrete.CopyFrom(pb.GenericResource.Discrete(kind="gpu", value=gpus))
        spec.ClearField("endpoint")
        if port:
            spec.endpoint.ports.add(target_port=80, published_port=port, publish_mode=pb.PUBLISH_MODE_HOST)
        spec.task.placement.max_replicas = limit
        spec.task.placement.ClearField("constraints")
        if zone:
            spec.task.placement.constraints.append(zone)
        spec.update.CopyFrom(pb.UpdateConfig(parallelism=parallelism, order=order, failure_action=action))
        spec.task.restart.CopyFrom(pb.RestartPolicy(condition=condition, max_attempts=attempts))

    return change


class Chaos:
    """Random users, nodes and agents over one world."""

    def __init__(self, seed: int, w: world.World) -> None:
        self.rng = random.Random(seed)
        self.w = w
        w.endless = self.rng.random() < 0.5
        for number in range(NODES):
            zone = "east" if number % 2 else "west"
            w.node(f"n{number}", memory=4 * world.GB, labels={"zone": zone})
            w.change_node(f"n{number}", self.equip)
        w.write(ops.create(pb.Cluster(id="c")))

    @staticmethod
    def equip(node: pb.Node) -> None:
        for name in ("gpu1", "gpu2", "gpu3"):
            node.description.resources.generic.add().named.CopyFrom(pb.GenericResource.Named(kind="gpu", value=name))

    def step(self) -> None:
        """One thing happens."""
        self.rng.choice([self.user, self.node, self.crash, self.time, self.agents, self.agents, self.agents])()

    def user(self) -> None:
        if self.rng.random() < 0.1:
            self.even_out()
            return
        name = self.rng.choice(SERVICES)
        if self.w.view.services.get(name) is None:
            if not self.w.tasks(name) and not list(self.w.view.revisions.where("service", name)):
                self.create(name)
            return
        match self.rng.randrange(5):
            case 0:
                self.w.write(ops.delete(self.w.the_service(name)))
            case 1 if self.mode(name) == "replicated":
                self.w.scale(name, self.rng.randrange(6))
            case 2 if self.mode(name) in {"replicated", "global"} and self.w.the_service(name).previous_revision_id:
                self.w.roll_back(name)
            case _:
                self.w.update(name, shape(self.rng))

    def even_out(self) -> None:
        limits = pb.RebalanceLimits()
        limits.CopyFrom(rebalance.DEFAULTS)
        limits.min_age = 0
        cluster = pb.Cluster()
        cluster.CopyFrom(self.w.view.cluster)
        cluster.spec.auto_rebalance = self.rng.random() < 0.5
        asked = rebalance.requested(limits, self.w.clock.now(), "")
        asked.moving.extend(cluster.rebalance.moving)
        cluster.rebalance.CopyFrom(asked)
        self.w.write(ops.update(cluster))

    def mode(self, name: str) -> str:
        return self.w.view.spec(self.w.the_service(name)).mode.WhichOneof("mode") or ""

    def create(self, name: str) -> None:
        change = shape(self.rng)
        match self.rng.randrange(6):
            case 0 | 1:
                self.w.everywhere(name, change)
            case 2:
                self.w.job(name, self.rng.randrange(6), self.rng.randrange(4), change)
            case 3:
                self.w.job_everywhere(name, change)
            case _:
                self.w.service(name, self.rng.randrange(6), change)

    def node(self) -> None:
        name = f"n{self.rng.randrange(NODES)}"
        match self.rng.randrange(4):
            case 0:
                self.w.drain(name)
            case 1:
                self.w.down(name)
            case 2:
                self.w.change_node(name, lambda node: node.spec.labels.update(zone=self.rng.choice(["east", "west"])))
            case _:
                self.w.hung.pop(name, None)

                def revive(node: pb.Node) -> None:
                    node.status.state = pb.NODE_STATE_READY
                    node.spec.availability = pb.NODE_AVAILABILITY_ACTIVE

                self.w.change_node(name, revive)

    def crash(self) -> None:
        alive = [t for t in self.w.view.tasks if pb.TASK_STATE_ASSIGNED < t.status.state <= pb.TASK_STATE_RUNNING]
        if alive:
            ends = [pb.TASK_STATE_COMPLETE, pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED]
            self.w.report(self.rng.choice(alive).id, self.rng.choice(ends))

    def time(self) -> None:
        self.w.clock.time += self.rng.choice([0.5, 3.0, 7.0, 70.0])

    def agents(self) -> None:
        self.w.agents(lambda task: self.rng.random() < 0.6)


def check_limits(w: world.World) -> None:
    """No node has more than it can give."""
    view = w.view
    for node in view.nodes:
        memory = cpus = 0
        ports: list[int] = []
        names: list[str] = []
        for task in view.tasks.where("node", node.id):
            if not pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING:
                continue
            spec = view.revision(task.revision_id).spec
            memory += spec.task.resources.reservations.memory_bytes
            cpus += spec.task.resources.reservations.nano_cpus
            names += [each.named.value for each in task.assigned_generic]
            assert len(task.assigned_generic) == sum(
                each.discrete.value for each in spec.task.resources.reservations.generic
            )
            ports += [port.published_port for port in spec.endpoint.ports]
        assert memory <= node.description.resources.memory_bytes
        assert cpus <= node.description.resources.nano_cpus
        assert len(names) == len(dict.fromkeys(names)), "a GPU has one owner"
        assert len(ports) == len(dict.fromkeys(ports))


def check_places(w: world.World) -> None:
    """What every mode promises about how many tasks are wished where."""
    for service in w.view.services:
        mode = w.view.spec(service).mode
        iteration = service.job_status.job_iteration.index
        places: dict[str, list[pb.Task]] = {}
        for task in w.tasks(service.id):
            if task.job_iteration.index == iteration:
                places.setdefault(str(task.slot or task.node_id), []).append(task)
        going = [
            [task for task in place if tasks.runnable(task) and not tasks.ended(task)] for place in places.values()
        ]
        match mode.WhichOneof("mode"):
            case "replicated_job":
                assert len(places) <= mode.replicated_job.total_completions
                assert sum(bool(place) for place in going) <= mode.replicated_job.max_concurrent
            case "global" | "global_job":
                for place in going:
                    nodes = [w.view.nodes.get(task.node_id) for task in place]
                    assert all(node is not None and not tasks.invalid(node) for node in nodes)
            case _:
                pass  # replicated: the updater's laws are below
        if service.HasField("job_status"):
            assert all(len(place) <= 1 for place in going)


def check_new_placements(w: world.World, operations: list[pb.Op]) -> None:
    """What was just placed fits its node's labels, state, and the limit per node."""
    view = w.view
    for op in operations:
        task = op.object.task
        if not op.object.HasField("task") or task.status.state != pb.TASK_STATE_ASSIGNED:
            continue
        node = view.nodes.get(task.node_id)
        assert node is not None
        assert node.status.state == pb.NODE_STATE_READY
        assert node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE
        placement = view.revision(task.revision_id).spec.task.placement
        for constraint in placement.constraints:
            assert ("!=" in constraint) != (node.spec.labels["zone"] == "east")
        if placement.max_replicas:
            active = [
                other
                for other in view.tasks.where("node", node.id)
                if other.service_id == task.service_id
                and other.desired_state <= pb.TASK_STATE_COMPLETE
                and other.status.state <= pb.TASK_STATE_RUNNING
            ]
            # A task of another revision may come after this one, and has a limit of its own.
            limits = [
                view.revision(other.revision_id).spec.task.placement.max_replicas or len(active) for other in active
            ]
            assert len(active) <= max(limits)


@SETTINGS
@hypothesis.given(st.integers(0, 2**32))
def test_deciders_come_to_rest_within_all_limits(seed: int) -> None:
    w = world.World()
    chaos = Chaos(seed, w)
    w.check = lambda: check_limits(w)
    for _ in range(40):
        chaos.step()
        w.decide()  # fails when the deciders never give an empty plan on their own result
        check_places(w)


@SETTINGS
@hypothesis.given(st.integers(0, 2**32))
def test_placements_obey_their_rules(seed: int) -> None:
    w = world.World()
    chaos = Chaos(seed, w)
    for _ in range(30):
        chaos.step()
        for decider in w.deciders:
            result = decider.decide(w.view, w.clock.now(), w.rng, None)
            if result.ops:
                w.write(*result.ops)
                if decider.name == "scheduler":
                    check_new_placements(w, result.ops)
        w.decide()


class ByKeys:
    """Runs deciders as the leader's loop does: only on the keys that a change touches or that are due."""

    def __init__(self, w: world.World) -> None:
        self.w = w
        self.watch = w.store.watch((), lambda: None)
        self.keys: list[dict[str, None]] = [{} for _ in w.deciders]
        self.due: list[dict[str, float]] = [{} for _ in w.deciders]

    def _collect(self) -> None:
        for change in self.watch.take():
            assert isinstance(change, watching.Change)
            for decider, keys in zip(self.w.deciders, self.keys, strict=True):
                if change.kind in decider.kinds:
                    keys.update(dict.fromkeys(decider.touches(self.w.view, change)))

    def run(self) -> None:
        for _ in range(50):
            done = 0
            for number, decider in enumerate(self.w.deciders):
                self._collect()
                now = self.w.clock.now()
                due = self.due[number]
                for key in [key for key, at in due.items() if at <= now]:
                    self.keys[number][key] = None
                dirty = frozenset(self.keys[number])
                self.keys[number] = {}
                for key in sorted(dirty):
                    due.pop(key, None)
                if not dirty:
                    continue
                result = decider.decide(self.w.view, now, self.w.rng, dirty)
                due.update(result.wake_keys)
                if result.ops:
                    self.w.write(*result.ops)
                    done += len(result.ops)
            if not done:
                return
        raise AssertionError("the deciders never come to rest")


def words_only(w: world.World, op: pb.Op) -> bool:
    """Whether the operation only rewrites why a task waits: the numbers in it may be of a moment ago."""
    stored = w.view.tasks.get(op.object.task.id)
    if stored is None or op.kind != pb.OP_KIND_UPDATE:
        return False
    changed = pb.Task()
    changed.CopyFrom(op.object.task)
    changed.status.err = stored.status.err
    changed.status.timestamp.CopyFrom(stored.status.timestamp)
    return changed == stored


@SETTINGS
@hypothesis.given(st.integers(0, 2**32))
def test_deciding_what_changed_misses_nothing(seed: int) -> None:
    w = world.World()
    keyed = ByKeys(w)
    chaos = Chaos(seed, w)
    for _ in range(40):
        chaos.step()
        keyed.run()
        for number, decider in enumerate(w.deciders):
            if decider.name == "rebalancer":
                continue  # begins a move when the one before is done, not as soon as it could
            full = decider.decide(w.view, w.clock.now(), w.rng, None)
            missed = [op for op in full.ops if not words_only(w, op)]
            assert not missed, f"{decider.name} missed {missed}"
            for key, at in full.wake_keys.items():  # waking without need is allowed, oversleeping is not
                assert keyed.due[number].get(key, at + 1.0) <= at, decider.name


@SETTINGS
@hypothesis.given(
    seed=st.integers(0, 2**32),
    replicas=st.integers(1, 8),
    parallelism=st.integers(0, 4),
    start_first=st.booleans(),
    delay_s=st.sampled_from([0.0, 2.0]),
    back=st.booleans(),
)
def test_an_update_keeps_enough_running(
    seed: int, replicas: int, parallelism: int, start_first: bool, delay_s: float, back: bool
) -> None:
    rng = random.Random(seed)
    order = pb.UPDATE_ORDER_START_FIRST if start_first else pb.UPDATE_ORDER_STOP_FIRST
    how = pb.UpdateConfig(parallelism=parallelism, order=order, delay=stamps.to_nanos(delay_s))
    w = world.World()
    for number in range(3):
        w.node(f"n{number}")

    def change(spec: pb.ServiceSpec) -> None:
        spec.update.CopyFrom(how)
        spec.rollback.CopyFrom(how)

    w.service("web", replicas, change)
    w.go()
    least = replicas if start_first else replicas - (parallelism or replicas)

    def check() -> None:
        per_slot: dict[int, int] = {}
        for task in w.running("web"):
            per_slot[task.slot] = per_slot.get(task.slot, 0) + 1
        assert sum(per_slot.values()) >= least
        assert max(per_slot.values(), default=0) <= (2 if start_first else 1)

    w.check = check
    w.deploy("web", "demo:2")
    for step in range(2000):
        w.decide()
        if back and step == 5:
            w.roll_back("web")
            continue
        if not w.agents(lambda task: rng.random() < 0.4):
            w.clock.time += 0.5
        if w.the_service("web").update_status.state in {
            pb.UPDATE_STATE_COMPLETED,
            pb.UPDATE_STATE_ROLLBACK_COMPLETED,
        }:
            break
    wished = w.wished("web")
    assert [task.slot for task in wished] == list(range(1, replicas + 1))
    expected = w.the_service("web").revision_id
    assert {task.revision_id for task in wished} == {expected}


@SETTINGS
@hypothesis.given(
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    st.integers(1, 6),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_spread_differs_by_at_most_one(others: list[int], nodes: int, replicas: list[int]) -> None:
    w = world.World()
    for number in range(nodes):
        w.node(f"n{number}")
    for number, count in enumerate(others):
        w.service(f"other{number}", count)
    w.go()
    w.service("web", 0)
    for count in sorted(replicas):
        w.scale("web", count)
        w.go()
        counts = [w.spread("web").get(f"n{number}", 0) for number in range(nodes)]
        assert max(counts) - min(counts) <= 1


def test_every_prefix_of_a_plan_is_safe() -> None:
    """Committed in parts of one operation, with everything decided anew in between, it comes to the same."""

    class OneAtATime:
        def __init__(self, inner: plan.Decider) -> None:
            self.name, self.kinds, self.touches = inner.name, inner.kinds, inner.touches
            self._inner = inner

        def decide(self, state: object, now: float, rng: object, dirty: frozenset[str] | None) -> plan.Plan:
            result = self._inner.decide(state, now, rng, dirty)  # type: ignore[arg-type]
            del result.ops[1:]
            return result

    w = world.World()
    w.deciders = [OneAtATime(decider) for decider in w.deciders]
    for number in range(2):
        w.node(f"n{number}")
    w.service("web", 3)
    w.go()

    def check() -> None:
        for slot in (1, 2, 3):
            assert len([task for task in w.running("web") if task.slot == slot]) <= 1

    w.check = check
    w.deploy("web", "demo:2")
    w.go(for_s=10.0)
    assert {task.revision_id for task in w.running("web")} == {"web@2"}
    w.check = lambda: None
    w.drain("n1")
    w.go(for_s=60.0)
    assert w.spread("web") == {"n0": 3}
