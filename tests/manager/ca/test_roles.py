"""From a wished role to a certified one: what is done in which order, and the loop that does it."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import hypothesis
import pytest
from hypothesis import strategies
from typing_extensions import override

from manager.ca import authority, roles
from manager.store import commit, ops, store
from skep import errors, ids, pb
from tests.manager.ca import harness

W, M = pb.NODE_ROLE_WORKER, pb.NODE_ROLE_MANAGER
Role: TypeAlias = pb.NodeRole.ValueType


def node(node_id: str, wished: Role, role: Role) -> pb.Node:
    made = pb.Node(id=node_id, spec=pb.NodeSpec(role=wished), role=role)
    if role == M:
        made.manager.addr = node_id
    return made


@pytest.mark.parametrize(
    ("wished", "role", "member", "leads", "expected"),
    [
        (W, W, False, False, None),
        (M, M, True, False, None),
        (M, M, False, False, None),  # certified, and about to join
        (M, W, False, False, roles.Action.CERTIFY_MANAGER),
        (M, W, True, False, roles.Action.CERTIFY_MANAGER),
        (W, M, True, False, roles.Action.REMOVE_MEMBER),
        (W, M, True, True, roles.Action.HAND_OVER),
        (W, M, False, False, roles.Action.CERTIFY_WORKER),
        (W, W, True, False, roles.Action.REMOVE_MEMBER),  # joined in the moment of its demotion
    ],
)
def test_the_next_step(wished: Role, role: Role, *, member: bool, leads: bool, expected: roles.Action | None) -> None:
    members = {"x": "x:1"} | ({"n": "n:1"} if member else {})
    steps = roles.decide([node("x", M, M), node("n", wished, role)], members, leader_id="n" if leads else "x")
    assert steps == ([] if expected is None else [roles.Step("n", expected)])


def test_a_member_that_the_store_does_not_know_goes_but_never_the_one_who_decides() -> None:
    steps = roles.decide([], {"a": "a:1", "b": "b:1"}, leader_id="a")
    assert steps == [roles.Step("b", roles.Action.REMOVE_MEMBER)]


def test_promotions_come_first_and_the_lead_is_handed_over_after_removals() -> None:
    nodes = [node("a", W, M), node("b", W, M), node("c", M, W), node("d", W, M), node("e", M, M)]
    members = {each: each for each in "abe"}
    steps = [(step.node_id, step.action.name) for step in roles.decide(nodes, members, leader_id="a")]
    assert steps == [
        ("c", "CERTIFY_MANAGER"), ("b", "REMOVE_MEMBER"), ("a", "HAND_OVER"), ("d", "CERTIFY_WORKER"),
    ]  # fmt: skip


wishes = strategies.dictionaries(strategies.sampled_from("abcde"), strategies.tuples(*[strategies.booleans()] * 3))


@hypothesis.given(wishes)
def test_steps_lead_to_the_wish_and_a_worker_is_never_a_member(wished: dict[str, tuple[bool, bool, bool]]) -> None:
    nodes = {"x": node("x", M, M)}
    members = {"x": "x"}
    for node_id, (manager, was, member) in wished.items():
        nodes[node_id] = node(node_id, M if manager else W, M if was or member else W)
        if member:
            members[node_id] = node_id
    for _ in range(3):
        for step in roles.decide(list(nodes.values()), members, leader_id="x"):
            match step.action:
                case roles.Action.CERTIFY_MANAGER:
                    nodes[step.node_id] = roles.with_role(nodes[step.node_id], M)
                case roles.Action.CERTIFY_WORKER:
                    nodes[step.node_id] = roles.with_role(nodes[step.node_id], W)
                case roles.Action.REMOVE_MEMBER:
                    del members[step.node_id]
                case roles.Action.HAND_OVER:
                    raise AssertionError("x is wished to be a manager")
            assert all(nodes[member].role == M for member in members)
    assert all(each.role == each.spec.role for each in nodes.values())
    assert all(nodes[member].spec.role == M for member in members)
    assert not roles.decide(list(nodes.values()), members, leader_id="x")


class StubbornGroup(harness.FakeGroup):
    """Refuses to remove anybody for a while."""

    refusals = 0

    @override
    async def remove_member(self, node_id: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise errors.FailedPrecondition("no quorum")
        await super().remove_member(node_id)


class Rig:
    """A leader a, managers b and c, a worker d."""

    def __init__(self) -> None:
        self.state = store.Store(checking=True)
        self.shared = harness.Shared(self.state, "a", {each: f"{each}:1" for each in "abc"}, transfers_to="b")
        self.group = StubbornGroup(self.shared, "a")
        self.committer = commit.LocalCommitter(self.state, harness.TIME)
        self.loop = self.loop_of("a", self.group)

    def loop_of(self, node_id: str, group: harness.FakeGroup) -> roles.RoleLoop:
        return roles.RoleLoop(
            state=self.state, committer=self.committer, group=group, changing=asyncio.Lock(), own_id=node_id
        )

    async def fill(self) -> None:
        founding = authority.found(hostname="h", addr="h:1", now=harness.TIME.now(), rng=ids.system_rng())
        await self.committer.commit(founding.ops[:1])
        for node_id in "abcd":
            role = W if node_id == "d" else M
            await self.committer.commit([ops.create(node(node_id, role, role))])

    def node(self, node_id: str) -> pb.Node:
        found = self.state.view().nodes.get(node_id)
        assert found is not None
        return found

    async def wish(self, node_id: str, role: Role) -> None:
        changed = pb.Node()
        changed.CopyFrom(self.node(node_id))
        changed.spec.role = role
        await self.committer.commit([ops.update(changed)])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of a fake
            await asyncio.sleep(0.01)


def test_the_loop_promotes_demotes_and_passes_the_lead_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "RETRY_S", 0.05)

    async def main() -> None:
        rig = Rig()
        await rig.fill()
        running = asyncio.create_task(rig.loop.run())
        await rig.wish("d", M)
        await until(lambda: rig.node("d").role == M)
        rig.group.refusals = 2  # the quorum is missing for a while
        await rig.wish("c", W)
        await until(lambda: rig.node("c").role == W)
        assert list(rig.shared.members) == ["a", "b"]
        assert not rig.node("c").HasField("manager")
        await rig.wish("a", W)
        await asyncio.wait_for(running, 10)  # it leads no more
        assert rig.shared.leader_id == "b"
        assert rig.node("a").role == M
        after = asyncio.create_task(rig.loop_of("b", harness.FakeGroup(rig.shared, "b")).run())
        await until(lambda: rig.node("a").role == W)
        assert list(rig.shared.members) == ["b"]
        after.cancel()
        await asyncio.gather(after, return_exceptions=True)
        rig.state.verify()

    asyncio.run(main())
