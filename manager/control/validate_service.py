"""What a service may ask for. Pure: raises Invalid or Unimplemented, in the words Docker's users know."""

import math

from manager.control import compare, names, payloads
from manager.scheduler import constraints
from skep import errors, expand, jsonmap, pb, policies

CPU_NANOS_MIN = 1_000_000  # a thousandth of a core
MEMORY_BYTES_MIN = 4 * 1024 * 1024
HEALTH_NANOS_MIN = 1_000_000
PORT_MAX = 65_535
REPLICAS_MAX = 1_000_000  # beyond any cluster; catches a slip of the finger before it fills the log
SPEC_BYTES_MAX = 1024 * 1024  # a revision travels in one Raft entry and to every agent that runs it
_DURATIONS = (
    ("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start_period"),
    ("StartInterval", "start_interval"),
)  # fmt: skip


def check(spec: pb.ServiceSpec) -> None:
    """Raises when a service with this specification cannot be had; `spec` is normalised."""
    names.check_object_name(spec.name)
    policies.check(spec.labels)
    _check_runtime(spec.task)
    check_container(spec.task.container)
    check_resources(spec.task.resources)
    check_restart(spec.task.restart)
    check_placement(spec.task.placement)
    check_mode(spec)
    check_templates(spec)
    check_update(spec.update, name="update")
    check_update(spec.rollback, name="rollback")
    check_endpoint(spec.endpoint)
    _check_references(spec)
    size = spec.ByteSize()
    if size > SPEC_BYTES_MAX:
        raise errors.Invalid(f"the specification has {size} bytes, more than the {SPEC_BYTES_MAX} that are allowed")


def check_container(container: pb.ContainerSpec) -> None:
    """Image, health check, mounts and the rest of the container."""
    names.check_image(container.image)
    health = container.healthcheck
    for shown, field in _DURATIONS:
        value = getattr(health, field)
        if value and value < HEALTH_NANOS_MIN:
            raise errors.Invalid(f"ContainerSpec: {shown} in HealthConfig cannot be less than 1ms")
    if health.retries < 0:
        raise errors.Invalid("ContainerSpec: Retries in HealthConfig cannot be negative")
    if container.stop_grace_period < 0:
        raise errors.Invalid("ContainerSpec: StopGracePeriod cannot be negative")
    seen: dict[str, None] = {}
    for mount in container.mounts:
        _check_mount(mount)
        if mount.target in seen:
            raise errors.Invalid(f"ContainerSpec: duplicate mount point: {mount.target}")
        seen[mount.target] = None
    for variable in container.env:
        if not variable.partition("=")[0]:
            raise errors.Invalid(f"ContainerSpec: invalid environment variable: {variable!r} has no name")
    for value in (*container.command, *container.args, *container.env):
        if "\0" in value:
            raise errors.Invalid("ContainerSpec: commands, arguments and environment cannot hold NUL characters")


def _check_mount(mount: pb.Mount) -> None:
    where = f'invalid mount config for type "{jsonmap.word_of(pb.MountType, mount.type)}": '
    if not mount.target:
        raise errors.Invalid(where + "field Target must not be empty")
    if not mount.target.startswith("/"):
        raise errors.Invalid(where + f"invalid mount path: '{mount.target}' mount path must be absolute")
    if mount.type == pb.MOUNT_TYPE_BIND and not mount.source:
        raise errors.Invalid(where + "field Source must not be empty")
    if mount.type == pb.MOUNT_TYPE_BIND and not mount.source.startswith("/"):
        raise errors.Invalid(where + f"invalid mount path: '{mount.source}' mount path must be absolute")
    if mount.type == pb.MOUNT_TYPE_TMPFS and mount.source:
        raise errors.Invalid(where + "field Source must not be specified")


def check_resources(resources: pb.ResourceRequirements) -> None:
    """Limits and reservations; 0 means not set."""
    for part in (resources.limits, resources.reservations):
        if part.nano_cpus and part.nano_cpus < CPU_NANOS_MIN:
            raise errors.Invalid(f"invalid cpu value {part.nano_cpus / 1e9:g}: Must be at least 0.001")
        if part.memory_bytes and part.memory_bytes < MEMORY_BYTES_MIN:
            raise errors.Invalid(f"invalid memory value {part.memory_bytes}: Must be at least 4MiB")
        if part.pids < 0:
            raise errors.Invalid(f"invalid pids value {part.pids}: it cannot be negative")
    for generic in resources.reservations.generic:
        if generic.WhichOneof("resource") == "named":
            raise errors.Invalid(f"invalid resource reservation {generic.named.kind!r}: reserve a number, not a name")
        if generic.discrete.value < 0:
            raise errors.Invalid(f"invalid resource reservation {generic.discrete.kind!r}: it cannot be negative")


