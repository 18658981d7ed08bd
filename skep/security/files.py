"""A node's identity on disk: the private key, its certificate, the cluster's root certificate.

The three are replaced one by one, but never half: all new ones are first written and fsynced beside the old ones, then
moved into place. When a crash falls between the moves, `load` finds what does not fit and finishes them.
"""

import os
import pathlib
import stat

from skep import errors
from skep.security import identity as identities
from skep.security import keys

KEY_FILE = "node.key"
CERT_FILE = "node.crt"
ROOT_FILE = "root-ca.crt"
DIRECTORY_MODE = 0o700
KEY_MODE = 0o600
CERT_MODE = 0o644

_MODES = {ROOT_FILE: CERT_MODE, CERT_FILE: CERT_MODE, KEY_FILE: KEY_MODE}
_NEW = ".new"


def save(directory: pathlib.Path, identity: identities.Identity) -> None:
    """Puts the identity on disk durably, replacing the one that was there. Raises OSError when the disk refuses."""
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    directory.chmod(DIRECTORY_MODE)  # it may have been there before, with a wider mode
    contents = {ROOT_FILE: identity.root_pem, CERT_FILE: identity.cert_pem, KEY_FILE: identity.key_pem}
    for name, content in contents.items():
        _write(directory / (name + _NEW), content, mode=_MODES[name])
    _sync_directory(directory)
    _finish(directory)


def load(directory: pathlib.Path, *, now: float) -> identities.Identity | None:
    """The identity kept in `directory`, or None when there is none.

    Raises Denied when it has expired, when its parts do not belong together, or when a part is missing; the text names
    the directory and says what to do.
    """
    names = list(_MODES)
    overlay = {name: _read(directory / (name + _NEW)) for name in names}
    current = {name: _read(directory / name) for name in names}
    if all(content is None for content in current.values()) and not all(overlay.values()):
        return None  # nothing, or the first save was cut off before it counted; the key is written last
    try:
        identity = _verify(directory, current, now=now)
    except errors.Denied:
        merged = {name: overlay[name] or current[name] for name in names}
        if merged == current:
            raise
        identity = _verify(directory, merged, now=now)
        _finish(directory)
    _check_mode(directory / KEY_FILE)
    return identity


def remove(directory: pathlib.Path) -> None:
    """Forgets the identity, the key first. Nothing happens when there is none."""
    for name in (KEY_FILE, CERT_FILE, ROOT_FILE):
        for path in (directory / name, directory / (name + _NEW)):
            path.unlink(missing_ok=True)
    if directory.is_dir():
        _sync_directory(directory)


def _verify(directory: pathlib.Path, contents: dict[str, bytes | None], *, now: float) -> identities.Identity:
    key, cert, root = contents[KEY_FILE], contents[CERT_FILE], contents[ROOT_FILE]
    if key is None or cert is None or root is None:
        missing = next(name for name, content in contents.items() if content is None)
        raise errors.Denied(
            f"the identity in {directory} is incomplete: {missing} is missing. Restore it, or leave and join again."
        )
    try:
        return keys.verified(key_pem=key, cert_pem=cert, root_pem=root, now=now)
    except errors.Denied as error:
        if error.message == keys.EXPIRED:
            raise
        raise errors.Denied(f"the identity in {directory} cannot be used: {error.message}") from None


def _finish(directory: pathlib.Path) -> None:
    for name in _MODES:
        fresh = directory / (name + _NEW)
        if fresh.exists():
            fresh.replace(directory / name)
    _sync_directory(directory)


def _check_mode(path: pathlib.Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise errors.Denied(
            f"the private key {path} can be read by others (mode {mode:04o}): chmod 600 it, and replace the identity "
            "if anyone else may have seen it"
        )


def _read(path: pathlib.Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(keys.PEM_BYTES_MAX + 1)
    except FileNotFoundError:
        return None


def _write(path: pathlib.Path, content: bytes, *, mode: int) -> None:
    path.unlink(missing_ok=True)  # so that the mode below is the one that counts
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
