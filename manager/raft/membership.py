"""Who is in the cluster: the configuration that the log says, newcomers that catch up, removed ones that are told.

Remedies here: the configuration is the newest membership entry of the log, in force from the moment it is written and
after every restart (the library keeps it in memory); a change is one member at a time, after the term's first commit
and the previous change's; newcomers get the log before they get a vote; a leader that removed itself steps down; the
removed learn of it. And addresses: who may connect here and where they are dialled.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from manager.raft import commands, config, library
from manager.raft import journal as journals
from manager.raft import outbox as outboxes
from skep import ids


@dataclasses.dataclass
class Parting:
    """A member that was removed and has not yet been told."""

    addr: str
    index: int  # of the entry that removed it
    until: float | None = None  # loop time; set once the removal is committed


class Membership(library.Library):
    """The lowest layer of the core: configuration and links."""

    def __init__(self, *, node_id: str, journal: journals.Journal, rng: ids.Rng, times: config.RaftConfig) -> None:
        self.journal = journal
        self.outbox = outboxes.Outbox()
        self.removed = False  # told by the cluster that it goes on without this node
        self.learners: dict[str, str] = {}  # newcomers that catch up, with addresses; on the leader only
        self._parting: dict[str, Parting] = {}
        self._heard_of: tuple[int, commands.Members] = (0, {})  # a newer configuration than the log's, from a peer
        self._configured = -1
        super().__init__(node_id=node_id, journal=journal, transport=self.outbox, rng=rng, times=times)

    # ---------------------------------------------------------------- reading

    @property
    def members(self) -> commands.Members:
        """The configuration that counts: the newest in the log."""
        return self.journal.configuration[1]

    @property
    def committed_configuration(self) -> tuple[int, commands.Members]:
        """The newest configuration that cannot be undone any more, and its index."""
        return self.journal.configuration_at(self.commit_index)

    @property
    def peers(self) -> commands.Members:
        """Everybody who is dialled and may connect. A member on its way out still counts until that is committed."""
        known: commands.Members = {}
        if self._heard_of[0] > self.journal.configuration[0]:
            known.update(self._heard_of[1])
        known.update(self.committed_configuration[1])
        known.update({peer: parting.addr for peer, parting in self._parting.items()})
        known.update(self.learners)
        known.update(self.members)
        known.pop(self.node_id, None)
        return known

    @property
    def electable(self) -> bool:
        """Whether this node may stand: a member, or one whose removal may yet be undone and who may be needed."""
        if self.removed:
            return False
        return self.node_id in self.members or self.node_id in self.committed_configuration[1]

    def _is_quorum(self, who: Mapping[str, object]) -> bool:
        """Whether `who` holds a majority of the members. Strangers and leavers count for nothing."""
        members = self.members
        return 2 * sum(1 for member in members if member in who) > len(members)

    # ---------------------------------------------------------------- links

    def link_up(self, now: float, peer: str) -> None:
        """Messages to `peer` can leave from now on."""
        self._enter(now)
        self.outbox.up.add(peer)
        node = library.new_node(peer)
        if node in self._others:
            self._connected.add(node)
        elif self.leading and peer in self.learners:
            self._SyncObj__onReadonlyNodeConnected(node)

    def link_down(self, now: float, peer: str) -> None:
        """Messages to `peer` are lost from now on, and some before may be."""
        self._enter(now)
        self.outbox.up.discard(peer)
        node = library.new_node(peer)
        self._forget_progress(peer)
        if node in self._listeners:
            self._SyncObj__onReadonlyNodeDisconnected(node)
        else:
            self._SyncObj__onNodeDisconnected(node)

    def _forget_progress(self, peer: str) -> None:
        """Drops what is known about messages under way to a peer; the replication layer says what that is."""

    # ---------------------------------------------------------------- changes

    def learn(self, now: float, peer: str, addr: str) -> None:
        """Leader only: begins to feed a newcomer, which has no vote yet."""
        self._enter(now)
        self.learners[peer] = addr
        if peer in self.outbox.up:
            self._SyncObj__onReadonlyNodeConnected(library.new_node(peer))

    def unlearn(self, now: float, peer: str) -> None:
        """Ends feeding a newcomer, unless it has become a member."""
        self._enter(now)
        self.learners.pop(peer, None)
        node = library.new_node(peer)
        if node in self._listeners:
            self._SyncObj__onReadonlyNodeDisconnected(node)

    def progress(self, peer: str) -> int:
        """Leader only: up to which entry a peer is known to have the log; 0 when unknown."""
        return self._match_index.get(library.new_node(peer), 0)

    def _change_allowed(self, members: Mapping[str, str]) -> bool:
        """One change at a time, of one member, and not before this leader has committed something of its term."""
        index, present = self.journal.configuration
        if self.applied_index < self.noop_index or index > self.commit_index:
            return False
        return len(set(members) ^ set(present)) <= 1 and bool(members)

    def _reconfigure(self) -> None:
        """Makes the library's set of other members what the log says. Called after every change of the log."""
        if self._configured == self.journal.configuration_version:
            return
        self._configured = self.journal.configuration_version
        index, members = self.journal.configuration
        if self.node_id in members:
            self.journal.mark_member()
        for node in list(self._others):
            if node.id not in members:
                self._drop_member(node, index)
        for peer in members:
            node = library.new_node(peer)
            if peer != self.node_id and node not in self._others:
                self._take_member(node)

    def _drop_member(self, node: Any, index: int) -> None:
        self._others.discard(node)
        self._connected.discard(node)
        if self.leading and node.id in self.outbox.up:  # it goes on listening until it knows
            _, before = self.journal.configuration_at(index - 1)
            self._parting[node.id] = Parting(before.get(node.id, ""), index)
            self._listeners.add(node)
        else:
            self._next_index.pop(node, None)
            self._match_index.pop(node, None)

    def _take_member(self, node: Any) -> None:
        self._others.add(node)
        self._listeners.discard(node)
        self._parting.pop(node.id, None)
        self.learners.pop(node.id, None)
        self._next_index.setdefault(node, self.journal.last_index + 1)
        self._match_index.setdefault(node, 0)
        self._last_response[node] = self._now
        if node.id in self.outbox.up:
            self._connected.add(node)

    def _clear_listeners(self) -> None:
        """A node that does not lead feeds nobody."""
        for node in list(self._listeners):
            self._listeners.discard(node)
            self._next_index.pop(node, None)
            self._match_index.pop(node, None)
        self._parting.clear()
        self.learners.clear()

    # ---------------------------------------------------------------- telling the removed

    def _part(self) -> None:
        """Leader, every tick: tells removed members, and lets go of them after a while."""
        for peer, parting in list(self._parting.items()):
            if parting.index > self.commit_index:
                continue
            node = library.new_node(peer)
            if parting.until is None:
                parting.until = self._now + self.times.parting_s
                self.outbox.send(
                    node,
                    {"type": "configuration", "term": self.term, "configuration": self.committed_configuration},
                )
            elif self._now >= parting.until or peer not in self.outbox.up:
                del self._parting[peer]
                if node in self._listeners:
                    self._SyncObj__onReadonlyNodeDisconnected(node)

    def hear_of_configuration(self, now: float, index: int, members: Mapping[str, str]) -> None:
        """A peer says that this configuration is committed.

        A newer one serves as an address book, and tells a node that it was removed while it was away. A node that a
        leader is feeding learns such things from the log instead: it may just be on its way back in.
        """
        self._enter(now)
        if self.node_id not in members and self._is_news_of_removal(index, members):
            self.removed = self.removed or not self._content()
        elif index > self._heard_of[0]:
            self._heard_of = index, dict(sorted(members.items()))

    def _is_news_of_removal(self, index: int, members: Mapping[str, str]) -> bool:
        """Whether a committed configuration without this node means that it is no member any more."""
        if not self.journal.member:
            return False
        if self.journal.configuration_at(index) == (index, members):  # it is in our log; is anything later in there?
            return self.journal.configuration[0] == index
        return index > self.committed_configuration[0]

    def _content(self) -> bool:
        """Whether, as far as this node knows, there is a leader that works; the election layer knows."""
        return False
