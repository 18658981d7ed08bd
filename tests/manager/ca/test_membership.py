"""Coming into the managers' group and leaving the cluster, over real TLS."""

import asyncio
import contextlib

import pytest

from manager.ca import membership, membership_client
from manager.store import ops
from skep import errors, pb
from skep.security import identity as identities
from skep.security import tls
from tests.manager.ca import harness


def dial(identity: identities.Identity) -> tls.Dial:
    return tls.dialler(lambda: identity)


def test_a_manager_joins_through_a_follower() -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            identity = await site.admit(role=pb.NODE_ROLE_MANAGER)
            async with harness.Manager(site.shared, identity).serve() as newcomer:
                members = await membership_client.join_raft(
                    dial(identity), [site.follower.cluster_addr], own_addr=newcomer.cluster_addr
                )
                assert {member.node_id: member.addr for member in members} == site.shared.members
                assert site.shared.members[identity.node_id] == newcomer.cluster_addr
                assert site.node(identity.node_id).manager.addr == newcomer.cluster_addr
                index = site.shared.state.index
                again = await membership_client.join_raft(
                    dial(identity), [site.leader.cluster_addr], own_addr=newcomer.cluster_addr
                )
                assert again == members
                assert site.shared.state.index == index  # nothing to change

    harness.run(main)


def test_managers_that_join_at_once_all_get_in() -> None:
    async def main() -> None:
        async with harness.site() as site, contextlib.AsyncExitStack() as stack:
            joining = []
            for _ in range(3):
                identity = await site.admit(role=pb.NODE_ROLE_MANAGER)
                newcomer = await stack.enter_async_context(harness.Manager(site.shared, identity).serve())
                joining.append(
                    membership_client.join_raft(
                        dial(identity), [site.leader.cluster_addr], own_addr=newcomer.cluster_addr
                    )
                )
            site.shared.busy = True  # somebody else changes the group meanwhile
            waiting = [asyncio.ensure_future(each) for each in joining]
            await asyncio.wait(waiting, timeout=0.1)
            assert not any(each.done() for each in waiting)
            site.shared.busy = False
            await asyncio.gather(*waiting)
            assert len(site.shared.members) == 4

    harness.run(main)


def test_the_unspecified_address_becomes_the_one_seen() -> None:
    async def main() -> None:
        async with harness.site() as site:
            identity = await site.admit(role=pb.NODE_ROLE_MANAGER)
            async with harness.Manager(site.shared, identity).serve() as newcomer:
                port = newcomer.cluster_addr.split(":")[1]
                await membership_client.join_raft(
                    dial(identity), [site.leader.cluster_addr], own_addr=f"0.0.0.0:{port}"
                )
                assert site.shared.members[identity.node_id] == f"127.0.0.1:{port}"

    harness.run(main)


@pytest.mark.parametrize("there", ["nobody", "another manager"])
def test_a_manager_that_cannot_be_dialled_back_stays_out(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "DIAL_BACK_TIMEOUT_S", 0.5)

    async def main() -> None:
        async with harness.site() as site:
            identity = await site.admit(role=pb.NODE_ROLE_MANAGER)
            addr = "127.0.0.1:1" if there == "nobody" else site.leader.cluster_addr
            with pytest.raises(errors.FailedPrecondition, match=f"advertised address: no answer .* at {addr}"):
                await membership_client.join_raft(dial(identity), [site.leader.cluster_addr], own_addr=addr)
            assert identity.node_id not in site.shared.members

    harness.run(main)


def test_who_may_not_become_a_member() -> None:
    async def main() -> None:
        async with harness.site() as site:
            worker = await site.admit(role=pb.NODE_ROLE_WORKER)
            demoted = await site.admit(role=pb.NODE_ROLE_MANAGER)
            await site.change(demoted.node_id, role=pb.NODE_ROLE_WORKER)
            removed = harness.forge(site.root(), cluster_id=site.view.cluster.id)
            for identity, reason in (
                (worker, "is a skep-worker, this call is for skep-manager"),
                (demoted, "is not a manager any more"),
                (removed, "was removed from the cluster"),
            ):
                with pytest.raises(errors.Denied, match=reason):
                    await membership_client.join_raft(
                        dial(identity), [site.leader.cluster_addr], own_addr="127.0.0.1:1"
                    )
            manager = await site.admit(role=pb.NODE_ROLE_MANAGER)
            for addr in ("nonsense", "host:port", "a\nb:1"):
                with pytest.raises(errors.Invalid, match="HOST:PORT"):
                    await membership_client.join_raft(dial(manager), [site.leader.cluster_addr], own_addr=addr)

    harness.run(main)


