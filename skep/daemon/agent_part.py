"""The agent of this machine: runtime, local record, worker, and the session with the managers. Composition only."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import structlog

from agent import facts, link, session, worker
from agent import managers as manager_book
from agent.runtime import base, choose
from agent.tasks import record
from skep import clock, errors, ids, pb
from skep.daemon import settings
from skep.security import identity as identities
from skep.security import keys, tls

log = structlog.get_logger(__name__)


class AgentPart:
    """Runs tasks for the cluster while this machine belongs to one."""

    def __init__(
        self,
        *,
        config: settings.Settings,
        identity: Callable[[], identities.Identity],
        seeds: Sequence[str],
        on_node: Callable[[pb.Node], None],
        on_removed: Callable[[str], None],
        time: clock.Clock,
        rng: ids.Rng,
    ) -> None:
        """`identity` gives the present one; `seeds` are cluster addresses to try while none was heard of.

        `on_node` and `on_removed` are told what the leader says of this node.
        """
        self._config = config
        self._identity = identity
        self._seeds = seeds
        self._on_node = on_node
        self._on_removed = on_removed
        self._clock = time
        self._rng = rng
        self._stirred = asyncio.Event()  # the runtime has gone away or come back
        self._stack = contextlib.AsyncExitStack()
        self._worker: worker.Worker | None = None
        self._session: session.AgentSession | None = None
        self._away = ""  # why the engine did not answer at the start
        self.description = pb.NodeDescription(hostname=config.name)

    @property
    def problem(self) -> str:
        """Why there is no session with a manager, in words; empty while there is one."""
        return self._session.error if self._session is not None and not self._session.manager else ""

    @property
    def managers(self) -> list[str]:
        """Cluster addresses of the managers, as last heard."""
        return self._book().addresses()

    @property
    def without_engine(self) -> bool:
        """Whether the container engine did not answer when it was last asked."""
        return any(each.kind == facts.ENGINE for each in self.description.conditions)

    async def start(self, *, patient: bool) -> None:
        """Adopts what runs here, then looks for the managers.

        Raises Unavailable when the runtime that was asked for does not answer, unless it is `patient`: then an engine
        that is away makes the node one that is not ready and says why, until the engine is there.
        """
        await self._open(patient=patient)
        opened = self._worker
        assert opened is not None
        await opened.open()
        self._stack.push_async_callback(opened.close)
        self._session = session.AgentSession(
            connect=link.connector(lambda addr: tls.channel(self._identity(), addr, options=link.CHANNEL_OPTIONS)),
            managers=self._book(),
            worker=opened,
            describe=self._describe,
            description=self.description if self._away and self.description.conditions else None,
            access=self._runtime.access,
            stirred=self._stirred,
            rng=self._rng,
            on_node=self._on_node,
            on_removed=self._on_removed,
        )
        running = asyncio.create_task(self._session.run(), name="agent.session")
        self._stack.push_async_callback(_cancelled, running)

    async def stop(self) -> None:
        """Lets go of everything; the tasks run on."""
        await self._stack.aclose()
        self._worker = None
        self._session = None

    def retry_now(self, addr: str) -> None:
        """The manager at `addr` leads, as far as this machine knows."""
        if self._session is not None:
            self._session.retry_now(addr)

    async def remove_tasks(self) -> None:
        """Stops and removes every task of this node, whether the agent runs or not."""
        if self._worker is None:
            await self._open(patient=False)
        assert self._worker is not None
        await self._worker.remove_all()

    async def _open(self, *, patient: bool) -> None:
        directory = self._config.agent_dir
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        node_id = self._identity().node_id
        self._runtime: base.Runtime = await choose.choose(
            self._config.runtime,
            node_id=node_id,
            directory=self._config.state_dir / "tasks",
            docker_socket=self._config.docker_socket,
            clock=self._clock,
            rng=self._rng,
            stirred=self._stirred.set,
            away=self._engine_away if patient else None,
        )
        self._stack.push_async_callback(self._runtime.close)
        recorded = record.Record(directory / "tasks.db")
        self._stack.callback(recorded.close)
        self._facts = facts.Facts(
            runtime=self._runtime, known=recorded.description(), remember=recorded.save_description
        )
        self._worker = worker.Worker(
            runtime=self._runtime, record=recorded, clock=self._clock, uptime=clock.SystemUptime(), rng=self._rng
        )
        if self._away:
            bare = self._facts.without_engine(self._away)
            self.description = self._completed(bare) if bare is not None else self.description
        else:
            with contextlib.suppress(errors.Unavailable):
                self.description = await self._describe()
        log.info("agent.opened", runtime=self._runtime.name, node=node_id)

    def _engine_away(self, reason: str) -> None:
        self._away = reason
        log.warning("agent.engine_away", reason=reason, tasks="are taken up when it is back")

    async def _describe(self) -> pb.NodeDescription:
        self.description = self._completed(await self._facts.describe())
        return self.description

    def _completed(self, description: pb.NodeDescription) -> pb.NodeDescription:
        """With what the runtime does not know."""
        description.hostname = self._config.name
        description.engine.labels.update(self._config.labels)
        if self._config.generic:
            description.resources.ClearField("generic")  # what the engine says is replaced
            description.resources.generic.extend(self._config.generic)
        root_pem = self._identity().root_pem
        subject, public_key = keys.issuer(root_pem)
        description.tls_info.CopyFrom(
            pb.TLSInfo(trust_root=root_pem.decode(), cert_issuer_subject=subject, cert_issuer_public_key=public_key)
        )
        return description

    def _book(self) -> manager_book.ManagerBook:
        return manager_book.ManagerBook(self._config.agent_dir / "managers.json", seeds=self._seeds)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