def check_restart(restart: pb.RestartPolicy) -> None:
    """The restart policy."""
    if restart.delay < 0:
        raise errors.Invalid("TaskSpec: restart-delay cannot be negative")
    if restart.window < 0:
        raise errors.Invalid("TaskSpec: restart-window cannot be negative")


def check_placement(placement: pb.Placement) -> None:
    """Constraints and preferences."""
    constraints.parse(placement.constraints)
    for preference in placement.preferences:
        if not preference.spread.spread_descriptor:
            raise errors.Invalid("Placement: a preference must name what to spread over: spread=node.labels.<key>")


def check_mode(spec: pb.ServiceSpec) -> None:
    """The mode, and what does not go with it."""
    mode = spec.mode
    counts = {
        "Mode.Replicated.Replicas": mode.replicated.replicas,
        "Mode.ReplicatedJob.TotalCompletions": mode.replicated_job.total_completions,
        "Mode.ReplicatedJob.MaxConcurrent": mode.replicated_job.max_concurrent,
    }
    for path, count in counts.items():
        if count > REPLICAS_MAX:
            raise errors.Invalid(f"{path}: {count} is more than the {REPLICAS_MAX} that are allowed")
    if compare.is_job(spec) and spec.HasField("update"):
        raise errors.Invalid("Jobs may not have an update config")


def check_templates(spec: pb.ServiceSpec) -> None:
    """Placeholders, tried out on a made-up task: agents fill in the real one."""
    fields = dict.fromkeys(expand.FIELDS, "x")
    container = spec.task.container
    texts = [("env", variable.partition("=")[2]) for variable in container.env]
    texts.append(("hostname", container.hostname))
    for mount in container.mounts:
        volume = mount.volume_options
        options = volume.driver_config.options
        texts += (("mounts", text) for text in (mount.source, mount.target, *volume.labels.values(), *options.values()))
    for what, text in texts:
        try:
            expand.expand(text, fields, spec.labels)
        except errors.Invalid as error:
            raise errors.Invalid(f"expanding {what} failed: {error.message}") from None


def check_update(config: pb.UpdateConfig, *, name: str) -> None:
    """An update or rollback policy; `name` says which."""
    if config.delay < 0:
        raise errors.Invalid(f"TaskSpec: {name}-delay cannot be negative")
    if config.monitor < 0:
        raise errors.Invalid(f"TaskSpec: {name}-monitor cannot be negative")
    if not math.isfinite(config.max_failure_ratio) or not 0 <= config.max_failure_ratio <= 1:
        raise errors.Invalid(f"TaskSpec: {name}-maxfailureratio cannot be less than 0 or bigger than 1")
    if name == "rollback" and config.failure_action == pb.FAILURE_ACTION_ROLLBACK:
        raise errors.Invalid("RollbackConfig: a rollback cannot itself be rolled back: use pause or continue")


def check_endpoint(endpoint: pb.EndpointSpec) -> None:
    """Published ports."""
    seen: dict[tuple[int, int], None] = {}
    for port in endpoint.ports:
        if not 0 < port.target_port <= PORT_MAX:
            raise errors.Invalid(f"EndpointSpec: invalid target port {port.target_port}: it must be 1 to {PORT_MAX}")
        if port.published_port > PORT_MAX:
            raise errors.Invalid(f"EndpointSpec: invalid published port {port.published_port}: at most {PORT_MAX}")
        key = (port.protocol, port.published_port)
        if port.published_port and key in seen:
            raise errors.Invalid("EndpointSpec: duplicate published ports provided")
        seen[key] = None
    for port in endpoint.ports:
        if port.publish_mode != pb.PUBLISH_MODE_INGRESS:
            continue
        if endpoint.mode == pb.ENDPOINT_MODE_DNSRR:
            raise errors.Invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
        raise errors.Unimplemented(
            "this version of skep has no routing mesh, so a port cannot be published in ingress mode; use mode=host, "
            f"which publishes on the machines that run a task: --publish mode=host,{_port_words(port)}"
        )


def _port_words(port: pb.PortConfig) -> str:
    published = f"published={port.published_port}," if port.published_port else ""
    return f"{published}target={port.target_port}"


def _check_runtime(task: pb.TaskSpec) -> None:
    if task.runtime != "container":
        raise errors.Unimplemented(f"TaskSpec: runtime {task.runtime!r} is not implemented: only container is")


def _check_references(spec: pb.ServiceSpec) -> None:
    payloads.check_references(spec.task.container)
    if spec.task.networks or spec.networks:  # what this version cannot do is refused, never ignored
        raise errors.Unimplemented(
            "this version of skep does not yet do what this service asks: it attaches services to networks (--network)"
        )
