"""Snapshots: what they are called, and their files (blocks with checksums, sealed one by one, swapped in atomically).

The body is a sequence of length-prefixed pb.SnapshotRecord, cut into blocks of one size so that any block can be read
alone and sent to a follower. Decides neither when a snapshot is taken nor which one counts.
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterable, Iterator

from manager.raft import commands, config, disk, sealing
from skep import pb

PREFIX = "snapshot-"
PARTIAL = ".partial"
MAGIC = b"SKEPSNP1"
_FILE_HEADER = struct.Struct("<8sQQ")  # magic, index, term
_BLOCK_HEADER = struct.Struct("<II")  # length of the sealed block, CRC-32 of it
_CONTINUED = 0x80  # in a varint: another byte follows
_RECORDS_A_PART = 200  # records encoded between two chances for other threads


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What stands for every entry up to `index`. `blocks` is 0 when the state was still empty."""

    index: int
    term: int
    members: commands.Members
    members_index: int
    blocks: int = 0
    digest: int = 0

    def message(self) -> pb.RaftSnapshot:
        """The snapshot's description for the log and the wire."""
        return pb.RaftSnapshot(
            index=self.index,
            term=self.term,
            configuration=commands.configuration(self.members_index, self.members),
            blocks=self.blocks,
            digest=self.digest,
        )

    @classmethod
    def of(cls, message: pb.RaftSnapshot) -> "Snapshot":
        """The inverse of `message`."""
        return cls(
            index=message.index,
            term=message.term,
            members=commands.from_configuration(message.configuration),
            members_index=message.configuration.index,
            blocks=message.blocks,
            digest=message.digest,
        )

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{PREFIX}{self.index:016x}-{self.term:016x}"


# ------------------------------------------------------------------ body


def encode(records: Iterable[pb.SnapshotRecord]) -> Iterator[bytes]:
    """The body, in parts of any size."""
    part = bytearray()
    for count, record in enumerate(records, 1):
        encoded = record.SerializeToString()
        length = len(encoded)
        while length >= _CONTINUED:
            part.append(length & 0x7F | _CONTINUED)
            length >>= 7
        part.append(length)
        part += encoded
        if count % _RECORDS_A_PART == 0:
            yield bytes(part)
            part.clear()
    if part:
        yield bytes(part)


def decode(blocks: Iterable[bytes]) -> Iterator[pb.SnapshotRecord]:
    """The records in a body. Raises ValueError when it ends in the middle of one."""
    buffer = bytearray()
    for block in blocks:
        buffer += block
        position = 0
        while (bounds := _next_record(buffer, position)) is not None:
            start, position = bounds
            yield pb.SnapshotRecord.FromString(bytes(buffer[start:position]))
        del buffer[:position]
    if buffer:
        raise ValueError("the snapshot ends in the middle of a record")


def _next_record(buffer: bytearray, position: int) -> tuple[int, int] | None:
    length = shift = 0
    while position < len(buffer):
        byte = buffer[position]
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < _CONTINUED:
            return (position, position + length) if position + length <= len(buffer) else None
        shift += 7
    return None


def reblock(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of SNAPSHOT_BLOCK_BYTES, the last one shorter."""
    buffer = bytearray()
    for part in parts:
        buffer += part
        while len(buffer) >= config.SNAPSHOT_BLOCK_BYTES:
            yield bytes(buffer[: config.SNAPSHOT_BLOCK_BYTES])
            del buffer[: config.SNAPSHOT_BLOCK_BYTES]
    if buffer:
        yield bytes(buffer)


# ------------------------------------------------------------------ files


def write(target: disk.Disk, seal: sealing.Seal, snapshot: Snapshot, blocks: Iterable[bytes]) -> Snapshot:
    """Makes the file, durably, and returns `snapshot` with the number of blocks and the digest. Blocking."""
    partial = snapshot.name + PARTIAL
    file = target.create(partial)
    count = digest = 0
    try:
        file.write(_FILE_HEADER.pack(MAGIC, snapshot.index, snapshot.term))
        for block in blocks:
            sealed = seal.seal(block, context=_context(snapshot, count))
            file.write(_BLOCK_HEADER.pack(len(sealed), zlib.crc32(sealed)) + sealed)
            digest = zlib.crc32(block, digest)
            count += 1
        file.sync()
    finally:
        file.close()
    target.rename(partial, snapshot.name)
    return dataclasses.replace(snapshot, blocks=count, digest=digest)


class BlockReader:
    """Reads single blocks of a snapshot's file, also after the file was replaced by a newer one."""

    def __init__(self, source: disk.Disk, seal: sealing.Seal, snapshot: Snapshot) -> None:
        """Raises Damaged when the file is missing or is not this snapshot."""
        self.snapshot = snapshot
        self._seal = seal
        self._where = source.where(snapshot.name)
        try:
            self._reader = source.open(snapshot.name)
        except FileNotFoundError:
            raise sealing.damaged(self._where, 0, "the snapshot that the log names is missing") from None
        header = self._reader.read_at(0, _FILE_HEADER.size)
        if header != _FILE_HEADER.pack(MAGIC, snapshot.index, snapshot.term):
            raise sealing.damaged(self._where, 0, "not the snapshot that the log names")

    def block(self, number: int) -> bytes:
        """Block `number`, from 0. Raises Damaged."""
        stride = _BLOCK_HEADER.size + config.SNAPSHOT_BLOCK_BYTES + self._seal.overhead_bytes
        position = _FILE_HEADER.size + number * stride
        raw = self._reader.read_at(position, stride)
        if len(raw) > _BLOCK_HEADER.size:
            length, checksum = _BLOCK_HEADER.unpack_from(raw)
            sealed = raw[_BLOCK_HEADER.size : _BLOCK_HEADER.size + length]
            if len(sealed) == length and zlib.crc32(sealed) == checksum:
                try:
                    return self._seal.open(sealed, context=_context(self.snapshot, number))
                except ValueError:
                    raise sealing.damaged(self._where, position, "block sealed with another key") from None
        raise sealing.damaged(self._where, position, "damaged block")

    def blocks(self) -> Iterator[bytes]:
        """All blocks, checked against the digest at the end. Raises Damaged."""
        digest = 0
        for number in range(self.snapshot.blocks):
            block = self.block(number)
            digest = zlib.crc32(block, digest)
            yield block
        if digest != self.snapshot.digest:
            raise sealing.damaged(self._where, 0, "the snapshot's digest is wrong")

    def close(self) -> None:
        """Gives the file back."""
        self._reader.close()


def _context(snapshot: Snapshot, number: int) -> bytes:
    return f"snapshot {snapshot.index} {snapshot.term} block {number}".encode()
