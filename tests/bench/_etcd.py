"""Three etcd processes on loopback to measure beside, through the same gRPC client that the bench uses for ours."""

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import AsyncIterator

import grpc

from tests.manager.raft import raft_processes

PUT = "/etcdserverpb.KV/Put"
KEY_FIELD, VALUE_FIELD = b"\x0a", b"\x12"  # of etcdserverpb.PutRequest


def installed() -> bool:
    """Whether etcd is here (Debian: etcd-server, etcd-client)."""
    return shutil.which("etcd") is not None and shutil.which("etcdctl") is not None


def put(key: bytes, size_bytes: int) -> bytes:
    """An encoded PutRequest of that size."""
    value = b"x" * (size_bytes - len(key) - 6)
    return KEY_FIELD + _varint(len(key)) + key + VALUE_FIELD + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


@contextlib.asynccontextmanager
async def running(root: pathlib.Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the leader of a fresh group of three, which is gone afterwards."""
    clients = [raft_processes.free_addr() for _ in range(3)]
    peers = [raft_processes.free_addr() for _ in range(3)]
    together = ",".join(f"e{number}=https://{peer}" for number, peer in enumerate(peers))
    processes: list[asyncio.subprocess.Process] = []
    try:
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            with (root / f"etcd{number}.log").open("wb") as log:
                processes.append(await asyncio.create_subprocess_exec(
                    "etcd", "--name", f"e{number}", "--data-dir", str(root / f"etcd{number}"),
                    "--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}",
                    "--listen-peer-urls", f"https://{peer}", "--initial-advertise-peer-urls", f"https://{peer}",
                    "--peer-auto-tls",
                    "--initial-cluster", together, "--log-level", "error", "--logger", "zap",
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                ))  # fmt: skip
        async with grpc.aio.insecure_channel(await _leader(clients)) as channel:
            yield channel
    finally:
        for process in processes:
            process.kill()
        await asyncio.gather(*(process.wait() for process in processes))


async def _leader(clients: list[str]) -> str:
    found: list[str] = []

    async def led() -> bool:
        asking = await asyncio.create_subprocess_exec(
            "etcdctl", "--endpoints", ",".join(clients), "endpoint", "status", "-w", "json",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "ETCDCTL_API": "3"},
        )  # fmt: skip
        out, _ = await asking.communicate()
        states = [(each["Endpoint"], each["Status"]) for each in json.loads(out or b"[]")]
        found[:] = [end for end, state in states if state["leader"] == state["header"]["member_id"]]
        return bool(found)

    await raft_processes.until("etcd's leader", led)
    return found[0]
