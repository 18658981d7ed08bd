"""What this package needs of the managers' Raft group."""

from typing import Protocol

from skep import errors


class Group(Protocol):
    """Leadership and membership. Raft's node is one; tests have their own."""

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads."""
        ...

    @property
    def leader_id(self) -> str:
        """Node ID of the leader, empty while there is none."""
        ...

    def members(self) -> dict[str, str]:
        """Cluster address (host:port) by node ID of all members."""
        ...

    async def add_member(self, node_id: str, addr: str) -> None:
        """Makes a node a member, or changes a member's address; returns once that is committed.

        Raises FailedPrecondition while another change is under way, Unavailable when the node does not answer or this
        manager does not lead.
        """
        ...

    async def remove_member(self, node_id: str) -> None:
        """Takes a node out of the group; returns once that is committed.

        Raises FailedPrecondition when the group would lose its quorum or another change is under way, Unavailable when
        this manager does not lead.
        """
        ...

    async def transfer_leadership(self) -> None:
        """Hands the lead to the member that is furthest. Raises Unavailable when none takes it."""
        ...


NO_LEADER = (
    "The swarm does not have a leader. It's possible that too few managers are online. "
    "Make sure more than half of the managers are online."
)


def leader_addr(group: Group) -> str:
    """The leader's cluster address. Raises Unavailable while none is known."""
    addr = group.members().get(group.leader_id, "") if group.leader_id else ""
    if not addr:
        raise errors.Unavailable(NO_LEADER)
    return addr
