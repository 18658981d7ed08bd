"""An identity on disk: modes, what fits together, crashes in the middle of a replacement."""

import os
import pathlib
import stat

import pytest

from skep import errors, pb
from skep.security import files, keys
from skep.security import identity as identities

NOW = 1_800_000_000.0
DAY_S = 86_400.0
ROOT = keys.new_root(now=NOW)


def make(root: keys.Root = ROOT, *, now: float = NOW) -> identities.Identity:
    key_pem = keys.new_key()
    cert_pem = keys.sign_node(
        keys.new_csr(key_pem), root=root, node_id="node1", cluster_id="c1", role=pb.NODE_ROLE_MANAGER, now=now
    )
    return keys.verified(key_pem=key_pem, cert_pem=cert_pem, root_pem=root.cert_pem, now=now)


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_saved_is_loaded_and_private(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "state" / "identity"
    assert files.load(directory, now=NOW) is None
    identity = make()
    before = os.umask(0)
    try:
        files.save(directory, identity)
    finally:
        os.umask(before)
    assert files.load(directory, now=NOW) == identity
    assert mode(directory) == 0o700
    assert mode(directory / "node.key") == 0o600
    assert sorted(path.name for path in directory.iterdir()) == ["node.crt", "node.key", "root-ca.crt"]

    fresh = make()
    directory.chmod(0o755)
    files.save(directory, fresh)
    assert files.load(directory, now=NOW) == fresh
    assert mode(directory) == 0o700

    files.remove(directory)
    files.remove(directory)
    assert files.load(directory, now=NOW) is None


def test_expired_identity_says_how_to_replace_it(tmp_path: pathlib.Path) -> None:
    files.save(tmp_path, make())
    with pytest.raises(errors.Denied) as caught:
        files.load(tmp_path, now=NOW + 91 * DAY_S)
    assert caught.value.message == (
        "Swarm certificates have expired. To replace them, leave the cluster and join again."
    )


def test_a_certificate_of_another_authority_is_refused(tmp_path: pathlib.Path) -> None:
    files.save(tmp_path, make())
    (tmp_path / "root-ca.crt").write_bytes(keys.new_root(now=NOW).cert_pem)
    with pytest.raises(errors.Denied, match=f"the identity in {tmp_path} cannot be used: .* not issued by"):
        files.load(tmp_path, now=NOW)


def test_a_missing_part_is_named(tmp_path: pathlib.Path) -> None:
    files.save(tmp_path, make())
    (tmp_path / "node.crt").unlink()
    with pytest.raises(errors.Denied, match=r"node\.crt is missing"):
        files.load(tmp_path, now=NOW)


def test_a_key_that_others_can_read_is_refused(tmp_path: pathlib.Path) -> None:
    files.save(tmp_path, make())
    (tmp_path / "node.key").chmod(0o640)
    with pytest.raises(errors.Denied, match="chmod 600"):
        files.load(tmp_path, now=NOW)


def test_a_first_save_that_was_torn_counts_as_none(tmp_path: pathlib.Path) -> None:
    identity = make()
    (tmp_path / "root-ca.crt.new").write_bytes(identity.root_pem)
    (tmp_path / "node.crt.new").write_bytes(identity.cert_pem)
    (tmp_path / "node.key.new").write_bytes(b"")
    assert files.load(tmp_path, now=NOW) is None


class Crash(BaseException):
    """The machine lost its power."""


@pytest.mark.parametrize("crash_at", range(12))
@pytest.mark.parametrize("first", [True, False])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_identity(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *, crash_at: int, first: bool
) -> None:
    old, fresh = make(), make()
    if not first:
        files.save(tmp_path, old)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps > crash_at:
            raise Crash

    real_fsync, real_replace = os.fsync, pathlib.Path.replace

    def fsync(descriptor: int) -> None:
        step()
        real_fsync(descriptor)

    def replace(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        step()
        return real_replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        patched.setattr(pathlib.Path, "replace", replace)
        try:
            files.save(tmp_path, fresh)
            finished = True
        except Crash:
            finished = False
    found = files.load(tmp_path, now=NOW)
    assert found in ((fresh,) if finished else (None if first else old, fresh))
    files.save(tmp_path, old)  # whatever lies about does not stand in the way of the next
    assert files.load(tmp_path, now=NOW) == old
