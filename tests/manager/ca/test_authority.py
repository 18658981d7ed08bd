"""Founding a cluster, its specification, and the limit on wrong tokens."""

import pytest

from manager.ca import attempts, authority
from manager.store import store
from skep import errors, ids, pb, stamps
from skep.security import keys, tokens

NOW = 1_800_000_000.0


def found(spec: pb.ClusterSpec | None = None) -> tuple[authority.Founding, store.Store]:
    founding = authority.found(hostname="first", addr="10.0.0.1:2377", now=NOW, rng=ids.seeded_rng(1), spec=spec)
    state = store.Store(checking=True)
    assert state.apply(1, [pb.Transaction(ops=founding.ops, at=stamps.stamp(NOW))]) == [None]
    return founding, state


def test_a_new_cluster_has_docker_s_defaults() -> None:
    founding, state = found()
    cluster = state.view().cluster
    assert cluster.id == founding.identity.cluster_id
    assert cluster.spec.name == "default"
    assert cluster.spec.orchestration.task_history_retention_limit == 5
    assert cluster.spec.raft.snapshot_interval == 10_000
    assert cluster.spec.raft.log_entries_for_slow_followers == 500
    assert (cluster.spec.raft.election_tick, cluster.spec.raft.heartbeat_tick) == (10, 1)
    assert cluster.spec.dispatcher.heartbeat_period == 5_000_000_000
    assert cluster.spec.ca.node_cert_expiry == 2160 * 3600 * 1_000_000_000
    node = state.view().nodes.get(founding.identity.node_id)
    assert node is not None
    assert node.role == node.spec.role == founding.identity.role == pb.NODE_ROLE_MANAGER
    assert node.manager.addr == "10.0.0.1:2377"
    assert node.description.hostname == "first"
    assert cluster.root_ca.key_pem.decode() not in repr(founding)


def test_wishes_override_defaults_even_when_they_are_zero() -> None:
    wished = pb.ClusterSpec(
        labels={"a": "b"},
        orchestration=pb.ClusterSpec.Orchestration(task_history_retention_limit=0),
        dispatcher=pb.ClusterSpec.Dispatcher(heartbeat_period=stamps.to_nanos(1.5)),
        ca=pb.ClusterSpec.CAConfig(node_cert_expiry=stamps.to_nanos(7200)),
    )
    founding, state = found(wished)
    spec = state.view().cluster.spec
    assert spec.orchestration.task_history_retention_limit == 0
    assert spec.dispatcher.heartbeat_period == 1_500_000_000
    assert spec.labels == {"a": "b"}
    assert keys.inspect(founding.identity.cert_pem).not_after == NOW + 7200


def test_impossible_specifications_are_invalid() -> None:
    with pytest.raises(errors.Invalid, match="minimum certificate expiry time is: 1h0m0s"):
        found(pb.ClusterSpec(ca=pb.ClusterSpec.CAConfig(node_cert_expiry=stamps.to_nanos(60))))
    with pytest.raises(errors.Invalid, match="cannot be a negative duration"):
        found(pb.ClusterSpec(dispatcher=pb.ClusterSpec.Dispatcher(heartbeat_period=-1)))


def test_tokens_decide_the_role() -> None:
    _, state = found()
    cluster = state.view().cluster
    worker, manager = authority.join_tokens(cluster)
    assert worker != manager
    assert authority.role_of(worker, cluster.root_ca) == pb.NODE_ROLE_WORKER
    assert authority.role_of(manager, cluster.root_ca) == pb.NODE_ROLE_MANAGER
    _, other = found()  # same seed: the same secrets under another root
    for token in (worker, "", "SKPTKN", tokens.make(root_pem=cluster.root_ca.cert_pem, secret="0" * 25)):
        root_ca = other.view().cluster.root_ca if token == worker else cluster.root_ca
        with pytest.raises(errors.Denied, match=r"^A valid join token is necessary to join this cluster$"):
            authority.role_of(token, root_ca)


@pytest.mark.parametrize("role", [pb.NODE_ROLE_WORKER, pb.NODE_ROLE_MANAGER])
def test_rotation_touches_one_secret_and_is_based_on_what_was_read(role: pb.NodeRole.ValueType) -> None:
    _, state = found()
    cluster = state.view().cluster
    op = authority.rotate_token_op(cluster, role=role, rng=ids.seeded_rng(2))
    assert op.based_on == cluster.version.index
    changed = op.object.cluster.root_ca
    assert (changed.worker_secret != cluster.root_ca.worker_secret) == (role == pb.NODE_ROLE_WORKER)
    assert (changed.manager_secret != cluster.root_ca.manager_secret) == (role == pb.NODE_ROLE_MANAGER)
    state.verify()


def test_failures_are_counted_per_host_and_forgotten() -> None:
    limit = attempts.AttemptLimit(burst=3, refill_s=6.0, hosts_max=2)
    for _ in range(3):
        assert limit.wait_s("a", now=0.0) == 0.0
        limit.failed("a", now=0.0)
    assert limit.wait_s("a", now=0.0) == 6.0
    assert limit.wait_s("a", now=3.0) == 3.0
    assert limit.wait_s("a", now=6.0) == 0.0
    assert limit.wait_s("b", now=0.0) == 0.0
    limit.failed("a", now=6.0)
    assert limit.wait_s("a", now=6.0) == 6.0
    limit.failed("b", now=6.0)
    limit.failed("c", now=6.0)  # a was quiet longest
    assert limit.wait_s("a", now=6.0) == 0.0
