"""The commands that reach into tasks: what they ask for, and what they make of the answers."""

import io
import json
import os
import pathlib
import pty
import re
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Generator, Iterator

import pytest
from typing_extensions import override

from skep import client, errors
from skep.cli import cp, main, port_forward, service_logs, stats
from tests.skep.cli import fake_skepd, objects

Capsys = pytest.CaptureFixture[str]
Skepd = fake_skepd.FakeSkepd
A, B = "a" * 25, "b" * 25


def entry(task_id: str, at: int, line: str, *, origin: str = "") -> bytes:
    more = f",io.skep.origin={origin}" if origin else ""
    payload = f"2026-01-02T03:04:05.{at:09}Z com.docker.swarm.task.id={task_id}{more} {line}\n".encode()
    return b"\1\0\0\0" + len(payload).to_bytes(4, "big") + payload


class Breaking(client.Client):
    """Answers with one list of frames after the other; all but the last break off."""

    def __init__(self, answers: list[bytes]) -> None:
        clock = fake_skepd.FakeClock()
        super().__init__("unix:///nowhere", wall=clock, pause=clock.pause)
        self.answers = answers
        self.queries: list[dict[str, str]] = []

    @override
    def stream(self, path: str, query: client.Query | None = None) -> Generator[bytes, None, None]:
        self.queries.append(dict(query or {}))
        answer = self.answers.pop(0)
        yield answer
        if self.answers:
            raise client._Interrupted("broke off")


def texts(lines: Iterator[service_logs.Line]) -> list[str]:
    return [line.text.decode().strip() for line in lines]


def test_logs_go_on_where_they_broke_off_with_nothing_twice() -> None:
    first = entry(A, 1, "a1") + entry(B, 5, "b1") + entry(A, 7, "a2") + entry(A, 7, "a3 at the same moment")
    again = (
        entry(B, 5, "b1") + entry(A, 7, "a2") + entry(A, 7, "a3 at the same moment") + entry(A, 7, "a4 there too")
        + entry(B, 9, "b2")
    )  # fmt: skip
    connection = Breaking([first, again, entry(A, 7, "a4 there too") + entry(B, 9, "b2") + entry(A, 10, "a5")])
    found = texts(iter(service_logs.Lines(connection, "/services/web/logs", {"tail": "2", "follow": "1"})))
    assert found[:4] == ["a1", "b1", "a2", "a3 at the same moment"]
    assert found[4:] == ["a4 there too", "b2", "a5"] or found[4:6] == ["a4 there too", "b2"]
    assert [query["tail"] for query in connection.queries] == ["2", "all", "all"]
    assert float(connection.queries[1]["since"]) <= 1767323045.000000005


def test_what_managers_say_of_a_task_is_no_line_of_it() -> None:
    away = entry(A, 900, "skep: node n1 is not available", origin="skep")
    first = entry(A, 1, "a1") + entry(A, 7, "a2") + away
    second = away + entry(A, 7, "a2") + entry(A, 8, "a3")
    third = entry(A, 8, "a3") + away + entry(A, 9, "a4")
    connection = Breaking([first, second, third, entry(A, 9, "a4")])
    found = texts(iter(service_logs.Lines(connection, "/services/web/logs", {"follow": "1"})))
    said = "skep: node n1 is not available"
    assert found == ["a1", "a2", said, "a3", said, "a4"]
    assert all(float(query["since"]) < 1767323045.00001 for query in connection.queries[1:])


def test_the_kept_last_words_of_a_dead_task_come_once() -> None:
    kept = entry(B, 900, "last", origin="kept") + entry(B, 900, "last", origin="kept")
    connection = Breaking([entry(A, 1, "a1"), entry(A, 1, "a1") + kept, kept + entry(A, 2, "a2")])
    found = texts(iter(service_logs.Lines(connection, "/services/web/logs", {"follow": "1"})))
    assert found == ["a1", "last", "last", "a2"]


def test_logs_that_never_come_back_fail_in_the_end() -> None:
    connection = Breaking([b""] * 1000)
    with pytest.raises(errors.Unavailable, match="broke off"):
        texts(iter(service_logs.Lines(connection, "/services/web/logs", {})))
    assert 10 < len(connection.queries) < 200


