"""The numbers of the consensus layer, each with its reason. Holds no state."""

import dataclasses

from skep import errors

KIB = 1024
MIB = 1024 * KIB

TRANSACTION_BYTES_MAX = MIB  # Docker's own limit on one object is 500 kB; a plan of many tasks is split above us
BATCH_BYTES_MAX = MIB  # one entry; two of them stay below gRPC's default message limit of 4 MiB
BATCH_TRANSACTIONS_MAX = 2_000  # one entry; bounds how long applying one entry holds the event loop
WAITING_BYTES_MAX = 32 * MIB  # proposals not yet in the log; beyond it callers get Unavailable
WAITING_TRANSACTIONS_MAX = 20_000
UNCOMMITTED_BYTES_MAX = 8 * MIB  # entries in the log that wait for a majority; beyond it no new entry is formed
KEEP_BYTES_MAX = 8 * MIB  # entries kept behind a snapshot: they are written anew, which holds up the log
KEEP_SHARE = 4  # .. and no more than this part of the bytes after which there is a snapshot
APPLY_SLICE_BYTES = 128 * KIB  # applied before others get their turn, about 20 ms; a single larger entry goes at once
APPLY_ENTRIES_MAX = 256  # the same for small entries
APPEND_BYTES_MAX = MIB  # entries in one message; a single larger entry travels alone
IN_FLIGHT_BYTES_MAX = 8 * MIB  # sent to one follower and not yet acknowledged
IN_FLIGHT_ENTRIES_MAX = 4_096
SNAPSHOT_BLOCK_BYTES = 256 * KIB
SNAPSHOT_WINDOW_BLOCKS = 4  # blocks under way to one follower: 1 MiB
INBOX_FRAMES_MAX = 10_000  # received and not yet handled; more are dropped, as a network would
ROUND_FRAMES_MAX = 200  # handled before the core is ticked again
READERS_MAX = 20_000  # waiting for a read barrier


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaftConfig:
    """Time-outs and thresholds. The defaults suit machines in one region; raise the times for slow links."""

    heartbeat_s: float = 0.1
    election_min_s: float = 0.5  # also how long a follower trusts the leader it last heard from
    election_max_s: float = 1.0  # also how long a leader goes on without a majority's answers
    snapshot_entries: int = 10_000  # a snapshot is taken after this many applied entries ..
    snapshot_bytes: int = 32 * MIB  # .. or as soon as the entries in the log would grow larger than this
    keep_entries: int = 1_000  # left in the log behind a snapshot, for followers that are a little behind
    catch_up_timeout_s: float = 60.0  # a new member that has not caught up by then is refused
    change_timeout_s: float = 10.0  # membership changes and transfers of leadership
    parting_s: float = 5.0  # how long a removed member is told that it was removed
    transfer_stalled_s: float = 30.0  # a snapshot of which a follower takes nothing more is given up, for as long again
    transfer_storing_s: float = 300.0  # the same once it has all of it, and stores and decodes

    @property
    def keep_bytes(self) -> int:
        """What the entries left in the log behind a snapshot may weigh."""
        return min(KEEP_BYTES_MAX, self.snapshot_bytes // KEEP_SHARE)

    def __post_init__(self) -> None:
        """Raises Invalid for times that cannot work together."""
        if not 0 < 3 * self.heartbeat_s < self.election_min_s < self.election_max_s:
            raise errors.Invalid("raft: need 3 * heartbeat_s < election_min_s < election_max_s")
        if self.snapshot_entries < 1 or self.keep_entries < 0 or self.snapshot_bytes < 1:
            raise errors.Invalid("raft: snapshot thresholds must be positive")
