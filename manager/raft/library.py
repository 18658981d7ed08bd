"""The only door to PySyncObj: its fields under readable names, its clock and chance replaced, its version checked.

`Library` is PySyncObj's `SyncObj` without sockets, files, threads, timers or pickles of its own. The classes above it
override single methods of it, each for a reason that stands there. Everything is entered with `now`, so that time is
an argument here too. `verify` runs before the first object is made: the overrides rely on the exact text of private
methods, so a release in which one of these methods reads differently is refused by name instead of misbehaving.
"""

import functools
import hashlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pysyncobj.syncobj
from pysyncobj import SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from typing_extensions import override

from manager.raft import config
from skep import errors, ids

TESTED = ("0.3.17",)
FOLLOWER, CANDIDATE, LEADER = 0, 1, 2

# Digests of the methods that we call or replace, and of those that they call, as they read in the tested release.
DIGESTS = {
    "__init__": "09df12cd7fd7d727",
    "_SyncObj__applyLogEntries": "073db677773b5a2d",
    "_SyncObj__doApplyCommand": "1ea7aa506e950d0a",
    "_SyncObj__onMessageReceived": "ddfe34b6c0282179",
    "_SyncObj__sendNextNodeIdx": "68aaeefc267b8896",
    "_SyncObj__generateRaftTimeout": "92ed37d3620e781a",
    "_SyncObj__onReadonlyNodeConnected": "88ae4a6d87507838",
    "_SyncObj__onReadonlyNodeDisconnected": "9dc1fe5296c63ca7",
    "_SyncObj__onNodeConnected": "2655afb481b4c69b",
    "_SyncObj__onNodeDisconnected": "a81c0475ba2218cc",
    "_SyncObj__getCurrentLogIndex": "e5af22ca246686bd",
    "_SyncObj__getCurrentLogTerm": "1cb8867e6a13d397",
    "_SyncObj__getEntries": "e29c4b33293b2101",
    "_SyncObj__deleteEntriesFrom": "3b23c411bb903d36",
    "_SyncObj__onBecomeLeader": "5a3fd97bc17dc1cf",
    "_SyncObj__setCurrentTerm": "0ad5bf456ac06bd3",
    "_SyncObj__setState": "2c1f239f7bd79b39",
    "_SyncObj__sendAppendEntries": "9cb9073128c392fa",
    "_SyncObj__connectedToAnyone": "acd40e9e3ac6c4cc",
    "_SyncObj__doChangeCluster": "247d4d4101b8cd3c",
    "_SyncObj__loadDumpFile": "ec66e83905de703b",
    "_onTick": "cc9eb08232d005ba",
    "_checkCommandsToApply": "a386a8079361d204",
    "_SyncObj__onLeaderChanged": "53b7685e1d897887",
    "_SyncObj__onSetCodeVersion": "17b050edb193c853",
    "_SyncObj__parseChangeClusterRequest": "b2d5d695b12e592f",
    "_SyncObj__callErrCallback": "6037c14ef64c2763",
    "_applyCommand": "827f207d515b2d64",
}

# The same for every module of which anything runs; the methods above say where in the largest of them.
MODULES = {
    "syncobj": "e8bdf06797085d73",
    "node": "e4a3f027cd8291f5",
    "transport": "0c9d89f9c4781ec9",
    "config": "fbbc7ff9f18e4d15",
    "journal": "9cf1eaf6acc70458",
    "fast_queue": "8477fe5fdf36d976",
    "poller": "f69ac749fb410670",
    "serializer": "4d39fde2f15000ad",
    "dns_resolver": "4b88da2b45e20fbb",
}


class _Moment:
    """The time at which the library is being run. Set on every entry; all cores of a process share the thread."""

    now = 0.0


_moment = _Moment()


def digest(method: str) -> str:
    """A short fingerprint of one method's source text; empty when there is no such method."""
    return _digest_of(getattr(pysyncobj.syncobj.SyncObj, method, None))


def digest_of_module(name: str) -> str:
    """The same for a whole module of the library."""
    return _digest_of(sys.modules.get(f"pysyncobj.{name}"))


@functools.cache  # reading source text takes milliseconds, and every core of a process verifies the same library
def _digest_of(found: Any) -> str:
    return "" if found is None else hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:16]


def verify() -> None:
    """Raises FailedPrecondition, naming what differs, when this PySyncObj is not one we know, and takes its clock."""
    different = [method for method, expected in DIGESTS.items() if digest(method) != expected]
    different += [f"module {name}" for name, expected in MODULES.items() if digest_of_module(name) != expected]
    if not hasattr(pysyncobj.syncobj, "monotonicTime"):
        different.append("monotonicTime")
    if different:
        version = getattr(pysyncobj.syncobj, "VERSION", "unknown")
        raise errors.FailedPrecondition(
            f"PySyncObj {version} differs from the tested {', '.join(TESTED)} in {', '.join(different)}: "
            f"install pysyncobj=={TESTED[-1]}"
        )
    pysyncobj.syncobj.monotonicTime = lambda: _moment.now


class Peer(str, Node):  # type: ignore[misc]  # the library has no types
    """The library's Node, compared and looked up at the speed of strings: that happens dozens of times a message."""

    def __init__(self, node_id: str) -> None:
        Node.__init__(self, node_id)


