"""skep secret and skep config against the fake skepd."""

import base64
import pathlib
from typing import Any

import pytest

from tests.skep.cli import fake_skepd

SHOWN: dict[str, Any] = {
    "ID": "c1", "Version": {"Index": 1}, "CreatedAt": "2024-01-01T00:00:00Z", "UpdatedAt": "2024-01-01T00:00:00Z",
    "Spec": {"Name": "app", "Labels": {"a": "b"}, "Data": base64.b64encode(b"x=1").decode()},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["secret", "config"])
def test_create_sends_the_files_bytes(
    skepd: fake_skepd.FakeSkepd, kind: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"\x00hush\xff")
    skepd.routes["POST", f"/{kind}s/create"] = lambda _: (201, {"ID": "new1"})
    assert skepd.run(kind, "create", "--label", "a=b", "--template-driver", "golang", "db", str(file)) == 0
    assert capsys.readouterr().out == "new1\n"
    (request,) = skepd.sent("POST", f"/{kind}s/create")
    assert base64.b64decode(request.body.pop("Data")) == b"\x00hush\xff"
    assert request.body == {"Name": "db", "Labels": {"a": "b"}, "Templating": {"Name": "golang"}}
    assert skepd.run(kind, "create", "db", str(tmp_path / "nope")) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_ls_and_inspect(skepd: fake_skepd.FakeSkepd, capsys: pytest.CaptureFixture[str]) -> None:
    skepd.routes["GET", "/configs"] = lambda _: (200, [SHOWN])
    skepd.routes["GET", "/configs/app"] = lambda _: (200, SHOWN)
    skepd.routes["GET", "/configs/nope"] = lambda _: (404, {"message": "config nope not found"})
    assert skepd.run("config", "ls", "--filter", "name=app") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ID", "NAME", "CREATED", "UPDATED"]
    assert lines[1].startswith("c1")
    assert skepd.requests[-1].filters == {"name": {"app": True}}
    assert skepd.run("config", "inspect", "--pretty", "app") == 0
    assert capsys.readouterr().out.endswith("Data:\nx=1\n")
    assert skepd.run("config", "inspect", "nope") == 1
    assert "no such config: nope; 'skep config ls' shows them" in capsys.readouterr().err


def test_rm_goes_on_after_a_refusal(skepd: fake_skepd.FakeSkepd, capsys: pytest.CaptureFixture[str]) -> None:
    in_use = "secret 'a' is in use by the following service: web"
    skepd.routes["DELETE", "/secrets/a"] = lambda _: (400, {"message": in_use})
    skepd.routes["DELETE", "/secrets/b"] = lambda _: (204, None)
    assert skepd.run("secret", "rm", "a", "b") == 1
    shown = capsys.readouterr()
    assert shown.out == "b\n"
    assert in_use in shown.err
