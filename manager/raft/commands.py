"""What an entry of the log says: one byte of kind, as PySyncObj has it, and a protobuf body. Never a pickle."""

from collections.abc import Mapping

from skep import pb

REGULAR = b"\x00"  # body: pb.Batch
NOOP = b"\x01"  # no body
MEMBERSHIP = b"\x02"  # body: pb.RaftConfiguration

Entry = tuple[bytes, int, int]  # command, index, term: the library's order
Members = dict[str, str]  # node ID -> address, sorted by ID


def regular(body: bytes) -> bytes:
    """A command that carries an encoded pb.Batch."""
    return REGULAR + body


def membership(members: Mapping[str, str]) -> bytes:
    """A command that makes `members` the configuration."""
    return MEMBERSHIP + configuration(0, members).SerializeToString()


def is_membership(command: bytes) -> bool:
    """Whether a command sets the configuration."""
    return command[:1] == MEMBERSHIP


def members_of(command: bytes) -> Members:
    """The configuration that a membership command sets."""
    return from_configuration(pb.RaftConfiguration.FromString(command[1:]))


def configuration(index: int, members: Mapping[str, str]) -> pb.RaftConfiguration:
    """`members` as a message, always in the same order."""
    listed = [pb.RaftMember(node_id=node_id, addr=addr) for node_id, addr in sorted(members.items())]
    return pb.RaftConfiguration(index=index, members=listed)


def from_configuration(message: pb.RaftConfiguration) -> Members:
    """The members in `message`, sorted by ID."""
    return {member.node_id: member.addr for member in sorted(message.members, key=lambda member: member.node_id)}