class SortedNodes(set[Any]):
    """A set of nodes that is iterated in the order of their IDs: hash order would differ from process to process."""

    @override
    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__()))

    @override
    def __or__(self, other: Any) -> "SortedNodes":
        return SortedNodes(super().__or__(other))


class _NoPoller:
    def poll(self, timeout: float) -> None:
        """There are no sockets here."""


class Library(pysyncobj.syncobj.SyncObj):  # type: ignore[misc]  # the library has no types
    """SyncObj, tamed. Subclasses set their own fields before they call this constructor (it looks at all of them)."""

    def __init__(self, *, node_id: str, journal: Any, transport: Transport, rng: ids.Rng, times: config.RaftConfig):
        verify()
        self.node_id = node_id
        self.times = times
        self._rng = rng
        conf = SyncObjConf(
            autoTick=False,
            raftMinTimeout=times.election_min_s,
            raftMaxTimeout=times.election_max_s,
            appendEntriesPeriod=times.heartbeat_s,
            leaderFallbackTimeout=times.election_max_s,
            connectionTimeout=max(times.election_max_s, 3.5),
            dynamicMembershipChange=False,  # ours: configurations are entries without pickles
            commandsQueueSize=1,
            pollerType="select",
            onStateChanged=self._state_changed,
        )
        super().__init__(Peer(node_id), [], conf, nodeClass=Peer, transport=transport)
        self._poller = _NoPoller()
        self._SyncObj__otherNodes = SortedNodes()
        self._SyncObj__readonlyNodes = SortedNodes()
        self._SyncObj__needLoadDumpFile = False
        self._SyncObj__raftLog = journal
        self._SyncObj__raftCurrentTerm = journal.getCurrentTerm()
        self._SyncObj__votedForNodeId = journal.getVotedForNodeId()

    def _enter(self, now: float) -> None:
        """Says what time it is; the first thing in every entry from outside."""
        _moment.now = now

    @property
    def _now(self) -> float:
        return _moment.now

    def _state_changed(self, old: int, new: int) -> None:
        """Called by the library when leading begins or ends."""

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        """An election time-out from our own source of chance."""
        return self._rng.uniform(self.times.election_min_s, self.times.election_max_s)

    # ---------------------------------------------------------------- the library's fields

    @property
    def term(self) -> int:
        """The current term."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def leading(self) -> bool:
        """Whether this node won the last election of its term."""
        return int(self._SyncObj__raftState) == LEADER

    @property
    def leader_id(self) -> str:
        """Who leads as far as this node knows; '' when it knows of nobody."""
        leader: Any = self._SyncObj__raftLeader
        return "" if leader is None else str(leader.id)

    @property
    def commit_index(self) -> int:
        """Everything up to here is on a majority's disks."""
        return int(self._SyncObj__raftCommitIndex)

    def _set_commit_index(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index
        self._SyncObj__raftLog.setRaftCommitIndex(index)

    @property
    def applied_index(self) -> int:
        """Everything up to here has been applied."""
        return int(self._SyncObj__raftLastApplied)

    def _set_applied_index(self, index: int) -> None:
        self._SyncObj__raftLastApplied = index

    @property
    def noop_index(self) -> int:
        """The first entry of the term this node leads (or last led)."""
        return int(self._SyncObj__noopIDx or 0)

    @property
    def _others(self) -> SortedNodes:
        """The other members."""
        return self._SyncObj__otherNodes

    @property
    def _listeners(self) -> SortedNodes:
        """Nodes that get the log and have no vote: newcomers that catch up, removed ones that are being told."""
        return self._SyncObj__readonlyNodes

    @property
    def _connected(self) -> set[Any]:
        found: set[Any] = self._SyncObj__connectedNodes
        return found

    @property
    def _next_index(self) -> dict[Any, int]:
        found: dict[Any, int] = self._SyncObj__raftNextIndex
        return found

    @property
    def _match_index(self) -> dict[Any, int]:
        found: dict[Any, int] = self._SyncObj__raftMatchIndex
        return found

    @property
    def _last_response(self) -> dict[Any, float]:
        found: dict[Any, float] = self._SyncObj__lastResponseTime
        return found

    @property
    def _election_deadline(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    def _put_off_election(self) -> None:
        self._SyncObj__raftElectionDeadline = self._now + self._SyncObj__generateRaftTimeout()

    def _become_follower(self, term: int) -> None:
        """Gives up leading or standing; a higher term forgets the vote and the leader."""
        if term > self.term:
            self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None

    def _base_receive(self, node: Any, message: dict[str, Any]) -> None:
        """The library's own handling of a message."""
        pysyncobj.syncobj.SyncObj._SyncObj__onMessageReceived(self, node, message)

    # ---------------------------------------------------------------- what must never run

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: N802, N803
        raise errors.Bug("raft: the library's own tick was called")

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        raise errors.Bug("raft: the library's own command queue was used")

    def _SyncObj__doChangeCluster(self, request: Any, reverse: Any = None) -> bool:  # noqa: N802
        raise errors.Bug("raft: the library's own membership change was used")

    def _SyncObj__loadDumpFile(self, clearJournal: Any) -> None:  # noqa: N802, N803
        raise errors.Bug("raft: the library's own dump file was used")


@functools.lru_cache(1024)
def new_node(node_id: str) -> Any:
    """The library's name for a peer."""
    return Peer(node_id)
