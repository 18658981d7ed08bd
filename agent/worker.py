"""All tasks of this node: assignments in, a driver per task, statuses out.

Goes on from the local record before any manager is reachable, and adopts what still runs. Closing it never stops a
task; `remove_all` does. Which tasks should be here is the managers' business; how one task lives is the driver's.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable

import structlog

from agent import backoff
from agent.runtime import base
from agent.tasks import driver, lease, machine, payloads, record, revisions
from skep import clock, errors, ids, pb

log = structlog.get_logger(__name__)

STARTS_MAX = 32  # tasks started at the same time; more only makes each of them slower
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 10.0
TIDY_S = 300.0  # between two looks whether the disk is too full and whether there is what nobody has assigned
LEASE_LOOK_S = 0.5  # the machine may have slept: no timer says in time that a lease is over
RESTART_S = 5.0  # a driver that crashed is our fault; its task must not suffer for long

Listener = Callable[[str, pb.TaskStatus], None]


class Worker:
    """The tasks of this node. Needs a running event loop; the runtime is opened and closed by its owner."""

    def __init__(
        self,
        *,
        runtime: base.Runtime,
        record: record.Record,
        clock: clock.Clock,
        uptime: clock.Uptime,
        rng: ids.Rng,
    ) -> None:
        self._runtime = runtime
        self._record = record
        self._rng = rng
        self._listener: Listener | None = None
        self._node = record.node() or pb.Node()
        self._revisions: dict[str, pb.Revision] = record.revisions()
        self._payloads = payloads.Payloads()
        self._drivers: dict[str, driver.Driver] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self.lease = lease.Lease(uptime=uptime, record=record)
        self.lease.renewing = self._check_leases
        self.lease.renewed = self._wake_leased
        self._leased: dict[str, driver.Driver] = {}  # tasks that must never run twice
        self._leases_moved = asyncio.Event()
        self._leasing: asyncio.Task[None] | None = None
        self._boot = uptime.boot
        self._confirmed = asyncio.Event()
        if record.boot() == self._boot or not record.tasks():
            self._confirm()
        self._compared = False  # whether the managers have said which tasks are all that belong here
        self._tools = driver.Tools(
            runtime=runtime,
            node=lambda: self._node,
            files=self._payloads.files,
            lease=self.lease,
            publish=self._publish,
            gate=asyncio.Semaphore(STARTS_MAX),
            confirmed=self._confirmed,
            clock=clock,
            rng=rng,
        )

    @property
    def node(self) -> pb.Node:
        """This node's own object as last heard from a manager; empty before the first session."""
        return self._node

    def listen(self, listener: Listener | None) -> None:
        """`listener` is called with every new status of a task, from now on."""
        self._listener = listener

    async def open(self) -> None:
        """Takes up the recorded tasks where they were left, and follows the runtime's events."""
        self._resume()
        self._watching = asyncio.create_task(self._watch(), name="worker.events")
        self._tidying = asyncio.create_task(self._tidy(), name="worker.tidy")
        self._leasing = asyncio.create_task(self._watch_leases(), name="worker.leases")

    async def close(self) -> None:
        """Lets go of all tasks and leaves them running."""
        background = (self._watching, self._sweeping, self._tidying, self._leasing)
        tasks = [task for task in (*background, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watching = self._sweeping = self._tidying = self._leasing = None
        self._running.clear()

    async def remove_all(self) -> None:
        """Stops and removes every task on this node, for leaving the cluster; returns when nothing is left.

        Works before `open` too. Keeps trying while the runtime does not answer: the caller sets the limit.
        """
        if self._watching is None:
            self._resume()  # they are stopped as their specifications say
        for task_id in list(self._drivers):
            self._forget(task_id)
        await self._sweep()
        while self._running:
            await asyncio.wait(list(self._running.values()))

    def statuses(self) -> dict[str, pb.TaskStatus]:
        """The latest status of every task that is assigned here."""
        return {task_id: each.status for task_id, each in self._drivers.items() if not each.forgotten}

    def set_node(self, node: pb.Node) -> None:
        """Takes this node's own object; templates of tasks prepared later see it."""
        if node != self._node:
            self._node = node
            self._record.save_node(node)

    def apply(self, assignments: pb.Assignments) -> None:
        """Carries out what the managers assigned. Raises Unavailable when a needed revision did not come along."""
        self._check(assignments)
        self._payloads.take(assignments)
        with self._record.changing():
            for revision in assignments.revisions:
                self._revisions[revision.id] = revision
                self._record.save_revision(revision)
            for task in assignments.tasks:
                self._assign(task)
            removed = list(assignments.removed_tasks)
            if assignments.full:
                named = {task.id for task in assignments.tasks}
                removed += [task_id for task_id in self._drivers if task_id not in named]
            for task_id in removed:
                self._forget(task_id)
            self._drop_unused_revisions()
        if assignments.full:
            self._compared = True
            self._confirm()
            self._sweep_soon()

    def _confirm(self) -> None:
        """What is on record is as it was left, or as the managers have just said.

        A power cut takes the latest writes, so after another boot of the machine a task that is about to be started by
        the record may long have been stopped, and its successor run elsewhere.
        """
        if not self._confirmed.is_set():
            self._record.save_boot(self._boot)
            self._confirmed.set()

    def logs(self, task_id: str, options: base.LogOptions) -> AsyncIterator[pb.LogEntry]:
        """The output of a task. Raises NotFound, while iterating, when nothing is kept of it."""
        return self._runtime.logs(task_id, options)

    # ---------------------------------------------------------------- tasks

    def _resume(self) -> None:
        for known in self._record.tasks():
            if known.task.id not in self._drivers:
                revision = self._revisions.get(known.task.revision_id)
                self._drive(known.task, revision.spec if revision else pb.ServiceSpec(), known.status)
        log.info("worker.resumed", tasks=len(self._drivers))

    def _check(self, assignments: pb.Assignments) -> None:
        known = {*self._revisions, *(revision.id for revision in assignments.revisions)}
        for task in assignments.tasks:
            if task.desired_state < machine.SHUTDOWN and task.revision_id not in known:
                raise errors.Unavailable(f"task {task.id} came without its revision {task.revision_id}")

    def _assign(self, task: pb.Task) -> None:
        existing = self._drivers.get(task.id)
        if existing is not None:
            if not existing.assign(task):
                log.warning("task.wish_went_back", task=task.id, desired=pb.TaskState.Name(task.desired_state))
                return
            self._record.save_task(task, existing.status)
            return
        revision = self._revisions.get(task.revision_id)
        log.info("task.assigned", task=task.id, service=task.service_name, slot=task.slot)
        self._record.save_task(task, task.status)
        self._drive(task, revision.spec if revision else pb.ServiceSpec(), task.status)

    def _drive(self, task: pb.Task, spec: pb.ServiceSpec, status: pb.TaskStatus) -> driver.Driver:
        made = driver.Driver(task=task, spec=spec, status=status, tools=self._tools)
        self._drivers[task.id] = made
        if made.lease_s is not None:
            self._leased[task.id] = made
            self._leases_changed()
        running = asyncio.create_task(_supervised(made), name=f"task.{task.id}")
        self._running[task.id] = running
        running.add_done_callback(lambda ended: self._ended(made, ended))
        return made

    def _forget(self, task_id: str) -> None:
        self._record.drop_task(task_id)
        existing = self._drivers.get(task_id)
        if existing is None or existing.forgotten:
            return
        existing.forget()
        if task_id not in self._running:  # it was DONE before: nothing is left to do
            del self._drivers[task_id]

    def _ended(self, ended: driver.Driver, running: asyncio.Task[None]) -> None:
        task_id = ended.task.id
        if self._running.get(task_id) is running:
            del self._running[task_id]
        if self._leased.get(task_id) is ended:
            del self._leased[task_id]
            self._leases_changed()
        if running.cancelled():
            return
        if ended.forgotten and self._drivers.get(task_id) is ended:
            del self._drivers[task_id]

    def _publish(self, task_id: str, status: pb.TaskStatus) -> None:
        self._record.save_status(task_id, status)
        if self._listener is not None:
            self._listener(task_id, status)

    def _drop_unused_revisions(self) -> None:
        used = {each.task.revision_id for each in self._drivers.values() if not each.forgotten}
        kept = dict.fromkeys(revisions.kept(self._revisions, used=used))
        unused = [revision_id for revision_id in self._revisions if revision_id not in kept]
        for revision_id in unused:
            del self._revisions[revision_id]
        if unused:
            self._record.drop_revisions(unused)
        self._payloads.keep(revision for revision_id, revision in self._revisions.items() if revision_id in used)

    # ---------------------------------------------------------------- tasks that must never run twice

    def _leases_changed(self) -> None:
        self.lease.hold(min((each.lease_s or math.inf for each in self._leased.values()), default=math.inf))
        self._leases_moved.set()

    async def _watch_leases(self) -> None:
        while True:
            self._leases_moved.clear()
            self._check_leases()
            try:
                async with asyncio.timeout(LEASE_LOOK_S if self._leased else None):
                    await self._leases_moved.wait()
            except TimeoutError:
                continue

    def _check_leases(self) -> None:
        for each in self._leased.values():
            each.check_lease()

    def _wake_leased(self) -> None:
        for each in self._leased.values():
            if each.status.state == machine.READY:
                each.look()

    # ---------------------------------------------------------------- the runtime

    async def _watch(self) -> None:
        retry = backoff.Backoff(first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S, rng=self._rng)
        while True:
            try:
                async for task_id in self._runtime.events():
                    retry.reset()
                    self._look(task_id)
            except errors.SkepError as error:
                log.warning("worker.events_lost", error=str(error))
            except Exception:
                log.exception("worker.events_failed")
            await asyncio.sleep(retry.next_s())
            self._look("")

    def _look(self, task_id: str) -> None:
        if task_id:
            existing = self._drivers.get(task_id)
            if existing is not None:
                existing.look()
            return
        for each in self._drivers.values():
            each.look()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_S * self._rng.uniform(0.8, 1.2))
            needed = [each.spec.task.container.image for each in self._revisions.values()]
            try:
                await self._runtime.tidy(needed)
            except (errors.SkepError, OSError) as error:
                log.warning("worker.not_tidied", error=str(error))
            except Exception:
                log.exception("worker.tidying_failed")
            if self._compared:
                self._sweep_soon()  # an engine may have said that it removed what it did not

    def _sweep_soon(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = asyncio.create_task(self._sweep(), name="worker.sweep")

    async def _sweep(self) -> None:
        """Stops and removes what the runtime holds and nobody has assigned."""
        for task_id in await self._held():
            if task_id not in self._drivers:  # assigned meanwhile, perhaps: so not what the full set named
                log.warning("worker.stranger_removed", task=task_id)
                self._drive_stranger(task_id)

    async def _held(self) -> list[str]:
        retry = backoff.Backoff(first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S, rng=self._rng)
        while True:
            try:
                return await self._runtime.list()
            except (errors.SkepError, OSError) as error:
                log.warning("worker.runtime_not_listed", error=str(error))
            await asyncio.sleep(retry.next_s())

    def _drive_stranger(self, task_id: str) -> None:
        task = pb.Task(id=task_id, desired_state=machine.REMOVE)
        task.status.state = machine.RUNNING
        self._drive(task, pb.ServiceSpec(), task.status).forget()


async def _supervised(made: driver.Driver) -> None:
    while True:
        try:
            await made.run()
            return
        except Exception:
            log.exception("task.driver_crashed", task=made.task.id)
            await asyncio.sleep(RESTART_S)