def test_task_logs_ask_for_the_task_in_the_slot(skepd: Skepd, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    skepd.tasks = [objects.task(1)]
    found = skepd.tasks[0]
    skepd.routes["GET", "/skep/v1/tasks/web.1"] = lambda request: (200, found)
    path = f"/tasks/{found['ID']}/logs"
    skepd.routes["GET", path] = lambda request: (200, entry(found["ID"], 1, "hello"))
    assert skepd.run("task", "logs", "--raw", "web.1") == 0
    assert capfdbinary.readouterr().out == b"hello\n"
    assert skepd.run("task", "logs", "--raw", "--timestamps", "web.1") == 0
    assert capfdbinary.readouterr().out == b"2026-01-02T03:04:05.000000001Z hello\n"


def test_which_end_of_a_copy_is_in_a_task() -> None:
    assert cp.place("web.1:/etc/hosts") == cp.Place("web.1", "/etc/hosts")
    assert cp.place("web:data:x") == cp.Place("web", "data:x")
    assert cp.place("./a:b") == cp.Place("", "./a:b")
    assert cp.place("/a:b") == cp.Place("", "/a:b")
    assert cp.place("-") == cp.Place("", "-")


def test_archives_are_packed_renamed_and_never_leave_the_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/file").write_text("hello")
    packed = b"".join(cp.packed(lambda tar: tar.add(tmp_path / "from", arcname="from")))
    (tmp_path / "to").mkdir()
    assert cp.unpack(cp._Reader(iter([packed[:700], packed[700:]])), str(tmp_path / "to"), name="other") == 5
    assert (tmp_path / "to/other/file").read_text() == "hello"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../escaped"))
    with pytest.raises(errors.FailedPrecondition, match="outside"):
        cp.unpack(cp._Reader(iter([buffer.getvalue()])), str(tmp_path / "to"), name="")
    assert not (tmp_path / "escaped").exists()
    with pytest.raises(errors.FailedPrecondition, match="cannot read what was to be copied"):
        list(cp.packed(lambda tar: tar.add(tmp_path / "missing")))


def test_copies_need_exactly_one_task(skepd: Skepd, capsys: Capsys) -> None:
    for ends in (("a", "b"), ("web.1:/a", "web.2:/b")):
        assert skepd.run("cp", *ends) == 1
        assert "one of the two must be in a task" in capsys.readouterr().err


def test_ports_as_people_write_them() -> None:
    assert [port_forward.ports(given) for given in ("8080:80", "80", "0:80")] == [(8080, 80), (80, 80), (0, 80)]
    for wrong in ("", "x", "80:", ":80", "1:0", "70000:1", "1:2:3", "-1:80"):
        with pytest.raises(ValueError, match="not LOCAL:REMOTE"):
            port_forward.ports(wrong)


def figures(**changes: object) -> dict[str, object]:
    return {
        "TaskID": A, "Name": "web.1", "NodeID": "n1", "NanoCPUs": 125_000_000, "MemoryBytes": 50_000_000,
        "MemoryLimitBytes": 200_000_000, "Pids": 3, "ReceivedBytes": -1, "SentBytes": -1, "ReadBytes": 4096,
        "WrittenBytes": 0, **changes,
    }  # fmt: skip


def test_figures_as_a_row() -> None:
    made = stats.row(figures(), {"n1": "host1"})
    assert (made["Name"], made["Node"], made["CPUPerc"], made["MemPerc"]) == ("web.1", "host1", "12.50%", "25.00%")
    assert (made["NetIO"], made["PIDs"]) == ("--", "3")
    assert stats.row(figures(MemoryLimitBytes=0), {})["MemPerc"] == "--"
    gone = stats.row({"TaskID": A, "Name": "web.1", "NodeID": "n1", "Error": "node n1 is not available"}, {})
    assert (gone["CPUPerc"], gone["MemUsage"]) == ("--", "node n1 is not available")


def test_stats_once_and_as_lines(skepd: Skepd, capsys: Capsys) -> None:
    skepd.services = [objects.service("web")]
    raw = "".join(json.dumps(figures(Name=name, TaskID=name * 5)) + "\n" for name in ("web.2", "web.1")).encode()
    skepd.routes["GET", "/skep/v1/stats"] = lambda request: (200, raw)
    assert skepd.run("stats", "--no-stream", "web") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "web.1", "web.2"]
    assert skepd.run("top", "web", "--format", "{{.Name}} {{.CPUPerc}}") == 0
    assert capsys.readouterr().out == "web.2 12.50%\nweb.1 12.50%\n"
    assert skepd.run("stats", "nope") == 1


def stream(*rows: dict[str, object]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in rows).encode()


