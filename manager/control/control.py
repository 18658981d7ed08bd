"""Carries users' intentions out: decide on a view, commit, and decide again when somebody else was faster.

Owns retries against concurrent writers and the question whether this manager may answer at all. What a request means is
in services.py, nodes.py and cluster.py; nothing here looks into a specification.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog

from manager.control import cluster, defaults, draining, names, nodes, payloads, rebalancing, services, validate_service
from manager.store import commit, store, views
from skep import clock, errors, ids, pb

log = structlog.get_logger(__name__)

ATTEMPTS_MAX = 8  # against other writers of the same objects; the orchestrator writes a service a few times an update

UNKNOWN = "the change may or may not have been made, look before you repeat it"


class OutcomeUnknown(errors.SkepError):
    """The change was proposed and this manager then lost its lead: it may or may not have been made."""


class Control:
    """The writes of the API. Works on the leader; elsewhere every call raises Unavailable.

    All methods raise the errors of the pure function behind them, OutcomeUnknown when leadership was lost midway, and
    NotProposed (an Unavailable) when the change was certainly not made.
    """

    def __init__(self, *, state: store.Store, committer: commit.Committer, time: clock.Clock, rng: ids.Rng) -> None:
        self._store = state
        self._committer = committer
        self._clock = time
        self._rng = rng

    async def create_service(self, spec: pb.ServiceSpec, *, registry_auth: str = "") -> str:
        """Creates a service, inventing its name when there is none; returns its ID."""
        service_id, revision_id = services.new_ids(self._rng)
        named = pb.ServiceSpec()
        named.CopyFrom(spec)
        named.name = spec.name or names.invent(self._rng)
        validate_service.check(defaults.normalised(named))  # what is wrong in itself is told even without a quorum

        def decide(view: views.View) -> list[pb.Op]:
            return services.create(
                view,
                named,
                service_id=service_id,
                revision_id=revision_id,
                registry_auth=registry_auth,
                now=self._clock.now(),
            )

        await self._carry_out(decide)
        log.info("service.created", service=service_id, name=named.name)
        return service_id

    async def update_service(self, reference: str, request: services.Update) -> None:
        """Replaces a service's specification."""
        _, revision_id = services.new_ids(self._rng)

        def decide(view: views.View) -> list[pb.Op]:
            return services.update(view, reference, request, revision_id=revision_id, now=self._clock.now())

        changed = await self._carry_out(decide)
        log.info("service.updated", service=reference, changed=changed)

    async def rollback_service(self, reference: str, *, version: int, to: int | None = None) -> None:
        """Goes back to the service's previous revision, or to the one with number `to`."""
        await self._carry_out(
            lambda view: services.rollback(view, reference, version=version, now=self._clock.now(), to=to)
        )
        log.info("service.rollback_started", service=reference, to=to)

    async def remove_service(self, reference: str) -> None:
        """Removes a service; its tasks stop soon after."""
        await self._carry_out(lambda view: services.remove(view, reference))
        log.info("service.removed", service=reference)

    async def create_payload(self, kind: payloads.Kind, spec: payloads.Spec) -> str:
        """Creates a secret or config; returns its ID."""
        object_id = ids.new_id(self._rng)
        payloads.check(kind, spec)
        await self._carry_out(lambda view: payloads.create(view, kind, spec, object_id=object_id))
        log.info("payload.created", kind=kind, id=object_id, name=spec.name)
        return object_id

    async def update_payload(self, kind: payloads.Kind, reference: str, spec: payloads.Spec, *, version: int) -> None:
        """Replaces the labels of a secret or config."""
        await self._carry_out(lambda view: payloads.update(view, kind, reference, spec, version=version))
        log.info("payload.updated", kind=kind, reference=reference)

    async def remove_payload(self, kind: payloads.Kind, reference: str) -> None:
        """Removes a secret or config that no service asks for."""
        await self._carry_out(lambda view: payloads.remove(view, kind, reference))
        log.info("payload.removed", kind=kind, reference=reference)

    async def update_node(
        self, reference: str, spec: pb.NodeSpec, *, version: int, members: Mapping[str, bool]
    ) -> None:
        """Replaces a node's specification; `members` says which managers, by node ID, there are and which answer."""
        await self._carry_out(
            lambda view: nodes.update(view, reference, spec, version=version, members=members, now=self._clock.now())
        )
        log.info("node.updated", node=reference)

    async def drain_nodes(self, references: Sequence[str], *, deadline_s: float) -> None:
        """Has all tasks moved off nodes; what is left after `deadline_s` is stopped."""
        await self._carry_out(
            lambda view: draining.start(view, references, deadline_s=deadline_s, now=self._clock.now())
        )
        log.info("node.drain_started", nodes=list(references), deadline_s=deadline_s)

    async def cancel_drains(self, references: Sequence[str]) -> None:
        """Lets nodes take tasks again; what has not left yet stays."""
        await self._carry_out(lambda view: draining.cancel(view, references, now=self._clock.now()))
        log.info("node.drain_cancelled", nodes=list(references))

    async def rebalance(self, wanted: rebalancing.Wanted) -> None:
        """Starts evening out the load; over one that is under way, sets its limits anew."""
        await self._carry_out(lambda view: rebalancing.start(view, wanted, now=self._clock.now()))
        log.info("rebalance.requested", limits=wanted)

    async def cancel_rebalance(self) -> None:
        """Begins no further move; those under way are finished."""
        await self._carry_out(rebalancing.cancel)
        log.info("rebalance.cancelled")

    async def set_rebalance_policy(self, *, auto: bool) -> None:
        """Whether nodes that join or return get their share by themselves."""
        await self._carry_out(lambda view: rebalancing.policy(view, auto=auto, now=self._clock.now()))
        log.info("rebalance.policy_set", auto=auto)

    async def remove_node(self, reference: str, *, force: bool, members: frozenset[str]) -> None:
        """Forgets a node; `members` are the node IDs of the managers."""
        await self._carry_out(
            lambda view: nodes.remove(view, reference, force=force, members=members, now=self._clock.now())
        )
        log.info("node.removed", node=reference, force=force)

    async def update_cluster(self, request: cluster.Update) -> None:
        """Replaces the cluster's settings and renews join tokens."""
        await self._carry_out(lambda view: cluster.update(view, request, rng=self._rng))
        log.info(
            "cluster.updated",
            worker_token_rotated=request.rotate_worker_token,
            manager_token_rotated=request.rotate_manager_token,
        )

    async def _carry_out(self, decide: Callable[[views.View], list[pb.Op]]) -> bool:
        """Commits what `decide` wants; returns whether that was anything.

        A refusal, and the claim that there is nothing to do, are only passed on when the state they rest on was the
        present one, hence the barrier and the second look.
        """
        proven = False  # this manager led after the request came in, and has applied everything up to then
        for _ in range(ATTEMPTS_MAX):
            if not self._committer.is_leader:
                raise commit.NotProposed("this manager does not lead")
            refusal: errors.SkepError | None = None
            planned: list[pb.Op] = []
            try:
                planned = decide(self._store.view())
            except errors.SkepError as error:
                refusal = error
            if planned:
                if await self._committed(planned):
                    return True
                proven = True
            elif not proven:
                await self._barrier()
                proven = True
            elif refusal is not None:
                raise refusal
            else:
                return False
        raise commit.NotProposed("too many changes to the same objects at once: try again in a moment")

    async def _committed(self, planned: list[pb.Op]) -> bool:
        """Whether the operations took effect; False when somebody else was faster and all is to be decided anew."""
        try:
            await self._committer.commit(planned)
        except errors.Conflict:
            return False
        except commit.NotProposed:
            raise
        except errors.Unavailable as problem:
            raise OutcomeUnknown(f"{UNKNOWN}: {problem.message}") from problem
        return True

    async def _barrier(self) -> None:
        try:
            await self._committer.barrier()
        except errors.Unavailable as problem:
            raise commit.NotProposed(problem.message) from problem
