"""What runs exactly while this manager leads: dispatcher, deciders, roles. Follows the lead as it comes and goes."""

import asyncio

import structlog

from manager import loops
from manager.ca import roles
from manager.dispatcher import dispatcher
from manager.raft import node
from manager.store import store
from skep import clock, errors, ids

log = structlog.get_logger(__name__)

LEAD_RETRY_S = 0.2  # before leading again when leading ended although the lead was not lost


class Leading:
    """One for the life of a manager part."""

    def __init__(
        self,
        *,
        raft: node.RaftNode,
        state: store.Store,
        sessions: dispatcher.Dispatcher,
        changing: asyncio.Lock,
        metrics: loops.Metrics,
        time: clock.Clock,
        rng: ids.Rng,
    ) -> None:
        """`changing` is held by whoever changes the group of managers."""
        self._raft = raft
        self._store = state
        self._sessions = sessions
        self._changing = changing
        self._metrics = metrics
        self._clock = time
        self._rng = rng
        self._moved = asyncio.Event()

    def look(self) -> None:
        """The lead may have changed."""
        self._moved.set()

    async def run(self) -> None:
        """Dispatcher and deciders run exactly while this manager leads."""
        while True:
            self._moved.clear()
            if self._raft.is_leader:
                await self._while_leading()
            else:
                await self._moved.wait()

    async def _while_leading(self) -> None:
        log.info("manager.leading", term=self._raft.term)
        deciding = asyncio.create_task(self._decide(), name="manager.deciders")
        following_roles = asyncio.create_task(self._follow_roles(), name="manager.roles")
        try:
            await self._sessions.start()
            while self._raft.is_leader:
                self._moved.clear()
                waiting = asyncio.ensure_future(self._moved.wait())
                await asyncio.wait({deciding, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if deciding.done():
                    await asyncio.sleep(LEAD_RETRY_S)
                    deciding = asyncio.create_task(self._decide(), name="manager.deciders")
        finally:
            await cancelled(deciding)
            await cancelled(following_roles)
            await self._sessions.stop()
            log.info("manager.following", term=self._raft.term, leader=self._raft.leader_id)

    async def _follow_roles(self) -> None:
        loop = roles.RoleLoop(
            state=self._store,
            committer=self._raft,
            group=self._raft,
            changing=self._changing,
            own_id=self._raft.node_id,
        )
        while True:
            try:
                await loop.run()
            except Exception:
                log.exception("manager.roles_crashed")
            await asyncio.sleep(LEAD_RETRY_S)

    async def _decide(self) -> None:
        loop = loops.LeaderLoop(
            store=self._store,
            committer=self._raft,
            deciders=loops.default_deciders(),
            clock=self._clock,
            rng=self._rng,
            metrics=self._metrics,
        )
        try:
            await loop.run()
        except errors.Unavailable as error:
            log.info("manager.deciders_stopped", reason=error.message)


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
