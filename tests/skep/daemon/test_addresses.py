"""What becomes of a machine's addresses when it is given new ones."""

import pytest

from skep import errors
from skep.daemon import settings


@pytest.mark.parametrize(
    ("listen", "advertise", "new_listen", "new_advertise", "expected"),
    [
        ("0.0.0.0:2377", "10.0.0.1:2377", "", "", ("0.0.0.0:2377", "10.0.0.1:2377")),
        ("0.0.0.0:2377", "10.0.0.1:2377", "", "10.0.0.9", ("0.0.0.0:2377", "10.0.0.9:2377")),
        ("0.0.0.0:2377", "10.0.0.1:2377", "", "10.0.0.9:3000", ("0.0.0.0:3000", "10.0.0.9:3000")),
        ("10.0.0.1:2377", "10.0.0.1:2377", "", "10.0.0.9", ("10.0.0.9:2377", "10.0.0.9:2377")),
        ("10.0.0.1:2377", "1.2.3.4:4000", "", "1.2.3.5", ("10.0.0.1:2377", "1.2.3.5:4000")),  # behind NAT
        ("10.0.0.1:2377", "1.2.3.4:4000", "10.0.0.2", "", ("10.0.0.2:2377", "1.2.3.4:4000")),
        ("0.0.0.0:2377", "10.0.0.1:2377", "0.0.0.0:5000", "10.0.0.1:5000", ("0.0.0.0:5000", "10.0.0.1:5000")),
        ("[::]:2377", "[fd00::1]:2377", "", "[fd00::2]", ("[::]:2377", "[fd00::2]:2377")),
    ],
)
def test_moved(listen: str, advertise: str, new_listen: str, new_advertise: str, expected: tuple[str, str]) -> None:
    place = settings.Membership(listen_addr=listen, advertise_addr=advertise, members={"n": "a:1"})
    now = settings.moved(place, listen_addr=new_listen, advertise_addr=new_advertise)
    assert (now.listen_addr, now.advertise_addr) == expected
    assert now.members == place.members


def test_a_wildcard_cannot_be_advertised() -> None:
    place = settings.Membership(listen_addr="0.0.0.0:2377", advertise_addr="10.0.0.1:2377")
    with pytest.raises(errors.Invalid, match="must be one that other machines can dial"):
        settings.moved(place, listen_addr="", advertise_addr="0.0.0.0")
