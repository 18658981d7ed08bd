"""The local record: what was written is there again, also after kill -9; damage does not stop the agent."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from agent.tasks import record
from skep import pb
from tests.agent import joined

WRITER = """
import sys
from agent.tasks import record
from tests.agent import joined
from skep import pb
kept = record.Record(sys.argv[1])
kept.save_node(pb.Node(id="n1"))
kept.save_description(pb.NodeDescription(resources=pb.Resources(memory_bytes=7)))
kept.save_revision(joined.revision())
for number in range(200):
    task = joined.task(f"t{number:03}", "n1")
    kept.save_task(task, task.status)
    kept.save_status(task.id, pb.TaskStatus(state=pb.TASK_STATE_RUNNING, message="started"))
print("written", flush=True)
sys.stdin.read()
"""


def test_it_survives_kill_9(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tasks.db"
    root = pathlib.Path(__file__).parents[3]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    again = record.Record(path)
    known = again.tasks()
    assert [each.task.id for each in known] == [f"t{number:03}" for number in range(200)]
    assert all(each.status.message == "started" for each in known)
    assert known[0].task == joined.task("t000", "n1")
    assert again.revisions() == {"r1": joined.revision()}
    assert again.node() == pb.Node(id="n1")
    assert again.description() == pb.NodeDescription(resources=pb.Resources(memory_bytes=7))
    again.close()


def test_a_change_that_fails_leaves_nothing_behind() -> None:
    kept = record.Record(record.IN_MEMORY)
    task = joined.task("t1", "n1")

    def interrupted() -> None:
        with kept.changing():
            kept.save_task(task, task.status)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert kept.tasks() == []
    kept.close()


def test_dropping(tmp_path: pathlib.Path) -> None:
    kept = record.Record(tmp_path / "tasks.db")
    task = joined.task("t1", "n1")
    kept.save_task(task, task.status)
    kept.save_revision(joined.revision())
    kept.drop_task("t1")
    kept.drop_revisions(["r1"])
    kept.save_status("t1", pb.TaskStatus(state=pb.TASK_STATE_RUNNING))
    assert (kept.tasks(), kept.revisions(), kept.node()) == ([], {}, None)
    kept.close()


@pytest.mark.parametrize("damage", [b"this is no database at all, and never was one" * 100, b"SQLite format 3\0" * 512])
def test_a_damaged_file_is_put_aside(tmp_path: pathlib.Path, damage: bytes) -> None:
    path = tmp_path / "tasks.db"
    path.write_bytes(damage)
    kept = record.Record(path)
    assert kept.tasks() == []
    kept.close()
    assert (tmp_path / "tasks.db.damaged").read_bytes() == damage


def test_only_the_owner_may_read_it(tmp_path: pathlib.Path) -> None:
    record.Record(tmp_path / "tasks.db").close()
    assert (tmp_path / "tasks.db").stat().st_mode & 0o077 == 0
