"""This machine's daemon: joins the parts, and is what http.backend.Machine asks for.

It is in no cluster, a worker, or a manager that is a worker too; `init`, `join` and `leave` move between these, one at
a time, and a restart finds back by what is on disk.
"""

import asyncio
import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from typing import Any

import prometheus_client
import structlog

from manager.ca import authority, membership_client
from manager.http import api, backend, server
from skep import clock, errors, ids, pb
from skep.daemon import agent_part, background, manager_keeper, manager_part, settings
from skep.security import datakey, enroll, files, renewal, tls
from skep.security import identity as identities

log = structlog.get_logger(__name__)

ALREADY = (
    'This node is already part of a swarm. Use "docker swarm leave" (or skep leave) to leave this swarm and join '
    "another one."
)
NOT_PART = "This node is not part of a swarm"
LAST_MANAGER = (
    "You are attempting to leave the swarm on a node that is participating as a manager. The only way to restore a "
    "swarm that has lost consensus is to reinitialize it. Use `--force` to leave all the same."
)
NO_ENGINE = (
    "the container engine does not answer, so what runs here cannot be stopped: start it first, or use `--force` to "
    "leave the containers behind"
)
REMOVED = (
    "{reason}. Its tasks were given to other nodes and are stopped here. To use this machine again: skep leave "
    "--force, then skep join"
)
DEFAULT_LISTEN_ADDR = "0.0.0.0:2377"  # what Docker's clients and skep send when nothing was said
LEAVE_PATIENCE_S = 10.0  # with --force the machine leaves even when no manager answers by then


