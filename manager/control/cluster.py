"""The cluster object: settings and join tokens. Pure functions from a view to the operations of a transaction."""

import dataclasses

from manager.ca import authority
from manager.store import ops, views
from skep import errors, ids, pb


@dataclasses.dataclass(frozen=True)
class Update:
    """A request to change the cluster. `spec` replaces the whole specification."""

    spec: pb.ClusterSpec
    version: int
    rotate_worker_token: bool = False
    rotate_manager_token: bool = False


def update(view: views.View, request: Update, *, rng: ids.Rng) -> list[pb.Op]:
    """New settings and new tokens in one step; nothing when neither differs.

    Raises Invalid, Unimplemented, and Conflict when the cluster object has moved. `rng` must be fit for secrets.
    """
    cluster = view.cluster
    if cluster.version.index != request.version:
        raise errors.Conflict("update out of sequence")
    changed = pb.Cluster()
    changed.CopyFrom(cluster)
    changed.spec.CopyFrom(complete(request.spec, cluster.spec))
    check(changed.spec, before=cluster.spec)
    if request.rotate_worker_token:
        authority.set_secret(changed, role=pb.NODE_ROLE_WORKER, rng=rng)
    if request.rotate_manager_token:
        authority.set_secret(changed, role=pb.NODE_ROLE_MANAGER, rng=rng)
    return [] if changed == cluster else [ops.update(changed)]


def complete(wished: pb.ClusterSpec, before: pb.ClusterSpec) -> pb.ClusterSpec:
    """`wished` with today's value wherever a number is left out or zero, which no cluster can work with."""
    spec = pb.ClusterSpec()
    spec.CopyFrom(wished)
    spec.name = wished.name or before.name
    for group in ("orchestration", "raft", "dispatcher", "ca"):
        merged = type(getattr(before, group))()
        merged.CopyFrom(getattr(before, group))
        merged.MergeFrom(getattr(wished, group))
        getattr(spec, group).CopyFrom(merged)
    if wished.HasField("raft"):
        spec.raft.keep_old_snapshots = wished.raft.keep_old_snapshots  # 0 is a choice here
    spec.task_defaults.SetInParent()
    spec.encryption.SetInParent()
    spec.auto_rebalance = before.auto_rebalance  # no field of Docker's: it cannot be left out on purpose
    return spec


def check(spec: pb.ClusterSpec, *, before: pb.ClusterSpec) -> None:
    """Raises when the cluster cannot have these settings."""
    if spec.name != before.name:
        raise errors.Invalid("modification of cluster name is not allowed")
    if spec.encryption.auto_lock_managers:
        raise errors.Unimplemented("this version of skep cannot lock its managers (--autolock)")
    if (spec.raft.election_tick, spec.raft.heartbeat_tick) != (before.raft.election_tick, before.raft.heartbeat_tick):
        raise errors.Invalid("the Raft ticks of a running cluster cannot be changed")
    authority.check_spec(spec)
