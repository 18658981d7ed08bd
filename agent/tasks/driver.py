"""Drives one task: asks the state machine what is next, has the runtime do it, tells the status.

One coroutine per task. It decides nothing (`agent.tasks.machine` does) and keeps nothing (the worker records every
status it is told). Being cancelled leaves the task's container alone.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from agent import backoff
from agent.runtime import base
from agent.tasks import lease, machine, output
from skep import clock, errors, ids, pb, policies, stamps

log = structlog.get_logger(__name__)

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 15.0
OBSERVE_TIMEOUT_S = 30.0  # a runtime that hangs must not look like one that answers
LOOK_AGAIN_S = 60.0  # a task is looked at this often even when no event came: engines lose events
PROGRESS_S = 2.0  # between two progress lines of one task: each travels through the managers' log

_TEMPORARY = (base.TaskTemporary, errors.Unavailable, TimeoutError, OSError)


@dataclasses.dataclass(frozen=True)
class Tools:
    """What all drivers of a worker share."""

    runtime: base.Runtime
    node: Callable[[], pb.Node]  # this node's own object, for templates
    files: Callable[[base.Workload], tuple[base.File, ...]]  # the secrets and configs of a task
    lease: lease.Lease
    publish: Callable[[str, pb.TaskStatus], None]  # task ID, its new status
    gate: asyncio.Semaphore  # how many tasks may be started at the same time
    confirmed: asyncio.Event  # what is on record is known not to be out of date
    clock: clock.Clock
    rng: ids.Rng


class Driver:
    """One task on this node."""

    def __init__(self, *, task: pb.Task, spec: pb.ServiceSpec, status: pb.TaskStatus, tools: Tools) -> None:
        """Goes on from `status`, the latest one known of the task here."""
        self._tools = tools
        self._task = task
        self._spec = spec
        self.status = pb.TaskStatus()
        self.status.CopyFrom(status)
        self.forgotten = False
        self._wake = asyncio.Event()
        self._stop_wished = asyncio.Event()
        self._progress_at = 0.0
        self._retry = backoff.Backoff(first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S, rng=tools.rng, floor=0.5)
        self._completed: machine.Action | None = None
        self._failure = ""
        self.lease_s = policies.lease_s(spec.labels)  # for tasks that must never run twice
        self._lapsed = False  # its lease ran out while it was starting or running: it has to end
        if task.desired_state >= machine.SHUTDOWN:
            self._stop_wished.set()

    @property
    def task(self) -> pb.Task:
        """The task as it was last assigned."""
        return self._task

    def assign(self, task: pb.Task) -> bool:
        """Takes a newer version of the task; False when it would move the wish backwards, which is ignored."""
        if task.desired_state < self._task.desired_state:
            return False
        self._task = task
        if task.status.state > self.status.state and task.status.state >= machine.COMPLETE:
            self.status = pb.TaskStatus()
            self.status.CopyFrom(task.status)  # the managers have written it off; what still runs is stopped
        self._wish_changed()
        return True

    def forget(self) -> None:
        """The task is not this node's any more: stop it, remove it, tell nobody."""
        self.forgotten = True
        self._wish_changed()

    def look(self) -> None:
        """Something may have changed in the runtime."""
        self._wake.set()

    def check_lease(self) -> None:
        """Stops the task if it must never run twice and its lease is over, whatever is heard from now on."""
        if machine.STARTING <= self.status.state <= machine.RUNNING and self._lease_over:
            if not self._lapsed:
                log.warning("task.lease_over", task=self._task.id, lease_s=self.lease_s)
            self._lapsed = True
            self._stop_wished.set()
            self._wake.set()

    @property
    def _lease_over(self) -> bool:
        return self._lapsed or (self.lease_s is not None and self._tools.lease.over(self.lease_s))

    def _wish_changed(self) -> None:
        if self._desired >= machine.SHUTDOWN:
            self._stop_wished.set()
        self._wake.set()

    @property
    def _desired(self) -> machine.State:
        return machine.REMOVE if self.forgotten else self._task.desired_state

    async def run(self) -> None:
        """Drives the task until nothing is left of it. Cancel it to let go of a task without touching it."""
        seen: base.Observation | None = None  # by the step before, when nothing has been done since
        while True:
            if seen is None or self._wake.is_set():
                self._wake.clear()
                seen = await self._observe()
            observation = seen
            step = machine.step(
                machine.Situation(
                    state=self.status.state,
                    desired=self._desired,
                    observation=observation,
                    completed=self._completed,
                    failure=self._failure,
                    verdict=self.status.err if self.status.err in machine.VERDICTS else "",
                    lease_over=self._lease_over,
                )
            )
            completed, self._completed, self._failure = self._completed, None, ""
            ended = self._is_end(step, observation)
            printed = await output.last(self._tools.runtime, self._task.id) if ended else ""
            self._tell(step, observation, printed=printed)
            if step.action is machine.Action.DONE:
                return
            if step.action in {machine.Action.NONE, machine.Action.WAIT}:
                self._retry.reset()
                if step.action is machine.Action.WAIT:
                    await self._wait()
                    seen = None
                elif self.status.state <= machine.PREPARING:
                    seen = None  # before, nobody looked
                continue
            seen = None
            if step.action is completed:
                await self._pause()  # it was done and changed nothing: do not spin
            await self._perform(step.action)
            if self._completed is machine.Action.STOP and self._desired == machine.REMOVE:
                # Nobody will ask how it ended, and removing it is by force: one question less for each task.
                seen = dataclasses.replace(observation, phase=base.Phase.EXITED, pid=0)
                self._wake.clear()

    def _is_end(self, step: machine.Step, observation: base.Observation) -> bool:
        """Whether this is the end of what may have printed something, and the task's record will be there to tell."""
        if step.state == self.status.state:
            return False
        if step.state == machine.SHUTDOWN:
            return observation.phase is base.Phase.EXITED and self._desired < machine.REMOVE
        return step.state in {machine.FAILED, machine.COMPLETE}

    async def _observe(self) -> base.Observation:
        if self.status.state <= machine.ACCEPTED and self._desired < machine.SHUTDOWN:
            return base.ABSENT  # nothing depends on it yet, and the runtime may be away
        while True:
            try:
                async with asyncio.timeout(OBSERVE_TIMEOUT_S):
                    return await self._tools.runtime.observe(self._task.id)
            except _TEMPORARY as error:
                reason = str(error) or type(error).__name__
                log.warning("task.not_observed", task=self._task.id, error=reason)
                if self.status.state == machine.PREPARING:
                    self._note(message=self.status.message, err=reason)
            except errors.SkepError:
                log.exception("task.not_observed", task=self._task.id)
            try:  # the runtime's events say when it is back
                async with asyncio.timeout(self._retry.next_s()):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def _wait(self) -> None:
        if self.status.state > machine.RUNNING:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(self._tools.rng.uniform(0.5, 1.0) * LOOK_AGAIN_S):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _pause(self) -> None:
        """Waits before another try; a wish to stop cuts it short unless stopping is what is tried."""
        pause_s = self._retry.next_s()
        if self._stop_wished.is_set():
            await asyncio.sleep(pause_s)
            return
        try:
            async with asyncio.timeout(pause_s):
                await self._stop_wished.wait()
        except TimeoutError:
            return

    async def _perform(self, action: machine.Action) -> None:
        try:
            if action in {machine.Action.PREPARE, machine.Action.START}:
                if not await self._unless_stopped(self._begin(action)):
                    return
            elif action is machine.Action.STOP:
                await self._tools.runtime.stop(self._workload())
            else:
                await self._tools.runtime.remove(self._task.id)
            self._completed = action
        except _TEMPORARY as error:
            await self._failed(action, str(error) or type(error).__name__)
        except errors.SkepError as error:
            await self._failed(action, error.message, fatal=True)
        except Exception as error:  # the runtime's fault must cost one task, not the worker
            log.exception("task.action_crashed", task=self._task.id, action=action.value)
            await self._failed(action, f"internal error: {type(error).__name__}", fatal=True)

    async def _failed(self, action: machine.Action, reason: str, *, fatal: bool = False) -> None:
        log.warning("task.action_failed", task=self._task.id, action=action.value, error=reason, fatal=fatal)
        if action in {machine.Action.PREPARE, machine.Action.START}:
            if fatal:
                self._failure = reason
                return
            self._note(message=f"{action.value} failed, trying again", err=reason)
        await self._pause()

    async def _begin(self, action: machine.Action) -> None:
        if action is machine.Action.PREPARE:  # may wait long for an image, which must keep nobody else waiting
            bare = self._workload()
            whole = dataclasses.replace(bare, files=self._tools.files(bare))
            await self._tools.runtime.prepare(whole, self._progress)
            return
        if not self._tools.confirmed.is_set():
            self._note(message="waiting for a manager: this machine was restarted, and the task may be over", err="")
            await self._tools.confirmed.wait()
        async with self._tools.gate:
            await self._tools.runtime.start(self._workload())

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Does the work, or breaks it off when the task is not wished to run any more; True when it was done."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop_wished.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return False
            working.result()
            return True
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    def _workload(self) -> base.Workload:
        return base.Workload(task=self._task, spec=self._spec, node=self._tools.node())

    def _progress(self, line: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._progress_at and self.status.state == machine.PREPARING:
            self._progress_at = now + PROGRESS_S
            self._note(message=line, err="")

    def _tell(self, step: machine.Step, observation: base.Observation, *, printed: str) -> None:
        """Publishes the status when the step or the container changed something in it."""
        wanted = pb.TaskStatus()
        wanted.CopyFrom(self.status)
        wanted.state = step.state
        if step.message:
            wanted.message = step.message
        if step.state != self.status.state or step.err:
            wanted.err = step.err
        if printed:
            wanted.last_output = printed
        if observation.container_id:
            wanted.container.container_id = observation.container_id
            wanted.container.pid = observation.pid
            wanted.container.exit_code = observation.exit_code
        if observation.ports:
            wanted.ports.Clear()
            wanted.ports.ports.extend(observation.ports)
        self._publish(wanted)

    def _note(self, *, message: str, err: str) -> None:
        wanted = pb.TaskStatus()
        wanted.CopyFrom(self.status)
        wanted.message = message
        wanted.err = err
        self._publish(wanted)

    def _publish(self, wanted: pb.TaskStatus) -> None:
        if wanted == self.status:
            return
        moved = wanted.state != self.status.state
        wanted.timestamp.CopyFrom(stamps.stamp(self._tools.clock.now()))
        self.status = wanted
        if moved:
            log.info("task.state", task=self._task.id, state=pb.TaskState.Name(wanted.state), err=wanted.err)
        if not self.forgotten:
            self._tools.publish(self._task.id, wanted)
