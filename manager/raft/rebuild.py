"""One survivor goes on alone: its stopped log is rewritten to a group of one, for a quorum that is lost for good.

Everything in the log is kept, also what this manager does not know to be committed: it may have been acknowledged, and
an entry that was not does no harm, for its proposer was told that the outcome is unknown. The change is one record,
written durably or not at all. Nobody may have the log open meanwhile. Blocking.
"""

import dataclasses

from manager.raft import commands, ops
from manager.raft import log as logs
from skep import errors


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """What the survivor had."""

    last_index: int  # of the log that it goes on with
    others: commands.Members  # who was a member before


def make_alone(log: logs.Log, *, node_id: str, addr: str) -> Rebuilt:
    """Makes `node_id` at `addr` the only member. Loads `log` and leaves it open: close it.

    Raises FailedPrecondition when there is nothing to go on with, Damaged or OSError as the log does.
    """
    state = log.load()
    members = _members(state) if state is not None else {}
    if state is None or not members:
        raise errors.FailedPrecondition(
            "this manager's log holds no cluster: it was never caught up. Rebuild from another manager"
        )
    last_index = state.head.index + len(state.entries)
    term = state.hard.term + 1
    entry = (commands.membership({node_id: addr}), last_index + 1, term)
    # The vote in the new term is this node's own: it stands for election as soon as it starts, and nobody else can.
    log.write([ops.Put(entry), dataclasses.replace(state.hard, term=term, vote=node_id)])
    others = {member: at for member, at in members.items() if member != node_id}
    return Rebuilt(last_index=last_index, others=others)


def _members(state: ops.State) -> commands.Members:
    members = state.snapshot.members
    for entry in state.entries:
        if commands.is_membership(entry[0]):
            members = commands.members_of(entry[0])
    return members
