"""Makes nodes what their specifications say they are: workers become managers, managers become workers.

The specification's role is the wish, the node's role is what the certificate authority certifies. A promotion is a
change of the role; the node hears of it, renews its certificate and joins the group by itself. A demotion takes the
node out of the group first and changes the role then, so that a node whose certificate says worker is never a member.
Runs on the leader; decides from the store and the group alone, so a new leader goes on where the old one stopped.
"""

import asyncio
import contextlib
import dataclasses
import enum
from collections.abc import Iterable, Mapping

import structlog

from manager.ca import group as groups
from manager.store import commit, ops, store, watching
from skep import errors, pb
from skep.security import keys

log = structlog.get_logger(__name__)

RETRY_S = 1.0  # while something is to be done that could not be
LOOK_S = 10.0  # the group changes without a change of the store now and then
COALESCE_S = 0.05  # nodes change in bursts: one look for all that arrive within this


class Action(enum.Enum):
    """What is to be done with a node, in the order of urgency."""

    CERTIFY_MANAGER = "certify as manager"
    REMOVE_MEMBER = "remove from the group"
    HAND_OVER = "hand over the lead"
    CERTIFY_WORKER = "certify as worker"


@dataclasses.dataclass(frozen=True)
class Step:
    """One action on one node."""

    node_id: str
    action: Action


def decide(nodes: Iterable[pb.Node], members: Mapping[str, str], *, leader_id: str) -> list[Step]:
    """The next step for every node that is not what it should be. `leader_id` is who asks, and leads.

    A member that the store does not know at all was removed between its admission and its entry: it goes, too.
    """
    steps: list[Step] = []
    known: dict[str, None] = {}
    for node in nodes:
        known[node.id] = None
        if node.spec.role == pb.NODE_ROLE_MANAGER:
            if node.role != pb.NODE_ROLE_MANAGER:
                steps.append(Step(node.id, Action.CERTIFY_MANAGER))
        elif node.id in members:
            leads = node.id == leader_id
            steps.append(Step(node.id, Action.HAND_OVER if leads else Action.REMOVE_MEMBER))
        elif node.role != pb.NODE_ROLE_WORKER:
            steps.append(Step(node.id, Action.CERTIFY_WORKER))
    steps += [
        Step(node_id, Action.REMOVE_MEMBER) for node_id in members if node_id not in known and node_id != leader_id
    ]
    order = list(Action)
    return sorted(steps, key=lambda step: order.index(step.action))


def with_role(node: pb.Node, role: pb.NodeRole.ValueType) -> pb.Node:
    """A copy of the node that is certified as `role`."""
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.role = role
    if role == pb.NODE_ROLE_WORKER:
        changed.ClearField("manager")
    return changed


class RoleLoop:
    """Carries the steps out while this manager leads. `changing` serialises changes of the group within a manager."""

    def __init__(
        self,
        *,
        state: store.Store,
        committer: commit.Committer,
        group: groups.Group,
        changing: asyncio.Lock,
        own_id: str,
    ) -> None:
        self._store = state
        self._committer = committer
        self._group = group
        self._changing = changing
        self._own_id = own_id
        self._moved = asyncio.Event()
        self._postponed: dict[Step, str] = {}  # what could not be done in the last pass, and why

    async def run(self) -> None:
        """Runs until cancelled, or until this manager does not lead any more."""
        watch = self._store.watch({"node"}, self._moved.set)
        try:
            while self._group.is_leader:
                self._moved.clear()
                with contextlib.suppress(watching.Lagged):
                    watch.take()  # what changed does not matter: the steps are decided from the whole table
                done = await self._pass()
                if not self._group.is_leader:  # handed over, just now
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S if done else RETRY_S):
                        await self._moved.wait()
                await asyncio.sleep(COALESCE_S)
        finally:
            watch.close()

    async def _pass(self) -> bool:
        """Every step once; whether nothing is left to be tried again soon."""
        postponed: dict[Step, str] = {}
        for step in decide(self._store.view().nodes, self._group.members(), leader_id=self._own_id):
            try:
                await self._carry_out(step)
            except errors.SkepError as error:
                postponed[step] = error.message
                if self._postponed.get(step) != error.message:  # said once, not every second
                    log.warning("role.postponed", node=step.node_id, action=step.action.value, reason=error.message)
            else:
                log.info("role.step", node=step.node_id, action=step.action.value)
        self._postponed = postponed
        return not postponed

    async def _carry_out(self, step: Step) -> None:
        match step.action:
            case Action.CERTIFY_MANAGER:
                await self._certify(step.node_id, pb.NODE_ROLE_MANAGER)
            case Action.CERTIFY_WORKER:
                await self._certify(step.node_id, pb.NODE_ROLE_WORKER)
            case Action.REMOVE_MEMBER:
                async with self._changing:
                    if step.node_id in self._group.members():
                        await self._group.remove_member(step.node_id)
                if self._store.view().nodes.get(step.node_id) is not None:
                    await self._certify(step.node_id, pb.NODE_ROLE_WORKER)
            case Action.HAND_OVER:
                async with self._changing:
                    await self._group.transfer_leadership()

    async def _certify(self, node_id: str, role: pb.NodeRole.ValueType) -> None:
        node = self._store.view().nodes.get(node_id)
        if node is None or node.spec.role != role:
            return  # changed meanwhile: that change has woken us
        await self._committer.commit([ops.update(with_role(node, role))])
        log.info("role.certified", node=node_id, role=keys.role_name(role))
