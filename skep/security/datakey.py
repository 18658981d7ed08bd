"""Encryption at rest: a manager's data key, how it lies on disk, and the seal that uses it.

The data key (32 random bytes) is made once for a manager's log and never changes; what changes with every renewal of
the certificate is the node's private key, which wraps it. So a renewal goes in three steps, each of which a crash may
follow: the file gets a second wrapping for the new key, the new identity is saved, the old wrapping goes. At every
moment the file opens with whichever identity is on disk. Knows no Raft and no format of what is sealed.
"""

import base64
import hashlib
import hmac
import json
import os
import pathlib
from typing import Any

from cryptography import exceptions
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import aead
from cryptography.hazmat.primitives.kdf import hkdf

from skep import errors, ids
from skep.security import identity as identities

FILE = "data.key"  # beside the identity
FORMAT = 1
KEY_BYTES = 32
FILE_MODE = 0o600
FILE_BYTES_MAX = 16 * 1024
SALT_BYTES = 16
NONCE_BYTES = 12  # of AES-GCM
TAG_BYTES = 16
_WRAPPING = b"skep: wrapping key of a manager's data key, 1"
_SEALING = b"skep: sealing key of one record, 1"


class RecordSeal:
    """Seals records with AES-256-GCM; implements manager.raft.sealing.Seal. `repr` never shows the key.

    Every record has a key of its own, derived from the data key and 16 random bytes that travel with it. So the number
    of records is not limited by the short nonce of AES-GCM, and two records never share key and nonce, also not a
    record that was torn by a crash and the one written in its place.
    """

    overhead_bytes = SALT_BYTES + NONCE_BYTES + TAG_BYTES

    def __init__(self, key: bytes, rng: ids.Rng) -> None:
        """`rng` must be fit for secrets, and usable from several threads."""
        self._key = key
        self._rng = rng

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        """`data` as it is stored."""
        head = _random(self._rng, SALT_BYTES + NONCE_BYTES)
        return head + self._cipher(head).encrypt(head[SALT_BYTES:], data, context)

    def open(self, data: bytes, *, context: bytes) -> bytes:
        """The plain bytes. Raises ValueError when they were not sealed with this key and context."""
        head = data[: SALT_BYTES + NONCE_BYTES]
        if len(data) < self.overhead_bytes:
            raise ValueError("too short to be sealed")
        try:
            return self._cipher(head).decrypt(head[SALT_BYTES:], data[len(head) :], context)
        except exceptions.InvalidTag:
            raise ValueError("sealed with another key, or damaged") from None

    def _cipher(self, head: bytes) -> aead.AESGCM:
        return aead.AESGCM(hmac.digest(self._key, _SEALING + head[:SALT_BYTES], "sha256"))


def make(directory: pathlib.Path, identity: identities.Identity, *, rng: ids.Rng) -> bytes:
    """A new data key, stored durably in `directory`; one that was there before is gone. `rng` must suit secrets."""
    key = _random(rng, KEY_BYTES)
    _write(directory, [_wrap(key, identity, rng=rng)])
    return key


def load(directory: pathlib.Path, identity: identities.Identity) -> bytes | None:
    """The data key; None when there is no file. Raises Denied when the file does not open with this identity."""
    try:
        with (directory / FILE).open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    for wrapping in _parse(directory, raw):
        key = _unwrap(wrapping, identity)
        if key is not None:
            return key
    raise errors.Denied(
        f"{directory / FILE} cannot be opened with the private key of node {identity.node_id}: it belongs to another "
        "identity. Restore the whole state directory from one backup; or remove this manager from the cluster, leave, "
        "and join again"
    )


def rewrap(directory: pathlib.Path, *, old: identities.Identity, new: identities.Identity, rng: ids.Rng) -> None:
    """Makes the file open with either identity, durably. To be called before `new` is saved; no file, nothing to do."""
    key = load(directory, old)
    if key is not None:
        _write(directory, [_wrap(key, old, rng=rng), _wrap(key, new, rng=rng)])


def settle(directory: pathlib.Path, identity: identities.Identity, *, rng: ids.Rng) -> None:
    """Drops every wrapping but the present identity's, once that is safely on disk."""
    key = load(directory, identity)
    if key is not None:
        _write(directory, [_wrap(key, identity, rng=rng)])


def remove(directory: pathlib.Path) -> None:
    """Forgets the key; whatever it sealed is unreadable from now on."""
    (directory / FILE).unlink(missing_ok=True)


# ---------------------------------------------------------------- parts


def _random(rng: ids.Rng, size_bytes: int) -> bytes:
    return rng.getrandbits(8 * size_bytes).to_bytes(size_bytes, "big")


def _private_bytes(key_pem: bytes) -> tuple[bytes, str]:
    """The private number, and a name for the key that tells nothing about it."""
    key = serialization.load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise errors.Denied("the node's private key is not an elliptic curve key")
    number = key.private_numbers().private_value
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return number.to_bytes(KEY_BYTES, "big"), hashlib.sha256(public).hexdigest()


def _wrapping_cipher(identity: identities.Identity, salt: bytes) -> aead.AESGCM:
    secret, _ = _private_bytes(identity.key_pem)
    return aead.AESGCM(hkdf.HKDF(hashes.SHA256(), KEY_BYTES, salt, _WRAPPING).derive(secret))


def _context(identity: identities.Identity) -> bytes:
    return f"{identity.cluster_id} {identity.node_id}".encode()


def _wrap(key: bytes, identity: identities.Identity, *, rng: ids.Rng) -> dict[str, str]:
    salt, nonce = _random(rng, SALT_BYTES), _random(rng, NONCE_BYTES)
    sealed = _wrapping_cipher(identity, salt).encrypt(nonce, key, _context(identity))
    encoded = {"salt": salt, "nonce": nonce, "sealed": sealed}
    return {
        "key": _private_bytes(identity.key_pem)[1],
        **{name: base64.b64encode(value).decode() for name, value in encoded.items()},
    }


def _unwrap(wrapping: dict[str, str], identity: identities.Identity) -> bytes | None:
    if wrapping.get("key") != _private_bytes(identity.key_pem)[1]:
        return None
    try:
        salt, nonce, sealed = (base64.b64decode(wrapping[name]) for name in ("salt", "nonce", "sealed"))
        return _wrapping_cipher(identity, salt).decrypt(nonce, sealed, _context(identity))
    except (KeyError, ValueError, TypeError, exceptions.InvalidTag):
        return None


def _parse(directory: pathlib.Path, raw: bytes) -> list[dict[str, str]]:
    try:
        content: Any = json.loads(raw)
        wrappings = {FORMAT: content["wrappings"]}[content["format"]]
        return [dict(wrapping) for wrapping in wrappings]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.Denied(
            f"{directory / FILE} cannot be read ({type(error).__name__}): without it this manager's log is lost. "
            "Restore it from a backup; or remove this manager from the cluster, leave, and join again"
        ) from None


def _write(directory: pathlib.Path, wrappings: list[dict[str, str]]) -> None:
    """Replaces the file in one step, durably."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = directory / (FILE + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps({"format": FORMAT, "wrappings": wrappings}, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(directory / FILE)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
