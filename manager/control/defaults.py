"""What holds where a service's specification is silent. Pure.

The stored specification stays as the user wrote it; readers that ask for defaults get a filled copy.
"""

from skep import pb, stamps

STOP_GRACE_PERIOD_S = 10.0
RESTART_DELAY_S = 5.0
UPDATE_MONITOR_S = 5.0
UPDATE_PARALLELISM = 1  # when the whole UpdateConfig is absent; a present one says 0 for "all at once"


def normalised(spec: pb.ServiceSpec) -> pb.ServiceSpec:
    """A copy as it is stored: the mode is spelled out and what Docker's engines always show is there."""
    stored = pb.ServiceSpec()
    stored.CopyFrom(spec)
    if stored.mode.WhichOneof("mode") is None:
        stored.mode.replicated.SetInParent()
    if stored.mode.WhichOneof("mode") == "replicated" and not stored.mode.replicated.HasField("replicas"):
        stored.mode.replicated.replicas = 1
    if stored.mode.WhichOneof("mode") == "replicated_job":
        job = stored.mode.replicated_job
        if not job.HasField("max_concurrent"):
            job.max_concurrent = 1
        if not job.HasField("total_completions"):
            job.total_completions = job.max_concurrent
    stored.task.container.isolation = stored.task.container.isolation or "default"
    stored.task.runtime = stored.task.runtime or "container"
    return stored


def filled(spec: pb.ServiceSpec) -> pb.ServiceSpec:
    """A copy with every default written out, as `insertDefaults` asks for."""
    full = pb.ServiceSpec()
    full.CopyFrom(spec)
    container = full.task.container
    if not container.HasField("stop_grace_period"):
        container.stop_grace_period = stamps.to_nanos(STOP_GRACE_PERIOD_S)
    container.dns_config.SetInParent()
    full.task.resources.limits.SetInParent()
    full.task.resources.reservations.SetInParent()
    full.task.placement.SetInParent()
    restart = full.task.restart
    restart.SetInParent()
    if not restart.HasField("delay"):
        restart.delay = stamps.to_nanos(RESTART_DELAY_S)
    if not restart.HasField("max_attempts"):
        restart.max_attempts = 0
    job = full.mode.WhichOneof("mode") in {"replicated_job", "global_job"}
    for name in () if job else ("update", "rollback"):
        present = full.HasField(name)
        config: pb.UpdateConfig = getattr(full, name)
        if not present:
            config.parallelism = UPDATE_PARALLELISM
        if not config.HasField("monitor"):
            config.monitor = stamps.to_nanos(UPDATE_MONITOR_S)
    full.endpoint.SetInParent()
    return full
