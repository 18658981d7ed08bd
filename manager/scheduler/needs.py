"""What the tasks of one revision ask of a node, read from its specification once."""

import dataclasses
from collections.abc import Iterable

from manager.scheduler import constraints
from skep import errors, pb, platforms

Port = tuple[int, int]  # protocol, published port
Platform = platforms.Platform
Plugin = tuple[str, str]  # type as engines report it (Volume, Log), name

_PROTOCOL = {pb.PORT_PROTOCOL_TCP: "tcp", pb.PORT_PROTOCOL_UDP: "udp", pb.PORT_PROTOCOL_SCTP: "sctp"}


@dataclasses.dataclass(frozen=True, slots=True)
class Needs:
    """Requirements of alike tasks. Two equal ones are satisfied by the same nodes."""

    nano_cpus: int = 0
    memory_bytes: int = 0
    generic: tuple[tuple[str, int], ...] = ()
    ports: tuple[Port, ...] = ()
    wanted: tuple[constraints.Constraint, ...] = ()
    platforms: tuple[Platform, ...] = ()
    plugins: tuple[Plugin, ...] = ()
    max_replicas: int = 0  # per node; 0 = no limit
    spread: tuple[str, ...] = ()  # descriptors of the preferences, outermost first
    unreadable: str = ""  # why no node can ever do: a constraint that does not parse
    takes_room: bool = dataclasses.field(init=False)  # False: any number of the tasks fits on any node
    choosy: bool = dataclasses.field(init=False)  # False: what nodes are like does not matter

    def __post_init__(self) -> None:
        room = self.nano_cpus or self.memory_bytes or self.generic or self.ports or self.max_replicas
        object.__setattr__(self, "takes_room", bool(room))
        object.__setattr__(self, "choosy", bool(self.wanted or self.platforms or self.plugins))


def of(spec: pb.ServiceSpec) -> Needs:
    """The needs that `spec` states."""
    reserved = spec.task.resources.reservations
    placement = spec.task.placement
    wanted: tuple[constraints.Constraint, ...] = ()
    unreadable = ""
    try:
        wanted = constraints.parse(placement.constraints)
    except errors.Invalid as error:  # stored by a manager with other rules than ours
        unreadable = error.message
    return Needs(
        nano_cpus=reserved.nano_cpus,
        memory_bytes=reserved.memory_bytes,
        generic=tuple(counted(reserved).items()),
        ports=tuple(host_ports(spec.endpoint)),
        wanted=wanted,
        platforms=tuple(platforms.spelled(wish) for wish in placement.platforms),
        plugins=tuple(plugins(spec.task)),
        max_replicas=placement.max_replicas,
        spread=tuple(
            preference.spread.spread_descriptor
            for preference in placement.preferences
            if constraints.attribute(preference.spread.spread_descriptor, _NOBODY) is not None
        ),
        unreadable=unreadable,
    )


_NOBODY = pb.Node()


def plugins(task: pb.TaskSpec) -> list[Plugin]:
    """The plugins of the engine that the task uses: drivers of volumes and of logs."""
    found: dict[Plugin, None] = {}
    for mount in task.container.mounts:
        driver = mount.volume_options.driver_config.name
        if mount.type == pb.MOUNT_TYPE_VOLUME and driver:
            found["Volume", driver] = None
    if task.log_driver.name not in {"", "none"}:
        found["Log", task.log_driver.name] = None
    return list(found)


def named(resources: Iterable[pb.GenericResource]) -> dict[str, list[str]]:
    """The names among generic resources, by kind."""
    found: dict[str, list[str]] = {}
    for resource in resources:
        if resource.WhichOneof("resource") == "named":
            found.setdefault(resource.named.kind, []).append(resource.named.value)
    return found


def counted(resources: pb.Resources) -> dict[str, int]:
    """How many of each generic resource; a named one counts as one."""
    counts: dict[str, int] = {}
    for resource in resources.generic:
        if resource.WhichOneof("resource") == "named":
            counts[resource.named.kind] = counts.get(resource.named.kind, 0) + 1
        else:
            counts[resource.discrete.kind] = counts.get(resource.discrete.kind, 0) + resource.discrete.value
    return counts


def host_ports(endpoint: pb.EndpointSpec) -> list[Port]:
    """Ports that the task takes on its node's own addresses."""
    return [
        (port.protocol, port.published_port)
        for port in endpoint.ports
        if port.publish_mode == pb.PUBLISH_MODE_HOST and port.published_port
    ]


def port_name(port: Port) -> str:
    """The port as people write it: 8080/tcp."""
    protocol, number = port
    return f"{number}/{_PROTOCOL.get(pb.PortProtocol.ValueType(protocol), 'tcp')}"
