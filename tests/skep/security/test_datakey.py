"""The data key on disk: it opens with the identity on disk at every step of a renewal, and with no other."""

import pathlib
import stat

import hypothesis
import pytest
from hypothesis import strategies

from manager.raft import disk, ops, sealing
from manager.raft import log as logs
from skep import errors, ids, pb
from skep.security import datakey, files, keys
from skep.security import identity as identities

NOW = 1_800_000_000.0
ROOT = keys.new_root(now=NOW)
RNG = ids.system_rng()


def make(node_id: str = "n1") -> identities.Identity:
    key_pem = keys.new_key()
    cert_pem = keys.sign_node(
        keys.new_csr(key_pem), root=ROOT, node_id=node_id, cluster_id="c1", role=pb.NODE_ROLE_MANAGER, now=NOW
    )
    return keys.verified(key_pem=key_pem, cert_pem=cert_pem, root_pem=ROOT.cert_pem, now=NOW)


OLD, NEW = make(), make()


def on_disk(directory: pathlib.Path) -> bytes | None:
    """What a skepd that starts now would get."""
    identity = files.load(directory, now=NOW)
    assert identity is not None
    return datakey.load(directory, identity)


def test_every_step_of_a_renewal_leaves_a_key_that_opens(tmp_path: pathlib.Path) -> None:
    files.save(tmp_path, OLD)
    key = datakey.make(tmp_path, OLD, rng=RNG)
    assert on_disk(tmp_path) == key
    datakey.rewrap(tmp_path, old=OLD, new=NEW, rng=RNG)
    assert on_disk(tmp_path) == key  # a crash here: still the old identity
    files.save(tmp_path, NEW)
    assert on_disk(tmp_path) == key  # a crash here: the new one, and the old wrapping is still there
    datakey.settle(tmp_path, NEW, rng=RNG)
    assert on_disk(tmp_path) == key
    with pytest.raises(errors.Denied, match="another identity"):
        datakey.load(tmp_path, OLD)


def test_a_crash_between_the_moves_of_the_new_identity(tmp_path: pathlib.Path) -> None:
    files.save(tmp_path, OLD)
    key = datakey.make(tmp_path, OLD, rng=RNG)
    datakey.rewrap(tmp_path, old=OLD, new=NEW, rng=RNG)
    for name, content in ((files.ROOT_FILE, NEW.root_pem), (files.KEY_FILE, NEW.key_pem)):
        files._write(tmp_path / (name + ".new"), content, mode=0o600)
    (tmp_path / files.CERT_FILE).write_bytes(NEW.cert_pem)
    assert on_disk(tmp_path) == key


def test_the_file_is_the_owners_and_holds_no_key_in_clear(tmp_path: pathlib.Path) -> None:
    key = datakey.make(tmp_path, OLD, rng=RNG)
    path = tmp_path / datakey.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in path.read_bytes()
    assert key.hex() not in repr(datakey.RecordSeal(key, RNG))


def test_no_file_foreign_and_damaged_files(tmp_path: pathlib.Path) -> None:
    assert datakey.load(tmp_path, OLD) is None
    datakey.rewrap(tmp_path, old=OLD, new=NEW, rng=RNG)
    datakey.settle(tmp_path, OLD, rng=RNG)
    assert not (tmp_path / datakey.FILE).exists()
    datakey.make(tmp_path, OLD, rng=RNG)
    with pytest.raises(errors.Denied, match="belongs to another identity"):
        datakey.load(tmp_path, make("n2"))
    for damage in (b"", b"{}", b'{"format": 9, "wrappings": []}', b"\xff\x00"):
        (tmp_path / datakey.FILE).write_bytes(damage)
        with pytest.raises(errors.Denied, match=r"data\.key cannot be read"):
            datakey.load(tmp_path, OLD)
    datakey.remove(tmp_path)
    assert datakey.load(tmp_path, OLD) is None


@hypothesis.given(data=strategies.binary(max_size=2000), flip=strategies.integers(min_value=0))
def test_a_seal_opens_what_it_sealed_and_nothing_else(data: bytes, flip: int) -> None:
    seal = datakey.RecordSeal(b"k" * 32, RNG)
    sealed = seal.seal(data, context=b"here")
    assert len(sealed) == len(data) + seal.overhead_bytes
    assert seal.open(sealed, context=b"here") == data
    assert sealed != seal.seal(data, context=b"here")
    damaged = bytearray(sealed)
    damaged[flip % len(sealed)] ^= 1
    for other, context, content in (
        (seal, b"there", sealed),
        (datakey.RecordSeal(b"K" * 32, RNG), b"here", sealed),
        (seal, b"here", bytes(damaged)),
        (seal, b"here", sealed[:-1]),
        (seal, b"here", b""),
    ):
        with pytest.raises(ValueError, match=r"sealed|short"):
            other.open(content, context=context)


def test_a_sealed_log_comes_back_with_its_key_only_and_shows_nothing(tmp_path: pathlib.Path) -> None:
    def opened(key: bytes) -> logs.DurableLog:
        return logs.DurableLog(disk.OsDisk(tmp_path), datakey.RecordSeal(key, RNG))

    first = opened(b"k" * 32)
    assert first.load() is None
    first.write([ops.Head(1, 0), ops.Put((b"\x00a secret of the user", 2, 1)), ops.Hard(1, "", 1)])
    first.close()
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())
    again = opened(b"k" * 32)
    state = again.load()
    again.close()
    assert state is not None
    assert state.entries == [(b"\x00a secret of the user", 2, 1)]
    foreign = opened(b"x" * 32)
    with pytest.raises(sealing.Damaged, match=r"log-0+\d: record sealed with another key at byte 16"):
        foreign.load()