def frames(printed: str) -> list[list[str]]:
    """What stood in the table each time it was drawn in place of the one before: the first words of its rows."""
    drawn = re.split(r"\x1b\[2K(?:\x1b\[1A\x1b\[2K)+|\r(?=\x1b\[2K)", printed)
    lines = [[re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split() for line in each.splitlines()] for each in drawn]
    return [[" ".join([row[0], row[2]]) for row in each if row and row[0].startswith("web.")] for each in lines]


class Watched:
    """Figures that come as a test says, to a terminal whose drawings it sees."""

    def __init__(self, skepd: Skepd, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = skepd.clock
        self.printed = ""
        self._capsys = capsys
        self._script: list[tuple[float, list[dict[str, object]], list[str]]] = []
        monkeypatch.setattr(stats, "_figures", lambda *_, **__: self._play())
        monkeypatch.setattr(stats, "DRAW_S", 0.02)

    def then(self, after_s: float, *rows: dict[str, object], until: list[str]) -> None:
        """After so many seconds these figures come, and no others before the table is `until`."""
        self._script.append((after_s, list(rows), until))

    def _play(self) -> Iterator[dict[str, object]]:
        for after_s, rows, wanted in self._script:
            self.clock.pause(after_s)
            yield from rows
            end = time.monotonic() + 10
            while self.drawn() != wanted:
                assert time.monotonic() < end, f"{wanted} was not drawn, but {self.drawn()}"
                time.sleep(0.01)

    def drawn(self) -> list[str]:
        self.printed += self._capsys.readouterr().out
        return frames(self.printed)[-1]


def test_figures_live_on_a_terminal(skepd: Skepd, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in place and in order, all that came together; who falls silent goes, though nobody else says anything."""
    watched = Watched(skepd, capsys, monkeypatch)
    other = figures(Name="web.2", TaskID=B)
    watched.then(0, other, figures(), until=["web.1 12.50%", "web.2 12.50%"])
    watched.then(6, figures(NanoCPUs=500_000_000), until=["web.1 50.00%", "web.2 12.50%"])
    watched.then(6, until=["web.1 50.00%"])
    watched.then(6, until=[])
    watched.then(0, other, until=["web.2 12.50%"])
    assert skepd.run("stats", terminal=True) == 0
    assert watched.drawn() == ["web.2 12.50%"]  # and that is what stays


def test_figures_on_a_real_terminal(skepd: Skepd) -> None:
    """The command itself, which finds out that it has one, and leaves it as it was."""
    skepd.routes["GET", "/skep/v1/stats"] = lambda request: (200, stream(figures(), figures(Name="web.2", TaskID=B)))
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, 120))
        command = [sys.executable, "-m", "skep", "--host", skepd.host, "top"]
        environment = {**os.environ, "TERM": "xterm"}
        ended = subprocess.run(command, check=False, stdout=theirs, stderr=theirs, env=environment, timeout=30)
        os.set_blocking(ours, False)
        printed = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == 0, printed
    assert "NAME" in printed
    assert [each for each in frames(printed) if each][-1] == ["web.1 12.50%", "web.2 12.50%"]
    assert printed.rstrip().endswith("\x1b[?25h")  # the cursor is there again


def test_a_terminal_is_only_given_where_there_is_one(skepd: Skepd, capsys: Capsys) -> None:
    assert skepd.run("exec", "-e", "=x", "web.1", "ls") == 1
    assert "write KEY=VALUE" in capsys.readouterr().err
    assert skepd.run("exec", "web.1") == 1


def test_names_of_running_tasks_are_completed(skepd: Skepd, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    skepd.services = [objects.service("web")]
    skepd.tasks = [objects.task(slot) for slot in (1, 2, 10)]

    def complete(*words: str) -> list[str]:
        monkeypatch.setenv("SKEP_HOST", skepd.host)
        monkeypatch.setenv("COMP_WORDS", " ".join(["skep", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_SKEP_COMPLETE", "bash_complete")
        with pytest.raises(SystemExit):
            main.cli.main(args=[], prog_name="skep")
        return capsys.readouterr().out.split()

    assert complete("exec", "we") == ["plain,web.1", "plain,web.2", "plain,web.10"]
    assert complete("task", "logs", "web.1") == ["plain,web.1", "plain,web.10"]
    assert complete("port-forward", "web.1", "8") == []
    assert complete("cp", "web.2") == ["plain,web.2:/", "file,web.2"]
    assert complete("cp", "./") == ["file,./"]
