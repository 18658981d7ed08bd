"""Names of objects and references to them. Pure."""

import re

from skep import errors, ids

NAME_CHARS_MAX = 63  # a DNS label
IMAGE_NAME_CHARS_MAX = 255  # of a repository, without tag and digest

_DNS_NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*")
_DOMAIN = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_DOMAIN}(?:\.{_DOMAIN})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?P<name>(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?",
    re.ASCII,
)
_BARE_ID = re.compile(r"[a-f0-9]{64}")


def check_object_name(name: str) -> None:
    """Raises Invalid unless `name` can name a service, a network or the cluster."""
    if not name:
        raise errors.Invalid("meta: name must be provided")
    if not _DNS_NAME.fullmatch(name):
        raise errors.Invalid("name must be valid as a DNS name component")
    if len(name) > NAME_CHARS_MAX:
        raise errors.Invalid("name must be 63 characters or fewer")


def check_image(image: str) -> None:
    """Raises Invalid unless `image` is an image reference."""
    if not image:
        raise errors.Invalid("ContainerSpec: image reference must be provided")
    match = _IMAGE.fullmatch(image)
    if match is None or len(match["name"]) > IMAGE_NAME_CHARS_MAX or _BARE_ID.fullmatch(match["name"]):
        raise errors.Invalid(f'ContainerSpec: "{image}" is not a valid repository/tag')


_FIRST = (
    "amber", "brave", "bright", "busy", "calm", "clever", "daring", "dusty", "eager", "early", "gentle", "golden",
    "happy", "honest", "keen", "lively", "lucky", "merry", "mild", "nimble", "proud", "quick", "quiet", "ready",
    "silver", "steady", "sunny", "swift", "tidy", "warm", "wild", "wise",
)  # fmt: skip
_SECOND = (
    "acacia", "aster", "borage", "buckwheat", "chestnut", "clover", "comb", "crocus", "dahlia", "daisy", "drone",
    "fennel", "heather", "honey", "lavender", "linden", "lupin", "maple", "meadow", "melissa", "mustard", "nectar",
    "orchard", "phacelia", "pollen", "poppy", "rosemary", "sage", "thistle", "thyme", "willow", "yarrow",
)  # fmt: skip


def invent(rng: ids.Rng) -> str:
    """A name for a service whose user gave none, fit for people to read out: two words and a number."""
    first = _FIRST[rng.getrandbits(16) % len(_FIRST)]
    second = _SECOND[rng.getrandbits(16) % len(_SECOND)]
    return f"{first}_{second}{rng.getrandbits(16) % 1000}"
