"""What a skepd is told at its start, and what it remembers about its place in the cluster."""

import dataclasses
import json
import os
import pathlib
import socket
from collections.abc import Sequence
from typing import Literal

from skep import errors, pb

DEFAULT_STATE_DIR = pathlib.Path("/var/lib/skep")
DEFAULT_SOCKET = pathlib.Path("/run/skep/docker.sock")
CLUSTER_PORT = 2377  # Raft, agents, certificates: mutual TLS
JOIN_PORT_OFFSET = 1  # the join call has no client certificate yet, so it has a port of its own: cluster port + 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """Command-line options of skepd. Paths are absolute."""

    state_dir: pathlib.Path
    socket: pathlib.Path
    name: str  # shown as HOSTNAME
    runtime: Literal["auto", "docker", "process", "memory"]
    docker_socket: str
    labels: dict[str, str]  # engine labels, for placement before any node label is set
    listen_addr: str = ""  # of the cluster port; empty: as it was, or as init and join say
    advertise_addr: str = ""  # the same for the address that others dial
    generic: tuple[pb.GenericResource, ...] = ()  # what this machine has beside processors and memory

    @property
    def identity_dir(self) -> pathlib.Path:
        """Key and certificates."""
        return self.state_dir / "identity"

    @property
    def raft_dir(self) -> pathlib.Path:
        """Log and snapshots; managers only."""
        return self.state_dir / "raft"

    @property
    def raft_mark(self) -> pathlib.Path:
        """Says that there is a log in `raft_dir`; kept apart from it, so that losing one does not lose the other."""
        return self.identity_dir / "log.begun"

    @property
    def agent_dir(self) -> pathlib.Path:
        """What runs here and where the managers are."""
        return self.state_dir / "agent"

    @property
    def membership_file(self) -> pathlib.Path:
        """See Membership."""
        return self.state_dir / "node.json"


@dataclasses.dataclass(frozen=True)
class Membership:
    """This machine's addresses in its cluster, chosen at init or join and kept for restarts."""

    listen_addr: str  # host:port that the cluster port binds
    advertise_addr: str  # host:port that others dial
    # Managers at the time this one joined: address by node ID. They may connect before this one has a log.
    members: dict[str, str] = dataclasses.field(default_factory=dict)

    def save(self, path: pathlib.Path) -> None:
        """Writes atomically."""
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(dataclasses.asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Membership":
        """Reads what `save` wrote; Bug when the file is missing or damaged."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise errors.Bug(f"{path} cannot be read ({error}): leave the cluster and join again") from error


def generic_resources(given: Sequence[str]) -> tuple[pb.GenericResource, ...]:
    """ "gpu=2" as a number, "gpu=GPU-1" as a name, several by commas. Raises Invalid, also for both of one kind."""
    found: list[pb.GenericResource] = []
    kinds: dict[str, str] = {}
    for part in (part for text in given for part in text.split(",")):
        kind, equals, value = (each.strip() for each in part.partition("="))
        if not kind or not equals or not value:
            raise errors.Invalid(f"generic resource {part!r}: write KIND=NUMBER, or KIND=NAME for each one")
        counted = value.isdecimal()
        if kind in kinds and (counted or kinds[kind] == "number"):
            raise errors.Invalid(f"generic resource {kind}: give one number, or names only")
        kinds[kind] = "number" if counted else "names"
        if counted:
            found.append(pb.GenericResource(discrete=pb.GenericResource.Discrete(kind=kind, value=int(value))))
        else:
            found.append(pb.GenericResource(named=pb.GenericResource.Named(kind=kind, value=value)))
    return tuple(found)


def prepare(state_dir: pathlib.Path) -> None:
    """Makes the state directory. Raises FailedPrecondition when this user may not."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise errors.FailedPrecondition(
            f"cannot use the state directory {state_dir}: {error.strerror}. Run as root, or choose another with "
            "--state-dir"
        ) from error


def split_addr(addr: str, *, default_port: int) -> tuple[str, int]:
    """'host', 'host:port' or '[v6]:port' as (host, port). Raises Invalid."""
    host, port = addr, str(default_port)
    if addr.startswith("["):
        inside, closed, rest = addr[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise errors.Invalid(f"invalid address {addr!r}: write [IPv6]:PORT")
        host, port = inside, rest[1:] or port
    elif addr.count(":") == 1:
        host, port = addr.split(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise errors.Invalid(f"invalid address {addr!r}: write HOST or HOST:PORT")
    return host, int(port)


def join_addr(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def choose_addresses(*, listen_addr: str, advertise_addr: str) -> Membership:
    """Fills in what the user left out: all interfaces, and the address of the default route.

    Raises Invalid for an address that cannot be read or a wildcard that was to be advertised.
    """
    listen_host, listen_port = split_addr(listen_addr or "0.0.0.0", default_port=CLUSTER_PORT)  # noqa: S104
    wildcard = listen_host in {"0.0.0.0", "::"}  # noqa: S104
    if advertise_addr:
        host, port = split_addr(advertise_addr, default_port=listen_port)
        if host in {"0.0.0.0", "::"}:  # noqa: S104
            raise errors.Invalid(f"advertise address {advertise_addr!r} must be one that other machines can dial")
    else:
        host, port = (default_route_address() if wildcard else listen_host), listen_port
    return Membership(listen_addr=join_addr(listen_host, listen_port), advertise_addr=join_addr(host, port))


def moved(place: Membership, *, listen_addr: str, advertise_addr: str) -> Membership:
    """`place` after the machine was given new addresses; empty strings mean: as before.

    A port that goes unsaid stays. A listening address that names the host that was advertised before moves along with
    it, and so does the port when both were the same. Raises Invalid as choose_addresses does.
    """
    old_host, old_port = split_addr(place.advertise_addr, default_port=CLUSTER_PORT)
    host, port = split_addr(advertise_addr or place.advertise_addr, default_port=old_port)
    listen_host, listen_port = split_addr(place.listen_addr, default_port=CLUSTER_PORT)
    if listen_addr:
        listen_host, listen_port = split_addr(listen_addr, default_port=listen_port)
    else:
        listen_host = host if listen_host == old_host else listen_host
        listen_port = port if listen_port == old_port else listen_port
    chosen = choose_addresses(listen_addr=join_addr(listen_host, listen_port), advertise_addr=join_addr(host, port))
    return dataclasses.replace(place, listen_addr=chosen.listen_addr, advertise_addr=chosen.advertise_addr)


def default_route_address() -> str:
    """This machine's address on the way to the rest of the world; loopback when it has none. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: UDP connect only picks a route
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
