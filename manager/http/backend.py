"""What the HTTP API needs from the machine it runs on. The daemon provides it; tests provide a fake.

The API is served on every machine: before it is in a cluster (init and join arrive this way), on workers, and on
managers. `Machine.manager` says which.
"""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from manager.store import commit
from manager.store import store as state
from skep import channel, ids, pb
from skep import clock as time


@dataclasses.dataclass(frozen=True)
class InitRequest:
    """POST /swarm/init. Empty strings mean: find out, or take the default."""

    listen_addr: str = ""  # host:port of the cluster port
    advertise_addr: str = ""
    availability: pb.NodeAvailability.ValueType = pb.NODE_AVAILABILITY_ACTIVE
    force_new_cluster: bool = False
    spec: pb.ClusterSpec = dataclasses.field(default_factory=pb.ClusterSpec)


@dataclasses.dataclass(frozen=True)
class JoinRequest:
    """POST /swarm/join."""

    remote_addrs: Sequence[str]  # host:port of managers' join ports
    token: str = dataclasses.field(repr=False)
    listen_addr: str = ""
    advertise_addr: str = ""
    availability: pb.NodeAvailability.ValueType = pb.NODE_AVAILABILITY_ACTIVE


@dataclasses.dataclass(frozen=True)
class MachineInfo:
    """What /info and /version say about this machine."""

    state: str  # Docker's LocalNodeState: inactive, pending, active, error, locked
    error: str
    hostname: str
    node_id: str
    node_addr: str
    cluster_id: str
    managers: Sequence[pb.RaftMember]  # known managers, cluster addresses
    description: pb.NodeDescription


@dataclasses.dataclass(frozen=True)
class LogQuery:
    """Which output of which tasks."""

    task_ids: Sequence[str]
    follow: bool = False
    stdout: bool = True
    stderr: bool = True
    tail: int = -1
    since: float = 0.0


class LogSource(Protocol):
    """Fetches tasks' output from their agents; works on the leader."""

    def read(self, query: LogQuery) -> AsyncIterator[tuple[str, pb.LogEntry]]:
        """(task ID, entry) as they come, in order per task. Problems with single tasks (node away, nothing kept) are
        delivered as entries on stderr of that task, so that one dead node never spoils the stream."""
        ...


class ChannelSource(Protocol):
    """Opens channels to tasks through their agents; works on the leader."""

    def open(self, task_id: str, what: pb.ChannelOpen) -> AbstractAsyncContextManager[channel.Channel]:
        """A channel that the agent has answered with Ready; ended on leaving.

        Raises what the agent says instead, NotFound, FailedPrecondition or Unavailable.
        """
        ...


class Tunnel(Protocol):
    """A call to the leader over which a request, its body and a raw connection can travel."""

    async def send(self, part: pb.TunnelPart) -> None:
        """Waits while the leader does not keep up. Raises NotProposed when it was never reached, or Unavailable."""
        ...

    async def receive(self) -> pb.TunnelPart | None:
        """The next part; None when the leader has ended the call. Raises as `send` does."""
        ...

    async def done(self) -> None:
        """Nothing more will be sent."""
        ...

    def cancel(self) -> None:
        """Ends the call."""
        ...


class Manager(Protocol):
    """The manager part of this machine, while it has one."""

    @property
    def node_id(self) -> str: ...

    @property
    def store(self) -> state.Store: ...

    @property
    def committer(self) -> commit.Committer: ...

    @property
    def logs(self) -> LogSource: ...

    @property
    def channels(self) -> ChannelSource: ...

    @property
    def join_port(self) -> int: ...

    @property
    def leader_id(self) -> str:
        """Node ID of the leader, empty while there is none."""
        ...

    @property
    def behind_s(self) -> float | None:
        """Seconds since the store was known to be current: 0 while this manager leads, None when it never was."""
        ...

    def reachability(self) -> dict[str, pb.ManagerStatus]:
        """Leadership, reachability and address of every Raft member, by node ID."""
        ...

    def forward(self, request: pb.HttpRequest) -> AsyncIterator[pb.HttpResponsePart]:
        """Has the leader answer a request.

        Raises commit.NotProposed when there is none or it cannot be reached, so that the request was certainly not
        carried out, and Unavailable when it does not answer or breaks off.
        """
        ...

    def tunnel(self) -> Tunnel:
        """The same for a request that does not fit into one message. Raises NotProposed when there is no leader."""
        ...


class Machine(Protocol):
    """This machine's daemon."""

    @property
    def clock(self) -> time.Clock: ...

    @property
    def rng(self) -> ids.Rng: ...

    @property
    def manager(self) -> Manager | None:
        """None when this machine is not (or not yet) a manager."""
        ...

    def info(self) -> MachineInfo:
        """What is known of this machine now."""
        ...

    async def init(self, request: InitRequest) -> str:
        """Makes a new cluster with this machine as its first manager; returns the node ID."""
        ...

    async def join(self, request: JoinRequest) -> None:
        """Joins a cluster; returns once this machine is a member."""
        ...

    async def leave(self, *, force: bool) -> None:
        """Leaves the cluster: tasks stop, identity and state are removed."""
        ...
