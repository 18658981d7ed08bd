"""Addresses that users leave out, and what a machine remembers about its place."""

import pathlib

import pytest

from skep import errors
from skep.daemon import settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", ("10.0.0.1", 2377)),
        ("10.0.0.1:99", ("10.0.0.1", 99)),
        ("host.example:99", ("host.example", 99)),
        ("[::1]:99", ("::1", 99)),
        ("[::1]", ("::1", 2377)),
        ("fe80::1", ("fe80::1", 2377)),
    ],
)
def test_addresses_are_read(text: str, expected: tuple[str, int]) -> None:
    assert settings.split_addr(text, default_port=2377) == expected


@pytest.mark.parametrize("text", ["", ":99", "host:", "host:0", "host:65536", "host:http", "[::1", "[::1]99"])
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(errors.Invalid, match="invalid address"):
        settings.split_addr(text, default_port=2377)


def test_an_ipv6_address_gets_brackets() -> None:
    assert settings.join_addr("::1", 5) == "[::1]:5"
    assert settings.join_addr("h", 5) == "h:5"


def test_the_advertised_address_follows_the_listening_one() -> None:
    place = settings.choose_addresses(listen_addr="127.0.0.1:7000", advertise_addr="")
    assert (place.listen_addr, place.advertise_addr) == ("127.0.0.1:7000", "127.0.0.1:7000")
    place = settings.choose_addresses(listen_addr="", advertise_addr="10.1.1.1")
    assert (place.listen_addr, place.advertise_addr) == ("0.0.0.0:2377", "10.1.1.1:2377")


def test_a_wildcard_cannot_be_advertised() -> None:
    with pytest.raises(errors.Invalid, match="other machines can dial"):
        settings.choose_addresses(listen_addr="", advertise_addr="0.0.0.0")


def test_the_place_in_the_cluster_is_remembered(tmp_path: pathlib.Path) -> None:
    place = settings.Membership(listen_addr="a:1", advertise_addr="b:2", members={"n": "c:3"})
    place.save(tmp_path / "node.json")
    assert settings.Membership.load(tmp_path / "node.json") == place
    (tmp_path / "node.json").write_text("{}")
    with pytest.raises(errors.Bug, match="join again"):
        settings.Membership.load(tmp_path / "node.json")


def test_generic_resources_are_numbers_or_names() -> None:
    found = settings.generic_resources(["gpu=GPU-1,gpu=GPU-2", "ssd=3"])
    assert [(each.named.kind, each.named.value) for each in found[:2]] == [("gpu", "GPU-1"), ("gpu", "GPU-2")]
    assert (found[2].discrete.kind, found[2].discrete.value) == ("ssd", 3)
    for wrong in ("gpu", "=2", "gpu=", "gpu=1,gpu=GPU-1", "gpu=GPU-1,gpu=1", "gpu=1,gpu=2"):
        with pytest.raises(errors.Invalid, match="generic resource"):
            settings.generic_resources([wrong])
