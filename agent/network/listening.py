"""Which TCP ports this machine listens on, and which processes do. Read from /proc; changes nothing."""

import contextlib
import os
import pathlib
from collections.abc import Iterable

PROC = pathlib.Path("/proc")
LISTEN = "0A"
FIELDS_MIN = 10  # of a line in /proc/net/tcp
EPHEMERAL_FIRST = 32768  # Linux' default


def parse(table: str) -> dict[int, int]:
    """Port by inode of every listening socket in /proc/net/tcp or tcp6."""
    found: dict[int, int] = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= FIELDS_MIN and fields[3] == LISTEN:
            found[int(fields[9])] = int(fields[1].rpartition(":")[2], 16)
    return found


def sockets(directory: pathlib.Path = PROC) -> dict[int, int]:
    """Port by inode of this machine's listening sockets; empty when it does not say."""
    found: dict[int, int] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError, ValueError):
            found |= parse((directory / "net" / name).read_text())
    return found


def ports() -> list[int]:
    """The ports below the ephemeral ones: those that somebody chose."""
    return sorted({port for port in sockets().values() if port < _ephemeral_first()})


def ports_of(pids: Iterable[int]) -> set[int] | None:
    """The ports that any of these processes listens on; None when this may not be looked at."""
    by_inode = sockets()
    found: set[int] = set()
    for pid in pids:
        try:
            names = os.listdir(PROC / str(pid) / "fd")
        except FileNotFoundError:
            continue
        except OSError:
            return None
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                target = os.readlink(PROC / str(pid) / "fd" / name)
                if target.startswith("socket:["):
                    port = by_inode.get(int(target[8:-1]))
                    if port is not None:
                        found.add(port)
    return found


def _ephemeral_first() -> int:
    try:
        return int((PROC / "sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return EPHEMERAL_FIRST
