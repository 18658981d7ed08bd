"""Whether this machine has a manager part, and since when not: follows the role in its certificate.

Starts the part at init, join, restart and promotion, sees to it that it becomes a member under its present address,
stops it and wipes its log when the node is a worker. It decides nothing about roles: the certificate does.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import structlog

from manager.http import api
from skep import clock, errors, ids, pb
from skep.daemon import manager_part, settings
from skep.security import identity as identities

log = structlog.get_logger(__name__)

RETRY_S = 5.0  # a part that could not be started (its port is taken), a group that could not be joined
WAY_OUT = (
    "The tasks of this node run on and its agent works; the manager part stays off. To bring it back, on another "
    "manager: 'skep node demote {name}', and when 'skep node ls' shows it as a worker 'skep node promote {name}'. "
    "Without another manager: stop skepd, restore {directory} from a backup"
)
FULL_DISK = "Free space, or repair the disk; skepd goes on with its log where it was"


class ManagerKeeper:
    """One machine's manager part over its life."""

    def __init__(
        self,
        *,
        config: settings.Settings,
        identity: Callable[[], identities.Identity],
        front: api.Api,
        metrics: manager_part.Metrics,
        known_managers: Callable[[], Sequence[str]],
        renew: Callable[[], None],
        fail: Callable[[errors.SkepError], None],
        time: clock.Clock,
        rng: ids.Rng,
    ) -> None:
        """`renew` asks for a new certificate; `fail` ends the process: a manager must not go on after an I/O error."""
        self._config = config
        self._identity = identity
        self._front = front
        self._metrics = metrics
        self._known_managers = known_managers
        self._renew = renew
        self._fail = fail
        self._clock = time
        self._rng = rng
        self._changed = asyncio.Event()
        self._changing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._removed = False  # from the group; the certificate may still say manager
        self.part: manager_part.ManagerPart | None = None
        self._disk_refuses = False  # the reason for `problem` may go away by itself
        self.problem = ""  # why there is no manager part although there should be, and the way out

    # ---------------------------------------------------------------- beginnings

    async def found(self, place: settings.Membership) -> manager_part.ManagerPart:
        """The first manager of a new cluster."""
        return await self._start(place, found=True)

    async def join(self, place: settings.Membership, addrs: Sequence[str]) -> None:
        """A manager that has just been let in; returns once it is a member."""
        part = await self._start(place, found=False)
        await part.join(addrs)

    async def resume(self, place: settings.Membership) -> None:
        """After a restart of skepd. A log or a disk that cannot be used costs the manager part only, see `problem`.

        Raises Unavailable when a port is taken.
        """
        if self._identity().role != pb.NODE_ROLE_MANAGER:
            await self.wipe()
            return
        try:
            await self._start(place, found=False)
        except (errors.FailedPrecondition, errors.Denied, errors.Bug, OSError) as error:
            self._not_started(error)

    def _not_started(self, error: Exception) -> None:
        """Says why there is no part. What a disk does not give now it may give later: `run` goes on trying."""
        self._disk_refuses = isinstance(error, OSError)
        reason = str(error)
        way_out = WAY_OUT.format(name=self._config.name, directory=self._config.state_dir)
        if self._disk_refuses:
            reason = f"its disk fails: {error} (log in {self._config.raft_dir})"
            way_out = f"{FULL_DISK}: it tries again every {RETRY_S:g} s. {way_out}"
        problem = f"the manager part was not started: {reason}. {way_out}"
        if problem != self.problem:
            log.error("manager.not_started", reason=reason, way_out=way_out)
        self.problem = problem

    async def rebuild(self, place: settings.Membership) -> manager_part.ManagerPart:
        """Makes this node the only manager, with what its log and snapshot hold.

        Raises FailedPrecondition when the log cannot be used.
        """
        async with self._changing:
            await self.stop()
            try:
                await manager_part.make_alone(self._config, place, self._identity(), rng=self._rng)
                part = await self._start(place, found=False)
            except (errors.SkepError, OSError) as error:
                self._not_started(error)
                raise errors.FailedPrecondition(self.problem) from error
        await part.lead()
        await part.forget_other_managers()
        log.warning("manager.rebuilt_alone", node=part.node_id, addr=place.advertise_addr)
        return part

    async def _start(self, place: settings.Membership, *, found: bool) -> manager_part.ManagerPart:
        part = manager_part.ManagerPart(
            config=self._config,
            place=place,
            identity=self._identity,
            front=self._front,
            metrics=self._metrics,
            time=self._clock,
            rng=self._rng,
        )
        await part.start(found=found)
        self.part = part
        self.problem, self._disk_refuses = "", False
        self._removed = False
        self._tasks.append(asyncio.create_task(self._watch(part), name="manager.watch"))
        return part

    # ---------------------------------------------------------------- following the role

    def node_changed(self, node: pb.Node) -> None:
        """The managers' view of this node, whenever the agent hears of it."""
        if node.role != self._identity().role:
            self._renew()
        elif pb.NODE_ROLE_WORKER not in (node.role, node.spec.role) and self._removed:
            self._removed = False  # certified as manager and wanted as one: back in
            self._changed.set()

    def identity_changed(self) -> None:
        """There is a new certificate."""
        self._changed.set()

    async def run(self) -> None:
        """Keeps the manager part what the certificate says, until cancelled."""
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                async with self._changing:
                    await self._settle()
            except (errors.SkepError, OSError) as error:
                log.error("manager.role_not_followed", reason=str(error), retry_s=RETRY_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._changed.wait()
                self._changed.set()

    async def _settle(self) -> None:
        if self._identity().role == pb.NODE_ROLE_WORKER:
            if self.part is not None or self.problem or self._removed:
                log.warning("manager.demoted", node=self._identity().node_id)
            await self.stop()
            await self.wipe()
            self.problem, self._disk_refuses, self._removed = "", False, False
            return
        if self.part is None:
            if self._removed or (self.problem and not self._disk_refuses):
                return
            await self._start_later()
        part = self.part
        if part is not None and not part.is_member_as_advertised:
            await self._join(part)

    async def _start_later(self) -> None:
        """For a node that was promoted, or whose disk refused before. Raises what is worth another try."""
        before = self.problem
        try:
            await self._start(settings.Membership.load(self._config.membership_file), found=False)
        except OSError as error:
            self._not_started(error)
            raise
        except (errors.FailedPrecondition, errors.Denied, errors.Bug) as error:
            if not before:
                raise
            self._not_started(error)
            return
        log.info("manager.promoted" if not before else "manager.disk_works_again", node=self._identity().node_id)

    async def _join(self, part: manager_part.ManagerPart) -> None:
        """Becomes a member, or makes the group know the present address; gives up when the role changes meanwhile."""
        joining = asyncio.ensure_future(part.join([*self._known_managers(), part.advertise_addr]))
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({joining, changed}, return_when=asyncio.FIRST_COMPLETED)
            if joining.done():
                joining.result()
                log.info("manager.joined", node=part.node_id, addr=part.advertise_addr)
        finally:
            for task in (joining, changed):
                task.cancel()
            await asyncio.gather(joining, changed, return_exceptions=True)

    async def _watch(self, part: manager_part.ManagerPart) -> None:
        """A manager that was removed goes on as a worker; one that failed ends the process, loudly."""
        end = await part.ended()
        if end.removed:
            log.warning("manager.removed", node=part.node_id)
            async with self._changing:
                if self.part is part:
                    await self._retire(part)
            self._renew()
            return
        log.error("manager.failed", reason=end.reason)
        remedy = FULL_DISK if end.disk else "See the log above; skepd is to be started again"
        self._fail(errors.FailedPrecondition(f"the manager part has failed and stepped aside: {end.reason}. {remedy}"))

    async def _retire(self, part: manager_part.ManagerPart) -> None:
        """The group goes on without this node: its log is of no use, only whom to turn to is remembered."""
        self.part = None
        self._removed = True
        others = {node_id: addr for node_id, addr in part.members().items() if node_id != part.node_id}
        place = settings.Membership.load(self._config.membership_file)
        dataclasses.replace(place, members=others).save(self._config.membership_file)
        await part.stop()
        await self.wipe()

    # ---------------------------------------------------------------- ends

    async def hand_over(self) -> None:
        """Before a planned stop: passes the lead on, if this manager has it and another one is there."""
        if self.part is not None:
            await self.part.hand_over()

    async def stop(self) -> None:
        """Stops the part; its log stays."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        part, self.part = self.part, None
        if part is not None:
            await part.stop()

    async def wipe(self) -> None:
        """Removes the log, and the key that opens it."""
        await asyncio.to_thread(manager_part.remove_log, self._config)
