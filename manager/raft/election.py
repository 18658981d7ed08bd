"""Who leads: standing, voting, stepping down, handing over.

Remedies here: one vote per member and from members only (the library counts messages); a pre-vote, and loyalty to a
leader that was heard from, so that a node that was cut off cannot depose a healthy leader; a leader without a
majority's answers steps down within an election time-out; a higher term in any answer ends leading; a transfer of
leadership is an election that the leader itself asked for. A node that knows no configuration does not vote: it may
have lost its disk.
"""

import math
from typing import Any

from typing_extensions import override

from manager.raft import config, library, messages, replication, transfers
from manager.raft import journal as journals
from skep import ids


class Election(replication.Replication):
    """The upper layer of the core."""

    def __init__(
        self,
        *,
        node_id: str,
        journal: journals.Journal,
        rng: ids.Rng,
        times: config.RaftConfig,
        open_snapshot: transfers.Open,
    ) -> None:
        self._granted: dict[str, None] = {}  # votes of the running election
        self._pregranted: dict[str, None] | None = None  # promises of the running pre-vote
        self._called_in: int | None = None  # the term whose leader asked this node to stand at once
        super().__init__(node_id=node_id, journal=journal, rng=rng, times=times, open_snapshot=open_snapshot)

    # ---------------------------------------------------------------- state

    @override
    def _content(self) -> bool:
        if self.leading:
            return self._is_quorum(self._responsive(self.times.election_min_s))
        return bool(self.leader_id) and self._now - self._leader_heard_at < self.times.election_min_s

    def sure_to_lead(self, now: float) -> bool:
        """Whether a majority has answered this leader so lately that it would elect nobody else yet."""
        return self.leading and self._is_quorum(self._responsive(self.times.election_min_s, now))

    def leader_heard_ago_s(self, now: float) -> float | None:
        """Seconds since a leader was heard of; None when none was since the start."""
        return max(0.0, now - self._leader_heard_at) if self._leader_heard_at else None

    def _responsive(self, within_s: float, now: float | None = None) -> dict[str, None]:
        """Leader only: itself and the members that have answered lately."""
        at = self._now if now is None else now
        alive = {node.id: None for node in self._others if at - self._last_response.get(node, -math.inf) < within_s}
        alive[self.node_id] = None
        return alive

    @override
    def _abandon_election(self) -> None:
        # Whatever else a leader says, it may have asked this node to take over: that holds until its term ends.
        self._pregranted = None

    def _check_quorum(self) -> None:
        """A leader that a majority no longer answers stops leading; it could only give false hope."""
        if not self._is_quorum(self._responsive(self.times.election_max_s)):
            self._become_follower(self.term)
            self._put_off_election()

    # ---------------------------------------------------------------- standing

    def _maybe_stand(self) -> None:
        """Every tick of one that does not lead."""
        if self._called_in == self.term and self.electable:
            self._stand(forced=True)
            return
        if self._election_deadline > self._now:
            return
        self._put_off_election()
        if not self.electable:
            return
        self._SyncObj__raftLeader = None
        self._pregranted = {self.node_id: None}
        request: messages.Message = {
            "type": "pre_vote",
            "term": self.term + 1,
            "last_log_index": self.journal.last_index,
            "last_log_term": self.journal.last_term,
            "configuration_index": self.journal.configuration[0],
        }
        for node in self._others:
            self.outbox.send(node, dict(request))
        if self._is_quorum(self._pregranted):
            self._stand(forced=False)

    def _stand(self, *, forced: bool) -> None:
        self._abandon_election()
        self._called_in = None
        self._put_off_election()
        self._SyncObj__raftLeader = None
        self._SyncObj__setState(library.CANDIDATE)
        self._SyncObj__setCurrentTerm(self.term + 1, self.node_id)
        self._granted = {self.node_id: None}
        request: messages.Message = {
            "type": "request_vote",
            "term": self.term,
            "last_log_index": self.journal.last_index,
            "last_log_term": self.journal.last_term,
            "forced": forced,
        }
        for node in self._others:
            self.outbox.send(node, dict(request))
        if self._is_quorum(self._granted):
            self._lead()

    def _lead(self) -> None:
        self._granted = {}
        self._rounds = {}
        self._windows = {}
        self._incoming = None
        self._transfers.clear()
        self._SyncObj__onBecomeLeader()  # adds the term's first entry and sends it

    # ---------------------------------------------------------------- voting

    def _on_pre_vote(self, node: Any, message: messages.Message) -> None:
        journal = self.journal
        up_to_date = (message["last_log_term"], message["last_log_index"]) >= (journal.last_term, journal.last_index)
        granted = message["term"] > self.term and up_to_date and not self._content()
        index, members = self.committed_configuration
        reply: messages.Message = {
            "type": "pre_vote_reply",
            "term": message["term"],
            "current_term": self.term,
            "granted": granted and bool(self.members),
            "configuration": (index, members) if index > message["configuration_index"] else None,
        }
        self.outbox.send(node, reply)

    def _on_pre_vote_reply(self, node: Any, message: messages.Message) -> None:
        if message["configuration"] is not None:
            self.hear_of_configuration(self._now, *message["configuration"])
        if message["current_term"] > self.term:
            self._become_follower(message["current_term"])
            self._abandon_election()
        elif message["granted"] and message["term"] == self.term + 1 and self._pregranted is not None:
            if node in self._others:
                self._pregranted[node.id] = None
            if self._is_quorum(self._pregranted) and self.electable:
                self._stand(forced=False)

    def _on_request_vote(self, node: Any, message: messages.Message) -> None:
        if not self.members:
            return
        if message["term"] > self.term and not message["forced"] and self._content():
            return
        if message["term"] > self.term:
            self._abandon_election()
        self._base_receive(node, message)

    def _on_vote(self, node: Any, message: messages.Message) -> None:
        if message["term"] != self.term or self._SyncObj__raftState != library.CANDIDATE or node not in self._others:
            return
        self._granted[node.id] = None
        if self._is_quorum(self._granted):
            self._lead()

    # ---------------------------------------------------------------- handing over

    def hand_over(self, now: float, peer: str) -> bool:
        """Leader only: asks a member that has the whole log to stand at once. False when it has not, yet."""
        self._enter(now)
        if not self.leading or peer not in self.members or peer not in self.outbox.up:
            return False
        if self.progress(peer) != self.journal.last_index:
            return False
        self.outbox.send(library.new_node(peer), {"type": "timeout_now", "term": self.term})
        return True

    def successor(self) -> str:
        """Leader only: the member best placed to take over; '' when none answers."""
        alive = self._responsive(self.times.election_min_s)
        candidates = [(self.progress(peer), peer) for peer in self.members if peer in alive and peer != self.node_id]
        return max(candidates)[1] if candidates else ""

    def _on_timeout_now(self, node: Any, message: messages.Message) -> None:
        if message["term"] == self.term and not self.leading and node.id == self.leader_id:
            self._called_in = self.term
