"""The command's start: quick, light, and clear about wrong usage."""

import os
import pathlib
import subprocess
import sys

import pytest

from skep.cli import app, main
from tests.skep.cli import fake_skepd, objects

HEAVY = ("grpc", "aiohttp", "google.protobuf", "cryptography", "structlog", "rich", "http.client", "asyncio")


def loaded_by(*arguments: str) -> list[str]:
    code = (
        "import sys; from skep.cli import main; main.run(sys.argv[1:]); "
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    line = next(line for line in done.stderr.splitlines() if line.startswith("LOADED"))
    return [str(name) for name in line.removeprefix("LOADED ").strip("[]").replace("'", "").split(", ") if name]


def test_help_imports_nothing_heavy() -> None:
    assert loaded_by("--help") == []
    assert loaded_by("service", "--help") == []


def test_a_command_imports_only_the_http_client(tmp_path: pathlib.Path) -> None:
    assert loaded_by("--host", f"unix://{tmp_path}/none", "service", "ls") == ["http.client"]


@pytest.mark.parametrize("name", [name for name, entry in main.ENTRIES.items() if not entry.optional])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert "Usage: skep" in capsys.readouterr().out


@pytest.mark.parametrize("noun", ["service", "node"])
def test_every_verb_has_help_and_examples(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([noun, "--help"]) == 0
    verbs = [line.split()[0] for line in capsys.readouterr().out.partition("Commands:")[2].splitlines() if line.strip()]
    assert len(verbs) >= 9
    for verb in verbs:
        assert main.run([noun, verb, "--help"]) == 0
        assert "Examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frob"], "'frob' is not a command"),
        (["servce"], "Did you mean 'service'"),
        (["--frob"], "--frob"),
        (["service", "ls", "--frob"], "--frob"),
        (["service", "ps"], "SERVICE"),
        (["--host", "tcp://x:1", "service", "ls"], "unix:///path"),
        (["completion", "cmd.exe"], "cmd.exe"),
    ],
)
def test_wrong_usage_is_named_and_exits_1(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert said in err


def test_no_daemon_is_one_clear_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--host", f"unix://{tmp_path}/none.sock", "node", "ls"], state=app.App()) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "is it running?" in err


def test_the_host_comes_from_the_environment(
    skepd: fake_skepd.FakeSkepd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKEP_HOST", skepd.host)
    assert main.run(["node", "ls", "-q"]) == 0
    assert capsys.readouterr().out == objects.identifier("noden1") + "\n"


def complete(skepd_host: str, words: str) -> list[str]:
    environment = {
        **os.environ,
        "_SKEP_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "SKEP_HOST": skepd_host,
    }
    done = subprocess.run([sys.executable, "-m", "skep"], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_completion_knows_commands_flags_and_names(skepd: fake_skepd.FakeSkepd, tmp_path: pathlib.Path) -> None:
    skepd.services = [objects.service("web"), objects.service("api")]
    assert complete(skepd.host, "skep service sc") == ["scale"]
    assert complete(skepd.host, "skep service ps ") == ["api", "web"]
    assert complete(skepd.host, "skep service scale w") == ["web="]
    assert complete(skepd.host, "skep node drain ") == ["n1", "self"]
    assert "--replicas" in complete(skepd.host, "skep service create --repl")
    assert complete(f"unix://{tmp_path}/none", "skep service ps ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    assert "_SKEP_COMPLETE" in capsys.readouterr().out


def test_a_closed_pipe_is_no_traceback(skepd: fake_skepd.FakeSkepd) -> None:
    skepd.services = [objects.service(f"service-{number}") for number in range(3000)]
    command = f"{sys.executable} -m skep -H {skepd.host} service ls | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("ID ")
