"""What the store says after a rebuild."""

import asyncio

import pytest

from manager.ca import authority, recovery
from manager.store import commit, ops, store
from skep import errors, ids, pb
from tests.manager.ca import harness


def test_the_others_become_workers_that_are_down() -> None:
    async def main() -> None:
        state = store.Store(checking=True)
        committer = commit.LocalCommitter(state, harness.TIME)
        founding = authority.found(hostname="a", addr="a:1", now=harness.TIME.now(), rng=ids.system_rng())
        await committer.commit(founding.ops)
        own = founding.identity.node_id
        for node_id, wished, role in (
            ("m", pb.NODE_ROLE_MANAGER, pb.NODE_ROLE_MANAGER),
            ("p", pb.NODE_ROLE_MANAGER, pb.NODE_ROLE_WORKER),
            ("w", pb.NODE_ROLE_WORKER, pb.NODE_ROLE_WORKER),
        ):
            node = pb.Node(id=node_id, spec=pb.NodeSpec(role=wished), role=role)
            node.status.state = pb.NODE_STATE_READY
            await committer.commit([ops.create(node)])
        await committer.commit(recovery.alone(state.view(), node_id=own, addr="b:2"))
        nodes = {node.id: node for node in state.view().nodes}
        assert nodes[own].manager.addr == "b:2"
        for node_id in "mp":
            assert nodes[node_id].role == nodes[node_id].spec.role == pb.NODE_ROLE_WORKER
            assert nodes[node_id].status.message == "the cluster was rebuilt without this manager"
        assert nodes["w"].status.state == pb.NODE_STATE_READY
        assert not recovery.alone(state.view(), node_id=own, addr="b:2")
        with pytest.raises(errors.FailedPrecondition, match="does not know node x"):
            recovery.alone(state.view(), node_id="x", addr="b:2")
        state.verify()

    asyncio.run(main())
