"""A worker on the tests' engine."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from agent import worker
from agent.runtime import docker
from agent.tasks import record
from skep import clock, ids, pb
from tests.agent.runtime import workloads
from tests.engine import conftest, dockerd


class Bench:
    """A worker on an engine, and every status that it tells."""

    def __init__(self, node: conftest.Node, runtime: docker.DockerRuntime) -> None:
        self.node = node
        self.record = record.Record(record.IN_MEMORY)
        self.worker = worker.Worker(
            runtime=runtime,
            record=self.record,
            clock=clock.SystemClock(),
            uptime=clock.SystemUptime(),
            rng=ids.system_rng(),
        )
        self.told: list[tuple[str, str]] = []
        self.worker.listen(lambda task_id, status: self.told.append((task_id, pb.TaskState.Name(status.state))))

    def assign(
        self,
        *task_ids: str,
        full: bool = False,
        args: Sequence[str] = ("sleep", "600"),
        health: pb.HealthConfig | None = None,
        memory_bytes: int = 0,
        init: bool = True,
    ) -> None:
        """Assigns tasks of one revision; `full` means that there are no others."""
        spec = pb.ServiceSpec(name="web")
        spec.task.container.CopyFrom(
            pb.ContainerSpec(
                image=dockerd.BUSYBOX_IMAGE, args=args, init=init, stop_grace_period=10**9, healthcheck=health
            )
        )
        spec.task.resources.limits.memory_bytes = memory_bytes
        tasks = [
            pb.Task(
                id=task_id, service_id="s1", service_name="web", slot=1, node_id=self.node.node_id, revision_id="r1",
                desired_state=pb.TASK_STATE_RUNNING, status=pb.TaskStatus(state=pb.TASK_STATE_ASSIGNED),
            )
            for task_id in task_ids
        ]  # fmt: skip
        self.worker.apply(pb.Assignments(full=full, tasks=tasks, revisions=[pb.Revision(id="r1", spec=spec)]))

    def container(self, task_id: str) -> tuple[str, int]:
        """ID and process of the task's container."""
        status = self.worker.statuses()[task_id]
        return status.container.container_id, status.container.pid

    async def until(self, look: Callable[[], bool], *, what: str) -> None:
        """Waits for a condition."""

        async def looked() -> bool:
            return look()

        await workloads.until(looked, bool, what=f"{what}; told {self.told}")

    async def reach(self, task_id: str, state: str) -> None:
        """Waits until the task has told this state."""
        await self.until(lambda: (task_id, f"TASK_STATE_{state}") in self.told, what=f"{task_id} {state}")


@contextlib.asynccontextmanager
async def working(node: conftest.Node, runtime: docker.DockerRuntime) -> AsyncIterator[Bench]:
    """A bench whose worker is open."""
    made = Bench(node, runtime)
    await made.worker.open()
    try:
        yield made
    finally:
        await made.worker.close()
        made.record.close()


def new_id() -> str:
    """A task's ID."""
    return ids.new_id(workloads.RNG)