class Daemon:
    """One machine. Only one `init`, `join` or `leave` runs at a time."""

    def __init__(self, config: settings.Settings) -> None:
        self._config = config
        self.clock: clock.Clock = clock.SystemClock()
        self.rng: ids.Rng = ids.system_rng()
        self._registry = prometheus_client.CollectorRegistry()
        self._identity: identities.Identity | None = None
        self._agent: agent_part.AgentPart | None = None
        self._changing = asyncio.Lock()
        self._error = ""
        self._background = background.Background()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._front = api.Api(self, registry=self._registry)
        self._server = server.HttpServer(self._front, config.socket)
        self._renewer = renewal.Renewer(
            current=self._present_identity,
            save=self._save_identity,
            managers=self._known_managers,
            time=self.clock,
            rng=self.rng,
        )
        self._keeper = manager_keeper.ManagerKeeper(
            config=config,
            identity=self._present_identity,
            front=self._front,
            metrics=manager_part.Metrics(self._registry),
            known_managers=self._known_managers,
            renew=self._renewer.trigger,
            fail=self._fail,
            time=self.clock,
            rng=self.rng,
        )

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Goes on where this machine was, and opens the API."""
        settings.prepare(self._config.state_dir)
        try:
            self._identity = files.load(self._config.identity_dir, now=self.clock.now())
        except errors.Denied as error:
            self._error = error.message
            log.error("daemon.identity_unusable", reason=error.message)
        if self._identity is not None:
            await self._resume(settings.Membership.load(self._config.membership_file))
        await self._server.start()
        log.info("daemon.started", name=self._config.name, socket=str(self._config.socket), state=self._state())

    async def stop(self) -> None:
        """Ends the daemon; the tasks of this machine run on."""
        await self._keeper.hand_over()  # first of all, so that everybody who asks here meanwhile finds a leader
        await self._server.stop()
        await self._stop_parts()

    async def failed(self) -> None:
        """Waits until something breaks that the daemon cannot live with; raises it."""
        await asyncio.shield(self._failure)

    async def remove_tasks(self) -> None:
        """Stops and removes every task of this node, without talking to anybody."""
        self._identity = files.load(self._config.identity_dir, now=self.clock.now())
        if self._identity is None:
            return
        agent = self._make_agent(())
        try:
            await agent.remove_tasks()
        finally:
            await agent.stop()

    async def _resume(self, place: settings.Membership) -> None:
        now = settings.moved(place, listen_addr=self._config.listen_addr, advertise_addr=self._config.advertise_addr)
        if now != place:
            log.info("daemon.moved", addr=now.advertise_addr, before=place.advertise_addr, listen=now.listen_addr)
            now.save(self._config.membership_file)
        await self._keeper.resume(now)
        await self._start_agent(now, list(now.members.values()), patient=True)

    # ---------------------------------------------------------------- parts

    def _present_identity(self) -> identities.Identity:
        if self._identity is None:
            raise errors.FailedPrecondition(NOT_PART)
        return self._identity

    def _make_agent(self, seeds: Sequence[str]) -> agent_part.AgentPart:
        return agent_part.AgentPart(
            config=self._config,
            identity=self._present_identity,
            seeds=seeds,
            on_node=self._node_changed,
            on_removed=self._node_removed,
            time=self.clock,
            rng=self.rng,
        )

    async def _start_agent(
        self, place: settings.Membership, seeds: Sequence[str] = (), *, patient: bool = False
    ) -> None:
        own = [place.advertise_addr] if self._keeper.part is not None else []
        agent = self._make_agent([*seeds, *own])
        try:
            await agent.start(patient=patient)
        except BaseException:
            await agent.stop()
            raise
        self._agent = agent
        self._background.spawn(self._renewer.run(), name="daemon.renewal")
        self._background.spawn(self._keeper.run(), name="daemon.role")

    def _node_changed(self, node: pb.Node) -> None:
        """What the leader says of this node: above all its role."""
        self._keeper.node_changed(node)

    def _node_removed(self, reason: str) -> None:
        """`skep node rm`: the tasks were given to other nodes, so they must not run here as well."""
        if self._error:
            return
        self._error = REMOVED.format(reason=reason)
        log.error("daemon.removed_from_cluster", reason=self._error)
        if self._agent is not None:
            self._background.spawn(self._agent.remove_tasks(), name="daemon.removed")

    def _fail(self, error: errors.SkepError) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    async def _stop_parts(self) -> None:
        await self._background.stop()
        agent, self._agent = self._agent, None
        if agent is not None:
            await agent.stop()
        await self._keeper.stop()

    def _save_identity(self, identity: identities.Identity) -> None:
        """A renewed certificate, with a new key. A crash after any of the steps leaves something to start from."""
        before = self._present_identity()
        directory = self._config.identity_dir
        try:
            datakey.rewrap(directory, old=before, new=identity, rng=self.rng)
        except errors.Denied as error:  # nobody can open it: then there is no manager part to lose either
            log.error("daemon.data_key_lost", reason=error.message)
        if identity.role == pb.NODE_ROLE_MANAGER and self._keeper.part is None:
            place = settings.Membership.load(self._config.membership_file)
            others = {node_id: addr for node_id, addr in self._renewer.members.items() if node_id != identity.node_id}
            dataclasses.replace(place, members=others).save(self._config.membership_file)
        files.save(directory, identity)
        self._identity = identity
        with contextlib.suppress(errors.Denied):
            datakey.settle(directory, identity, rng=self.rng)
        self._keeper.identity_changed()

    def _known_managers(self) -> list[str]:
        """Cluster addresses to turn to: the group's, as far as this machine is in it, and what the agent heard."""
        members = self._keeper.part.members() if self._keeper.part is not None else {}
        heard = self._agent.managers if self._agent is not None else []
        return list(dict.fromkeys([*members.values(), *heard]))

    # ---------------------------------------------------------------- http.backend.Machine

    @property
    def manager(self) -> backend.Manager | None:
        """The manager part, while this machine has one."""
        return self._keeper.part

    def info(self) -> backend.MachineInfo:
        """What is known of this machine now."""
        place = self._place()
        description = self._agent.description if self._agent is not None else pb.NodeDescription()
        return backend.MachineInfo(
            state=self._state(),
            error=self._error or self._keeper.problem or (self._agent.problem if self._agent is not None else ""),
            hostname=self._config.name,
            node_id=self._identity.node_id if self._identity is not None else "",
            node_addr=settings.split_addr(place.advertise_addr, default_port=0)[0] if place is not None else "",
            cluster_id=self._identity.cluster_id if self._identity is not None else "",
            managers=[pb.RaftMember(node_id=node_id, addr=addr) for node_id, addr in self._members().items()],
            description=description,
        )

    def _state(self) -> str:
        if self._error or self._keeper.problem:
            return "error"
        if self._agent is not None:
            return "active"
        return "inactive" if self._identity is None else "pending"

    def _place(self) -> settings.Membership | None:
        if self._agent is None:
            return None
        return settings.Membership.load(self._config.membership_file)

    def _members(self) -> dict[str, str]:
        if self._keeper.part is not None:
            return dict(self._keeper.part.members())
        return {str(number): addr for number, addr in enumerate(self._known_managers())}

    async def init(self, request: backend.InitRequest) -> str:
        """Makes a new cluster with this machine as its first manager; returns the node ID."""
        if request.force_new_cluster and self._identity is not None:
            return await self._rebuild(request)
        async with self._change():
            place = self._choose_addresses(request)
            founding = authority.found(
                hostname=self._config.name,
                addr=place.advertise_addr,
                now=self.clock.now(),
                rng=self.rng,
                spec=request.spec,
                availability=request.availability,
            )
            self._identity = founding.identity
            manager = await self._keeper.found(place)
            await manager.lead()
            await manager.committer.commit(founding.ops)
            self._remember(founding.identity, place)
            await self._start_agent(place)
        log.info("cluster.founded", cluster=founding.identity.cluster_id, node=founding.identity.node_id)
        return founding.identity.node_id

    async def _rebuild(self, request: backend.InitRequest) -> str:
        """The quorum is lost for good: this manager goes on alone, with everything it has. The tasks run on."""
        if self._present_identity().role != pb.NODE_ROLE_MANAGER:
            raise errors.FailedPrecondition(
                "this node is a worker and has no copy of the cluster's state: run --force-new-cluster on a manager"
            )
        async with self._changing:
            place = settings.moved(
                settings.Membership.load(self._config.membership_file),
                listen_addr="" if request.listen_addr == DEFAULT_LISTEN_ADDR else request.listen_addr,
                advertise_addr=request.advertise_addr,
            )
            place = dataclasses.replace(place, members={})
            place.save(self._config.membership_file)
            manager = await self._keeper.rebuild(place)
            if self._agent is not None:
                self._agent.retry_now(place.advertise_addr)  # before the new leader counts this node as down
        return manager.node_id

    def _choose_addresses(self, request: backend.InitRequest | backend.JoinRequest) -> settings.Membership:
        return settings.choose_addresses(
            listen_addr=request.listen_addr or self._config.listen_addr,
            advertise_addr=request.advertise_addr or self._config.advertise_addr,
        )

    async def join(self, request: backend.JoinRequest) -> None:
        """Joins a cluster; returns once this machine is a member."""
        async with self._change():
            place = self._choose_addresses(request)
            port = settings.CLUSTER_PORT + settings.JOIN_PORT_OFFSET
            remotes = [
                settings.join_addr(*settings.split_addr(addr, default_port=port)) for addr in request.remote_addrs
            ]
            enrolled = await enroll.enroll(
                remotes,
                token=request.token,
                hostname=self._config.name,
                time=self.clock,
                availability=request.availability,
            )
            self._identity = enrolled.identity
            if enrolled.identity.role == pb.NODE_ROLE_MANAGER:
                place = dataclasses.replace(place, members=enrolled.members)
                await self._keeper.join(place, enrolled.managers)
            self._remember(enrolled.identity, place)
            await self._start_agent(place, enrolled.managers)
        log.info("cluster.joined", cluster=enrolled.identity.cluster_id, node=enrolled.identity.node_id)

    async def leave(self, *, force: bool) -> None:
        """Leaves the cluster: tasks stop, identity and state are removed."""
        if self._identity is None and not self._error:
            raise errors.Unavailable(NOT_PART)
        if self._keeper.part is not None and not force:
            raise errors.Unavailable(LAST_MANAGER)
        if self._agent is not None and self._agent.without_engine and not force:
            raise errors.Unavailable(NO_ENGINE)
        async with self._changing:
            await self._background.stop()  # above all what would see us removed
            if self._identity is not None:
                await _say_goodbye(tls.dialler(self._present_identity), self._known_managers(), force=force)
            agent = self._agent
            if agent is not None and agent.without_engine:
                log.warning("cluster.left_without_engine", containers="with this label stay where they are",
                            label=f"io.skep.node={self._present_identity().node_id}")  # fmt: skip
            elif agent is not None:
                await agent.remove_tasks()
            await self._forget()
        log.info("cluster.left")

    @contextlib.asynccontextmanager
    async def _change(self) -> Any:
        """For init and join: refuses a machine that is in a cluster, and undoes everything when it fails."""
        if self._changing.locked():
            raise errors.Unavailable("this node is joining or leaving a swarm already: try again in a moment")
        async with self._changing:
            if self._identity is not None or self._error:
                raise errors.Unavailable(ALREADY)
            await self._forget()  # whatever an attempt left behind that was cut off by a crash
            try:
                yield
            except BaseException:
                await self._forget()
                raise

    def _remember(self, identity: identities.Identity, place: settings.Membership) -> None:
        """From here on a restart finds back. The identity goes last: it is what says that there is a cluster."""
        place.save(self._config.membership_file)
        files.save(self._config.identity_dir, identity)

    async def _forget(self) -> None:
        """Back to a machine in no cluster."""
        await self._stop_parts()
        files.remove(self._config.identity_dir)
        await self._keeper.wipe()
        await asyncio.to_thread(shutil.rmtree, self._config.agent_dir, ignore_errors=True)
        self._config.membership_file.unlink(missing_ok=True)
        self._identity = None
        self._error = ""


async def _say_goodbye(dial: tls.Dial, managers: Sequence[str], *, force: bool) -> None:
    """Tells the cluster that this node leaves; with `force` it leaves unheard too."""
    try:
        await membership_client.leave_cluster(dial, managers, patience_s=LEAVE_PATIENCE_S)
    except errors.SkepError as error:
        if not force:
            raise
        log.warning("cluster.left_without_goodbye", reason=error.message)
