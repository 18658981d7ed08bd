"""Snapshots on their way to followers, and messages in flight. Bookkeeping only; the replication layer sends."""

import collections
import dataclasses
from collections.abc import Callable

from manager.raft import config, snapshot

Block = tuple[snapshot.Snapshot, int, bytes]  # part of what, number, content
Open = Callable[[snapshot.Snapshot], snapshot.BlockReader]


@dataclasses.dataclass
class _Transfer:
    reader: snapshot.BlockReader
    progressed_at: float
    advanced_at: float  # when it last had more than ever before
    sent: int = 0
    acknowledged: int = 0
    most: int = 0  # that was ever acknowledged


class Transfers:
    """One running transfer a follower: a window of blocks, moved by acknowledgements."""

    def __init__(self, opener: Open, *, patience_s: float, stalled_s: float, storing_s: float) -> None:
        self._open = opener
        self._patience_s = patience_s  # without an acknowledgement for so long, blocks are sent again
        self._stalled_s = stalled_s  # without any advance for so long, the transfer is given up
        self._storing_s = storing_s  # the same for one of which everything has arrived
        self._running: dict[str, _Transfer] = {}
        self._resting: dict[str, float] = {}  # followers whose transfer was given up: when the next may begin

    def next_block(self, peer: str, latest: snapshot.Snapshot, now: float) -> Block | None:
        """The next block to send to `peer`; None while the window is full or everything is sent."""
        if now < self._resting.get(peer, now):
            return None
        transfer = self._running.get(peer)
        if transfer is None:
            transfer = self._running[peer] = _Transfer(self._open(latest), now, now)
        if transfer.sent > transfer.acknowledged and now - transfer.progressed_at > self._patience_s:
            transfer.sent, transfer.progressed_at = transfer.acknowledged, now
        part_of = transfer.reader.snapshot
        if transfer.sent >= part_of.blocks or transfer.sent - transfer.acknowledged >= config.SNAPSHOT_WINDOW_BLOCKS:
            return None
        number = transfer.sent
        transfer.sent += 1
        return part_of, number, transfer.reader.block(number)

    def acknowledge(self, peer: str, index: int, blocks: int, now: float) -> None:
        """`peer` has the first `blocks` blocks of the snapshot at `index`."""
        transfer = self._running.get(peer)
        if transfer is None or transfer.reader.snapshot.index != index:
            return
        if blocks > transfer.acknowledged:
            transfer.acknowledged, transfer.progressed_at = min(blocks, transfer.sent), now
            if transfer.acknowledged > transfer.most:
                transfer.most, transfer.advanced_at = transfer.acknowledged, now
        elif blocks < transfer.acknowledged:  # it has started over
            transfer.sent = transfer.acknowledged = blocks
            transfer.progressed_at = now

    def expire(self, now: float) -> None:
        """Gives up what has stalled: as long as it runs, the log behind its snapshot is kept. It may begin anew later.

        A follower that starts over again and again gets nowhere either: what counts is what it never had before.
        """
        for peer, transfer in list(self._running.items()):
            complete = transfer.acknowledged >= transfer.reader.snapshot.blocks
            if now - transfer.advanced_at > (self._storing_s if complete else self._stalled_s):
                self.cancel(peer)
                self._resting[peer] = now + self._stalled_s

    def cancel(self, peer: str) -> None:
        """Ends the transfer to `peer`, if there is one."""
        self._resting.pop(peer, None)
        transfer = self._running.pop(peer, None)
        if transfer is not None:
            transfer.reader.close()

    def clear(self) -> None:
        """Ends all transfers."""
        for peer in list(self._running):
            self.cancel(peer)
        self._resting.clear()

    def floor(self) -> int | None:
        """The log must be kept from behind this index on, for those who are getting a snapshot; None: no need."""
        return min((transfer.reader.snapshot.index for transfer in self._running.values()), default=None)


class Window:
    """How much has been sent to one follower and not been acknowledged."""

    def __init__(self) -> None:
        self._messages: collections.deque[tuple[int, int]] = collections.deque()  # last index, bytes
        self.size_bytes = 0

    def sent(self, last_index: int, size_bytes: int) -> None:
        """A message with entries up to `last_index` was sent."""
        self._messages.append((last_index, size_bytes))
        self.size_bytes += size_bytes

    def acknowledged(self, index: int) -> None:
        """Everything up to `index` has arrived."""
        while self._messages and self._messages[0][0] <= index:
            self.size_bytes -= self._messages.popleft()[1]

    def reset(self) -> None:
        """Whatever was under way is lost."""
        self._messages.clear()
        self.size_bytes = 0
