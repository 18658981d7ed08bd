"""Files of secrets and configs: in memory only, with the owner and mode asked for, gone with their task."""

import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator

import pytest

from agent.runtime import base, vault
from tests.agent.runtime import workloads

MEMORY = pathlib.Path("/dev/shm")


def on_memory() -> bool:
    return vault.filesystem(MEMORY, pathlib.Path("/proc/self/mountinfo").read_text()) in vault.MEMORY


needs_memory = pytest.mark.skipif(not on_memory(), reason="/dev/shm is no tmpfs here")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def place() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield pathlib.Path(directory)


def test_the_longest_mount_point_tells_the_file_system() -> None:
    text = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:5 / /run rw,nosuid - tmpfs tmpfs rw\n"
        "3 2 0:6 / /run/over rw - overlay x rw\n"
        "4 1 0:7 / /with\\040space rw - tmpfs tmpfs rw\n"
        "damaged line\n"
    )
    asked = ("/run", "/run/skep", "/runner", "/run/over/x", "/with space/y")
    assert [vault.filesystem(pathlib.Path(each), text) for each in asked] == [
        "tmpfs", "tmpfs", "ext4", "overlay", "tmpfs",
    ]  # fmt: skip


def test_a_disk_is_refused(tmp_path: pathlib.Path) -> None:
    if vault.filesystem(tmp_path, pathlib.Path("/proc/self/mountinfo").read_text()) in vault.MEMORY:
        pytest.skip("temporary files are in memory here")
    made = vault.Vault(node_id="n1", candidates=[tmp_path])
    with pytest.raises(base.TaskFatal, match="may only be kept in memory"):
        made.write("t1", [workloads.file("a", b"hush")], names=["0"])
    assert list(tmp_path.iterdir()) == []


@needs_memory
def test_files_live_as_long_as_their_task(place: pathlib.Path) -> None:
    made = vault.Vault(node_id="n1", candidates=[place])
    assert made.tasks() == []
    uid = os.geteuid()
    files = [workloads.file("a", b"one", mode=0o440, uid=uid, gid=os.getegid()), workloads.file("b", b"two")]
    kept = made.write("t1", files, names=["0", "deep/er/1"])
    assert [(kept / "0").read_bytes(), (kept / "deep/er/1").read_bytes()] == [b"one", b"two"]
    assert stat.S_IMODE((kept / "0").stat().st_mode) == 0o440
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert made.tasks() == ["t1"]
    again = made.write("t1", files[:1], names=["0"])  # an agent that died half way starts over
    assert os.listdir(again) == ["0"]
    assert vault.Vault(node_id="n2", candidates=[place]).tasks() == []
    made.drop("t1")
    made.drop("t1")
    assert list(place.iterdir()) == []


@needs_memory
@needs_root
def test_owners(place: pathlib.Path) -> None:
    made = vault.Vault(node_id="n1", candidates=[place])
    files = [workloads.file("a", b"x", uid=1, gid=2, mode=0o4640)]
    kept = made.write("t1", files, names=["s/a"], directory_owner=(7, 8))
    found = (kept / "s/a").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1, 2, 0o4640)
    assert {(each.stat().st_uid, each.stat().st_gid) for each in (kept, kept / "s")} == {(7, 8)}


@needs_memory
def test_a_directory_that_others_prepared_is_not_used(place: pathlib.Path) -> None:
    (place / f"skep-files-{os.geteuid()}").symlink_to("/tmp")
    made = vault.Vault(node_id="n1", candidates=[place])
    with pytest.raises(base.TaskFatal, match="not a directory of ours"):
        made.write("t1", [workloads.file("a", b"hush")], names=["0"])


def test_payloads_are_not_in_reprs() -> None:
    assert "hush" not in repr(workloads.workload("x", files=(workloads.file("a", b"hush"),)))
