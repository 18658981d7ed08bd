"""Connects to a port inside a container's own network, loopback included. Needs root; nothing else is done there."""

import asyncio
import ctypes
import os
import pathlib
import socket
import threading
from collections.abc import Sequence

CLONE_NEWNET = 0x40000000
CONNECT_S = 5.0
PROC = pathlib.Path("/proc")


def holds(pid: int, container_id: str) -> bool:
    """Whether the process is proven to be the container's: a PID by itself means nothing."""
    try:
        return pid > 0 and container_id in (PROC / str(pid) / "cgroup").read_text()
    except OSError:
        return False


async def connect(pid: int, hosts: Sequence[str], port: int) -> socket.socket:
    """A connection to the first of `hosts` that takes it, made inside the network of `pid`. Raises OSError."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[socket.socket] = loop.create_future()

    def give(result: socket.socket | OSError) -> None:
        if made.done():
            if isinstance(result, socket.socket):
                result.close()
        elif isinstance(result, OSError):
            made.set_exception(result)
        else:
            made.set_result(result)

    def work() -> None:
        try:
            result: socket.socket | OSError = _connect(pid, hosts, port)
        except OSError as error:
            result = error
        try:
            loop.call_soon_threadsafe(give, result)
        except RuntimeError:  # the loop has gone
            if isinstance(result, socket.socket):
                result.close()

    # A thread of its own, that ends with this: one that has changed its network must not do anything else.
    threading.Thread(target=work, name=f"netns-{pid}", daemon=True).start()
    return await made


def _connect(pid: int, hosts: Sequence[str], port: int) -> socket.socket:
    namespace = os.open(PROC / str(pid) / "ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.setns(namespace, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(namespace)
    problem: OSError = ConnectionRefusedError("nothing listens")
    for host in hosts:
        try:
            return socket.create_connection((host, port), timeout=CONNECT_S)
        except OSError as error:
            problem = error
    raise problem
