"""What a change of a service's specification means for its tasks. Pure."""

from skep import pb, policies


def is_job(spec: pb.ServiceSpec) -> bool:
    """Whether the service is to complete, instead of to run on."""
    return spec.mode.WhichOneof("mode") in {"replicated_job", "global_job"}


def same_work(before: pb.ServiceSpec, after: pb.ServiceSpec) -> bool:
    """Whether tasks of `before` are as good as tasks of `after`: nothing that a task carries differs.

    Name, labels, replicas and update policy are the service's own; the registry's password only matters for pulling.
    """
    if policies.lease_s(before.labels) != policies.lease_s(after.labels):
        return False  # agents learn of the promise with the task
    return _work(before) == _work(after)


def only_scaled(before: pb.ServiceSpec, after: pb.ServiceSpec) -> bool:
    """Whether nothing but the number of replicas differs."""
    if before.mode.WhichOneof("mode") != "replicated" or after.mode.WhichOneof("mode") != "replicated":
        return False
    scaled = pb.ServiceSpec()
    scaled.CopyFrom(before)
    scaled.mode.replicated.replicas = after.mode.replicated.replicas
    return scaled == after


def _work(spec: pb.ServiceSpec) -> pb.ServiceSpec:
    work = pb.ServiceSpec(task=spec.task, endpoint=spec.endpoint)
    work.task.container.ClearField("registry_auth")
    work.endpoint.SetInParent()  # an empty endpoint and none are the same
    return work