def test_a_worker_leaves() -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            worker = await site.admit(role=pb.NODE_ROLE_WORKER)
            for _ in range(2):
                await membership_client.leave_cluster(dial(worker), [site.follower.cluster_addr])
            node = site.node(worker.node_id)
            assert (node.status.state, node.status.message) == (pb.NODE_STATE_DOWN, "node left the swarm")

    harness.run(main)


def test_a_manager_leaves_and_is_a_worker_that_is_down() -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            leaving = site.follower.identity
            await membership_client.leave_cluster(dial(leaving), [site.follower.cluster_addr])
            assert leaving.node_id not in site.shared.members
            node = site.node(leaving.node_id)
            assert node.status.state == pb.NODE_STATE_DOWN
            assert node.role == node.spec.role == pb.NODE_ROLE_WORKER
            assert not node.HasField("manager")

    harness.run(main)


def test_a_leader_hands_over_before_it_leaves() -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            leaving = site.leader.identity
            site.shared.transfers_to = site.follower.identity.node_id
            await membership_client.leave_cluster(dial(leaving), [site.leader.cluster_addr])
            assert list(site.shared.members) == [site.follower.identity.node_id]
            assert site.node(leaving.node_id).status.message == "node left the swarm"

    harness.run(main)


def test_the_last_manager_does_not_leave_by_accident() -> None:
    async def main() -> None:
        async with harness.site() as site:
            with pytest.raises(errors.FailedPrecondition, match="this node is the last manager"):
                await membership_client.leave_cluster(dial(site.leader.identity), [site.leader.cluster_addr])
            assert site.node(site.leader.identity.node_id).status.message == ""

    harness.run(main)


def test_without_a_leader_the_call_gives_up_in_time() -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            site.shared.leader_id = ""
            with pytest.raises(errors.Unavailable, match="The swarm does not have a leader"):
                await membership_client.leave_cluster(
                    dial(site.leader.identity), [site.follower.cluster_addr], patience_s=0.3
                )
            with pytest.raises(errors.Unavailable, match=r"cannot reach the manager at .*: connection refused"):
                await membership_client.leave_cluster(dial(site.leader.identity), ["127.0.0.1:1"], patience_s=0.3)
            with pytest.raises(errors.Unavailable, match="no manager's address is known"):
                await membership_client.leave_cluster(dial(site.leader.identity), [])

    harness.run(main)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("10.0.0.1:2377", "10.0.0.1:2377"),
        ("node-1.lan:2377", "node-1.lan:2377"),
        ("0.0.0.0:2377", "10.9.9.9:2377"),
        (":2377", "10.9.9.9:2377"),
        ("[::]:2377", "10.9.9.9:2377"),
        ("[fd00::1]:2377", "[fd00::1]:2377"),
    ],
)
def test_advertised(given: str, expected: str) -> None:
    assert membership.advertised(given, observed="10.9.9.9") == expected


def test_a_manager_that_is_being_demoted_cannot_come_back_in() -> None:
    async def main() -> None:
        async with harness.site() as site:
            manager = await site.admit(role=pb.NODE_ROLE_MANAGER)
            node = pb.Node()
            node.CopyFrom(site.node(manager.node_id))
            node.spec.role = pb.NODE_ROLE_WORKER  # wished, not carried out yet; its certificate says manager for long
            await site.leader.committer.commit([ops.update(node)])
            with pytest.raises(errors.Denied, match="is not a manager any more"):
                await membership_client.join_raft(dial(manager), [site.leader.cluster_addr], own_addr="127.0.0.1:1")
            assert manager.node_id not in site.shared.members

    harness.run(main)
