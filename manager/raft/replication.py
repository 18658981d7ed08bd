"""The log from leader to followers: what is sent, what a follower takes, what counts as committed.

Remedies here, each in the function that carries it out: answers name their term and those of other terms are dropped
(`_on_reply`); a matching suffix is never cut, committed entries never at all (`_on_append`); the commit index moves
only over what this leader has verified (`_header`); old snapshots are refused (`_on_block`); a divergent tail is
skipped term by term (`_conflict`); a leader counts its own copy only once that is on its disk (`_advance_commit`);
what is in flight is bounded, and snapshots travel in acknowledged blocks (`_send_entries`, `_send_blocks`). A follower
that takes nothing of its snapshot for long does not keep the log from being compacted (`transfers`).
"""

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from manager.raft import commands, config, membership, messages, snapshot, transfers
from manager.raft import journal as journals
from skep import errors, ids


class Replication(membership.Membership):
    """The middle layer of the core."""

    def __init__(
        self,
        *,
        node_id: str,
        journal: journals.Journal,
        rng: ids.Rng,
        times: config.RaftConfig,
        open_snapshot: transfers.Open,
    ) -> None:
        self._transfers = transfers.Transfers(
            open_snapshot,
            patience_s=times.election_max_s,
            stalled_s=times.transfer_stalled_s,
            storing_s=times.transfer_storing_s,
        )
        self._windows: dict[str, transfers.Window] = {}
        self._incoming: tuple[str, snapshot.Snapshot, list[bytes]] | None = None
        self._installing: tuple[Any, snapshot.Snapshot] | None = None  # from whom; being stored and decoded
        self._leader_heard_at = 0.0
        self._round = 0  # of read barriers, as leader
        self._echo = 0  # the leader's round, as follower
        self._rounds: dict[str, int] = {}  # newest round each follower has answered
        self._unsent = False  # something is new in the log and was not yet sent
        self.news = False  # the commit index has moved and nobody was told yet: due with the next tick
        super().__init__(node_id=node_id, journal=journal, rng=rng, times=times)

    # ---------------------------------------------------------------- hooks of the layers above

    def _begin_install(self, taken: snapshot.Snapshot, blocks: Sequence[bytes]) -> None:
        raise NotImplementedError

    def _abandon_election(self) -> None:
        raise NotImplementedError

    # ---------------------------------------------------------------- sending

    @override
    def _forget_progress(self, peer: str) -> None:
        self._transfers.cancel(peer)
        self._windows.pop(peer, None)

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """To everybody in reach: what they lack, or a sign of life. Called by the library, too."""
        self._SyncObj__newAppendEntriesTime = self._now + self.times.heartbeat_s
        self._unsent = self.news = False
        self._transfers.expire(self._now)
        for node in (*self._others, *self._listeners):
            if node.id not in self.outbox.up:
                continue
            if self._next_index[node] <= self.journal.first_index:
                sent = self._send_blocks(node)
            else:
                sent = self._send_entries(node)
            if not sent:
                self._send_append(node, min(self._next_index[node], self.journal.last_index + 1) - 1, [])

    def _send_append(self, node: Any, prev_index: int, entries: list[commands.Entry]) -> None:
        prev_index = max(prev_index, self.journal.first_index)
        message: messages.Message = {
            "type": "append_entries",
            "term": self.term,
            "commit_index": self.commit_index,
            "round": self._round,
            "entries": entries,
            "prevLogIdx": prev_index,
            "prevLogTerm": self.journal.term_at(prev_index),
        }
        self.outbox.send(node, message)

    def _send_entries(self, node: Any) -> bool:
        """Sends what fits the follower's window, in messages of bounded size; False when there is nothing to send."""
        journal = self.journal
        window = self._windows.setdefault(node.id, transfers.Window())
        index = min(self._next_index[node], journal.last_index + 1)
        limit = min(journal.last_index, self._match_index[node] + config.IN_FLIGHT_ENTRIES_MAX)
        if self._match_index[node] == 0:  # nothing verified yet: the window counts from where we try
            limit = min(journal.last_index, index + config.IN_FLIGHT_ENTRIES_MAX)
        sent = False
        while index <= limit and window.size_bytes < config.IN_FLIGHT_BYTES_MAX:
            entries: list[commands.Entry] = []
            size_bytes = 0
            while index + len(entries) <= limit:
                entry = journal.entries[index + len(entries) - journal.first_index]
                if entries and size_bytes + len(entry[0]) > config.APPEND_BYTES_MAX:
                    break
                entries.append(entry)
                size_bytes += len(entry[0])
            self._send_append(node, index - 1, entries)
            index += len(entries)
            window.sent(index - 1, size_bytes)
            sent = True
        self._next_index[node] = index
        return sent

    def _send_blocks(self, node: Any) -> bool:
        """Sends blocks of the snapshot to a follower that needs entries we no longer have."""
        sent = False
        while (part := self._transfers.next_block(node.id, self.journal.snapshot, self._now)) is not None:
            taken, number, data = part
            message: messages.Message = {
                "type": "install_snapshot",
                "term": self.term,
                "commit_index": self.commit_index,
                "round": self._round,
                "snapshot": taken,
                "number": number,
                "data": data,
            }
            self.outbox.send(node, message)
            sent = True
        return sent

    # ---------------------------------------------------------------- answers

    def _SyncObj__sendNextNodeIdx(  # noqa: N802
        self,
        node: Any,
        reset: Any = None,
        nextNodeIdx: int | None = None,  # noqa: N803
        success: Any = None,
        acknowledged: tuple[int, int] | None = None,
    ) -> None:
        """A follower's answer, with its term, the leader's round and the progress of a snapshot. The library's name."""
        message: messages.Message = {
            "type": "next_node_idx",
            "term": self.term,
            "next_node_idx": self.journal.last_index + 1 if nextNodeIdx is None else nextNodeIdx,
            "reset": bool(reset),
            "success": bool(success),
            "round": self._echo,
            "snapshot": acknowledged,
        }
        self.outbox.send(node, message)

    _answer = _SyncObj__sendNextNodeIdx

    def _on_reply(self, node: Any, message: messages.Message) -> None:
        """An answer to this leader. The library would take one that was meant for an earlier term."""
        if message["term"] > self.term:
            self._become_follower(message["term"])
            return
        if message["term"] != self.term or not self.leading or node not in self._match_index:
            return
        self._last_response[node] = self._now
        self._rounds[node.id] = max(self._rounds.get(node.id, 0), message["round"])
        if message["snapshot"] is not None:
            index, blocks = message["snapshot"]
            self._transfers.acknowledge(node.id, index, blocks, self._now)
            self._unsent = True  # the next blocks
        matched = message["next_node_idx"] - 1
        if not journals.FIRST_INDEX <= matched <= self.journal.last_index:
            matched = min(max(matched, journals.FIRST_INDEX), self.journal.last_index)
            message["success"] = False
        if message["success"]:
            self._match_index[node] = max(self._match_index[node], matched)
            self._next_index[node] = max(self._next_index[node], matched + 1)
            self._windows.setdefault(node.id, transfers.Window()).acknowledged(matched)
            if matched >= self.journal.first_index:
                self._transfers.cancel(node.id)
        elif message["reset"]:
            # Also below what it had once acknowledged: then it has lost that, and must no longer be counted for it.
            self._match_index[node] = min(self._match_index[node], matched)
            self._next_index[node] = matched + 1
            self._windows.pop(node.id, None)
        if self.journal.first_index < self._next_index[node] <= self.journal.last_index:
            self._unsent = True  # blocks of a snapshot follow their acknowledgements instead

    def _advance_commit(self) -> None:
        """Commits what a majority has on disk. The library counts its own copy before it is there.

        Followers hear of it one tick later: whoever was waiting often has the next proposal, and one message carries
        both.
        """
        have = sorted(
            self.journal.durable_index if peer == self.node_id else self.progress(peer) for peer in self.members
        )
        if not have:
            return
        agreed = have[(len(have) - 1) // 2]
        if agreed > self.commit_index and self.journal.term_at(agreed) == self.term:
            self._set_commit_index(agreed)
            self.news = True

    # ---------------------------------------------------------------- receiving

    def _header(self, node: Any, message: messages.Message, *, commit: int) -> None:
        """What every message of a rightful leader brings about; `commit` covers only what was verified."""
        self._base_receive(node, {"type": "append_entries", "term": message["term"], "commit_index": commit})

    def _from_leader(self, node: Any, message: messages.Message) -> bool:
        """Whether a leader's message counts. One of an old term is told the new one."""
        if message["term"] < self.term:
            self._answer(node)
            return False
        if self.leading and message["term"] == self.term:
            raise errors.Bug(f"raft: {node.id} and this manager both lead in term {self.term}")
        self._leader_heard_at = self._now
        self._echo = message["round"]
        self._abandon_election()
        return True

    def _on_append(self, node: Any, message: messages.Message) -> None:
        if not self._from_leader(node, message):
            return
        journal = self.journal
        first, last = journal.first_index, journal.last_index
        prev, entries = message["prevLogIdx"], message["entries"]
        prev_term = message["prevLogTerm"]
        if prev < first:  # what we no longer keep is committed: it matches
            entries = [entry for entry in entries if entry[1] > first]
            if not entries:
                self._header(node, message, commit=0)
                self._answer(node, nextNodeIdx=first + 1, success=True)
                return
            prev, prev_term = first, journal.entries[0][2]
        if prev > last:
            self._header(node, message, commit=0)
            self._answer(node, nextNodeIdx=last + 1, reset=True)
            return
        if journal.term_at(prev) != prev_term:
            self._header(node, message, commit=0)
            self._answer(node, nextNodeIdx=self._conflict(prev), reset=True)
            return
        known = 0
        while known < len(entries) and journal.term_at(entries[known][1]) == entries[known][2]:
            known += 1
        if known == len(entries):  # nothing new: whatever else is in our log stays
            matched = entries[-1][1] if entries else prev
            self._header(node, message, commit=min(message["commit_index"], matched))
            self._answer(node, nextNodeIdx=matched + 1, success=True)
            return
        at = entries[known][1]
        rest = {"prevLogIdx": at - 1, "prevLogTerm": journal.term_at(at - 1), "entries": entries[known:]}
        self._base_receive(node, {**message, **rest})
        self._reconfigure()

    def _conflict(self, prev: int) -> int:
        """Where the leader should try next: before the run of entries of the term that does not fit."""
        floor = max(self.commit_index, self.journal.first_index)
        if prev <= floor:
            raise errors.Bug(f"raft: the leader's log differs from ours at {prev}, and {floor} is committed here")
        term = self.journal.term_at(prev)
        while prev - 1 > floor and self.journal.term_at(prev - 1) == term:
            prev -= 1
        return prev

    def _on_block(self, node: Any, message: messages.Message) -> None:
        if not self._from_leader(node, message):
            return
        self._header(node, message, commit=0)
        taken, number = message["snapshot"], message["number"]
        if taken.index <= self.applied_index:  # old news: we have all of it
            self._answer(node, nextNodeIdx=taken.index + 1, success=True, acknowledged=(taken.index, taken.blocks))
            return
        if self._installing is not None:  # a sign of life; what else comes is sent again when this is done
            known = self._installing[1] == taken
            self._answer(node, acknowledged=(taken.index, taken.blocks) if known else None)
            return
        if number == 0:
            self._incoming = (node.id, taken, [])
        if self._incoming is None or self._incoming[:2] != (node.id, taken):
            self._answer(node, acknowledged=(taken.index, 0))
            return
        blocks = self._incoming[2]
        if number == len(blocks):
            blocks.append(message["data"])
        self._answer(node, acknowledged=(taken.index, len(blocks)))
        if len(blocks) == taken.blocks:
            self._incoming = None
            self._installing = (node, taken)
            self._begin_install(taken, blocks)
