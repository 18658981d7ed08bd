"""Join tokens: `SKPTKN-1-<digest of the root certificate>-<secret>`.

The digest lets the joining machine recognise the cluster before it says anything; the secret lets the cluster recognise
the machine's right to join, and as which role. No error and no `repr` here ever shows a token or a part of its secret.
"""

import dataclasses
import hashlib
import hmac
import re

from skep import errors, ids
from skep.security import keys

PREFIX = "SKPTKN"
VERSION = 1
DIGEST_WIDTH = 50  # base36 digits that hold 256 bits
SECRET_WIDTH = 25  # base36 digits that hold 128 bits
SECRET_BITS = 128

_SHAPE = re.compile(rf"{PREFIX}-(\d{{1,3}})-([0-9a-z]{{{DIGEST_WIDTH}}})-([0-9a-z]{{{SECRET_WIDTH}}})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Token:
    """A token taken apart."""

    digest: str
    secret: str = dataclasses.field(repr=False)

    def is_for(self, root_pem: bytes) -> bool:
        """Whether the token was made for this root certificate."""
        return hmac.compare_digest(self.digest, digest(root_pem))

    def opens(self, secret: str) -> bool:
        """Whether the token's secret is `secret`, in constant time; an empty secret opens nothing."""
        return bool(secret) and hmac.compare_digest(self.secret.encode(), secret.encode())


def new_secret(rng: ids.Rng) -> str:
    """A new secret of 128 bits; `rng` must be the system's."""
    return ids.base36(rng.getrandbits(SECRET_BITS), width=SECRET_WIDTH)


def digest(root_pem: bytes) -> str:
    """SHA-256 of the root certificate's PEM in base36, 50 characters wide. Raises Invalid when it is no certificate."""
    hashed = hashlib.sha256(keys.canonical(root_pem)).digest()
    return ids.base36(int.from_bytes(hashed, "big"), width=DIGEST_WIDTH)


def make(*, root_pem: bytes, secret: str) -> str:
    """The token that people copy to the machine that is to join."""
    return f"{PREFIX}-{VERSION}-{digest(root_pem)}-{secret}"


def parse(text: str) -> Token:
    """The token in `text`, blanks around it forgiven. Raises Invalid, which never repeats the text."""
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise errors.Invalid("invalid join token: it must look like SKPTKN-1-<50 characters>-<25 characters>")
    if int(match[1]) != VERSION:
        raise errors.Invalid("invalid join token: it was made by another version of skep")
    return Token(digest=match[2], secret=match[3])
