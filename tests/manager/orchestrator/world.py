"""A cluster of deciders without a loop: a store, a clock that stands still until it is moved, and model agents.

A model agent takes each task of its node one state further every time it is asked; tests decide when that is.
"""

from collections.abc import Callable, Iterable

from manager import loops, plan
from manager.planning import silence
from manager.store import commit, ops, store, views
from skep import ids, pb, stamps

START = 1_700_000_000.0
GB = 1000**3

# What an agent does next with a task it is to run, by the task's state.
FORWARD = {
    pb.TASK_STATE_ASSIGNED: pb.TASK_STATE_ACCEPTED,
    pb.TASK_STATE_ACCEPTED: pb.TASK_STATE_PREPARING,
    pb.TASK_STATE_PREPARING: pb.TASK_STATE_READY,
    pb.TASK_STATE_READY: pb.TASK_STATE_STARTING,
    pb.TASK_STATE_STARTING: pb.TASK_STATE_RUNNING,
}


class StillClock:
    """Wall-clock time that only tests move."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> float:
        return self.time


class World:
    """One store with everything around it."""

    def __init__(self, *, deciders: Iterable[plan.Decider] | None = None) -> None:
        self.clock = StillClock()
        self.store = store.Store(checking=True)
        self.rng = ids.seeded_rng(7)
        self.deciders = list(loops.default_deciders() if deciders is None else deciders)
        self.due: float | None = None
        self.check: Callable[[], None] = lambda: None  # run after every plan that took effect
        self.refuse: dict[str, int] = {}  # revision ID -> exit state that its tasks come to instead of RUNNING
        self.hung: dict[str, None] = {}  # nodes whose agents do nothing
        self.endless = False  # jobs' tasks do not complete by themselves
        self._committer = commit.LocalCommitter(self.store, self.clock)

    # ---------------------------------------------------------------- writing

    def write(self, *operations: pb.Op) -> None:
        """Commits, as a user or an agent would."""
        self._committer.commit_now(operations)

    def node(self, name: str, *, cpus: float = 4.0, memory: int = 8 * GB, labels: dict[str, str] | None = None) -> str:
        """Adds a ready node; its ID is its name."""
        node = pb.Node(id=name)
        node.status.state = pb.NODE_STATE_READY
        node.status.addr = "127.0.0.1"
        node.description.hostname = name
        node.description.platform.os = "linux"
        node.description.platform.architecture = "x86_64"
        node.description.resources.nano_cpus = stamps.to_nanos(cpus)
        node.description.resources.memory_bytes = memory
        node.spec.labels.update(labels or {})
        self.write(ops.create(node))
        return name

    def change_node(self, name: str, change: Callable[[pb.Node], object]) -> None:
        """Writes a changed node."""
        found = self.view.nodes.get(name)
        assert found is not None
        node = pb.Node()
        node.CopyFrom(found)
        change(node)
        self.write(ops.update(node))

    def available(self, name: str, availability: pb.NodeAvailability.ValueType) -> None:
        """Sets the node's availability."""
        self.change_node(name, lambda node: setattr(node.spec, "availability", availability))

    def revive(self, name: str) -> None:
        """The node is ready and active again."""
        self.hung.pop(name, None)

        def change(node: pb.Node) -> None:
            node.status.state = pb.NODE_STATE_READY
            node.spec.availability = pb.NODE_AVAILABILITY_ACTIVE

        self.change_node(name, change)

    def drain(self, name: str) -> None:
        """Sets the node's availability to drain."""
        self.change_node(name, lambda node: setattr(node.spec, "availability", pb.NODE_AVAILABILITY_DRAIN))

    def down(self, name: str) -> None:
        """The node falls silent."""
        self.hung[name] = None
        self.change_node(name, lambda node: setattr(node.status, "state", pb.NODE_STATE_DOWN))

    def service(self, name: str, replicas: int, change: Callable[[pb.ServiceSpec], object] = lambda _: None) -> str:
        """Creates a service; its ID is its name, its revisions are <name>@1, @2, .."""
        spec = pb.ServiceSpec(name=name)
        spec.task.container.image = "demo:1"
        spec.mode.replicated.replicas = replicas
        change(spec)
        service = pb.Service(id=name, name=name, revision_id=f"{name}@1", next_revision=2)
        if spec.mode.WhichOneof("mode") in {"replicated_job", "global_job"}:
            service.job_status.job_iteration.SetInParent()
        revision = pb.Revision(id=f"{name}@1", service_id=name, number=1, spec=spec)
        self.write(ops.create(service), ops.create(revision))
        return name

    def everywhere(self, name: str, change: Callable[[pb.ServiceSpec], object] = lambda _: None) -> str:
        """Creates a global service."""

        def make(spec: pb.ServiceSpec) -> None:
            spec.mode.SetInParent()
            getattr(spec.mode, "global").SetInParent()
            change(spec)

        return self.service(name, 0, make)

    def job(
        self, name: str, total: int, concurrent: int, change: Callable[[pb.ServiceSpec], object] = lambda _: None
    ) -> str:
        """Creates a replicated job."""

        def make(spec: pb.ServiceSpec) -> None:
            spec.mode.replicated_job.total_completions = total
            spec.mode.replicated_job.max_concurrent = concurrent
            change(spec)

        return self.service(name, 0, make)

    def job_everywhere(self, name: str, change: Callable[[pb.ServiceSpec], object] = lambda _: None) -> str:
        """Creates a global job."""

        def make(spec: pb.ServiceSpec) -> None:
            spec.mode.global_job.SetInParent()
            change(spec)

        return self.service(name, 0, make)

    def update(self, name: str, change: Callable[[pb.ServiceSpec], object]) -> str:
        """Gives the service a new revision, as control does; returns the revision's ID."""
        service = pb.Service()
        service.CopyFrom(self.the_service(name))
        spec = pb.ServiceSpec()
        spec.CopyFrom(self.view.spec(service))
        change(spec)
        revision_id = f"{name}@{service.next_revision}"
        revision = pb.Revision(id=revision_id, service_id=name, number=service.next_revision, spec=spec)
        service.next_revision += 1
        service.previous_revision_id = service.revision_id
        service.revision_id = revision_id
        service.ClearField("update_status")
        if service.HasField("job_status"):
            service.job_status.job_iteration.index += 1
        self.write(ops.create(revision), ops.update(service))
        return revision_id

    def scale(self, name: str, replicas: int) -> str:
        """A new revision with another number of replicas."""
        return self.update(name, lambda spec: setattr(spec.mode.replicated, "replicas", replicas))

    def deploy(self, name: str, image: str) -> str:
        """A new revision with another image."""
        return self.update(name, lambda spec: setattr(spec.task.container, "image", image))

    def roll_back(self, name: str) -> None:
        """What control does on a user's rollback."""
        service = pb.Service()
        service.CopyFrom(self.the_service(name))
        service.revision_id, service.previous_revision_id = service.previous_revision_id, service.revision_id
        service.update_status.state = pb.UPDATE_STATE_ROLLBACK_STARTED
        service.update_status.message = "manually requested rollback"
        service.update_status.started_at.CopyFrom(stamps.stamp(self.clock.now()))
        self.write(ops.update(service))

    def report(self, task_id: str, state: int, **fields: str) -> None:
        """A task's new observed state, as the dispatcher writes it."""
        found = self.view.tasks.get(task_id)
        assert found is not None
        task = pb.Task()
        task.CopyFrom(found)
        task.status.state = pb.TaskState.ValueType(state)
        task.status.timestamp.CopyFrom(stamps.stamp(self.clock.now()))
        task.status.applied_at.CopyFrom(stamps.stamp(self.clock.now()))
        for field, value in fields.items():
            setattr(task.status, field, value)
        if state == pb.TASK_STATE_RUNNING:
            task.running_at.CopyFrom(stamps.stamp(self.clock.now()))
        self.write(ops.update(task))

    # ---------------------------------------------------------------- going on

    def decide(self) -> int:
        """Runs the deciders until none has anything to do; returns how many operations that took."""
        count = 0
        for _ in range(50):
            self.due = None
            done = 0
            for decider in self.deciders:
                result = decider.decide(self.view, self.clock.now(), self.rng, None)
                if result.ops:
                    self.write(*result.ops)
                    self.check()
                    done += len(result.ops)
                if result.wake_at is not None:
                    self.due = result.wake_at if self.due is None else min(self.due, result.wake_at)
            if not done:
                return count
            count += done
        raise AssertionError("the deciders never come to rest")

    def agents(self, chosen: Callable[[pb.Task], bool] = lambda _: True) -> int:
        """Every agent takes every chosen task of its node one step further; returns how many moved."""
        moved = 0
        for task in list(self.view.tasks):
            if task.node_id in self.hung or not chosen(task):
                continue
            state = self._next(task)
            if state is not None:
                self.report(task.id, state)
                self.check()
                moved += 1
        return moved

    def _next(self, task: pb.Task) -> int | None:
        state = task.status.state
        if state < pb.TASK_STATE_ASSIGNED or state > pb.TASK_STATE_RUNNING:
            return None
        if task.desired_state > pb.TASK_STATE_COMPLETE:
            return pb.TASK_STATE_SHUTDOWN
        refused = self.refuse.get(task.revision_id)
        if refused == pb.TASK_STATE_REJECTED and state == pb.TASK_STATE_PREPARING:
            return refused
        if refused == pb.TASK_STATE_FAILED and state == pb.TASK_STATE_RUNNING:
            return refused
        if state == pb.TASK_STATE_READY and task.desired_state < pb.TASK_STATE_RUNNING:
            return None
        if state == pb.TASK_STATE_RUNNING and task.HasField("job_iteration") and not self.endless:
            return pb.TASK_STATE_COMPLETE
        return FORWARD.get(state)

    def go(self, *, for_s: float = 0.0) -> None:
        """Decides and lets agents work, moving time from due moment to due moment, for so long."""
        end = self.clock.now() + for_s
        for _ in range(2000):
            if self.decide() + self.agents():
                continue
            silent = silence.Silence(self.view)
            if counted := silent.reports(self.view, self.clock.now()):
                self.write(*counted)
                continue
            due = min((each for each in (self.due, silent.next_due(self.view)) if each is not None), default=None)
            if due is None or due > end:
                self.clock.time = end
                return
            self.clock.time = max(due, self.clock.time)
        raise AssertionError("the cluster never comes to rest")

    # ---------------------------------------------------------------- reading

    @property
    def view(self) -> views.View:
        """The state now."""
        return self.store.view()

    def the_service(self, name: str) -> pb.Service:
        """The service as stored."""
        found = self.view.services.get(name)
        assert found is not None
        return found

    def status(self, name: str) -> tuple[pb.UpdateState.ValueType, str]:
        """Where the service's update stands."""
        status = self.the_service(name).update_status
        return status.state, status.message

    def tasks(self, name: str) -> list[pb.Task]:
        """All tasks of the service, oldest first."""
        return list(self.view.tasks.where("service", name))

    def wished(self, name: str) -> list[pb.Task]:
        """Tasks of the service that are wanted, by slot."""
        found = [
            task
            for task in self.tasks(name)
            if task.desired_state <= pb.TASK_STATE_COMPLETE and task.status.state != pb.TASK_STATE_COMPLETE
        ]
        return sorted(found, key=lambda task: task.slot)

    def running(self, name: str) -> list[pb.Task]:
        """Tasks of the service that are observed to run where that is known."""
        return [
            task
            for task in self.tasks(name)
            if task.status.state == pb.TASK_STATE_RUNNING and task.node_id not in self.hung
        ]

    def spread(self, name: str) -> dict[str, int]:
        """How many wished tasks of the service each node has."""
        counts: dict[str, int] = {}
        for task in self.wished(name):
            counts[task.node_id] = counts.get(task.node_id, 0) + 1
        return counts
