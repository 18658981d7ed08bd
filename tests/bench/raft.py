"""The consensus layer: three members as processes with real syncs and TLS between them, beside three of etcd's.

Throughput and latency are measured twice. `raft.commits_per_s` and its like: writers in the leader's process, where
skep's writers are (API, deciders, dispatcher). `raft.rpc_commits_per_s` and its like: one gRPC call a transaction from
this process, as etcd is measured. Both are set beside etcd: the first is what skep gains from having its store within
(nothing calls it from outside, one call at a time), the second is call for call. Members talk TLS to each other, ours
and etcd's; the caller shares the machine's cores with the six daemons.

`make bench BENCH=raft`, or with the names of parts: writes, failover, elections, large.
"""

import asyncio
import contextlib
import functools
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence

import grpc

from tests.bench import _etcd
from tests.manager.raft import raft_member, raft_processes

SECONDS = 2.0
ROUNDS = 3  # of each measurement; figures are medians
WRITERS = (1, 16, 256)
SIZES = {"200B": 200, "2KB": 2048}
FAILOVERS = 20
BUSY_S = 60.0
LARGE_TASKS = 100_000
LARGE_ENTRIES = 10_000
LONG_S = 600.0
Measure = Callable[[int, int], Awaitable[list[float]]]

_numbers = itertools.count()


def figure(name: str, value: float, unit: str) -> None:
    """One line of the result."""
    print(f"{name}: {value:.3f} {unit}" if value < 100 else f"{name}: {value:.0f} {unit}", flush=True)


def percentile(took_s: Sequence[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(took_s)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


def show(prefix: str, name: str, rounds: Sequence[Sequence[float]]) -> None:
    """Medians of the rounds."""
    figure(f"{prefix}commits_per_s.{name}", statistics.median(len(took) / SECONDS for took in rounds), "1/s")
    for share in (0.5, 0.99):
        value = statistics.median(percentile(took, share) for took in rounds)
        figure(f"{prefix}p{share * 100:.0f}_ms.{name}", value, "ms")


async def load(call: Callable[[], Awaitable[object]], *, writers: int) -> list[float]:
    """Seconds that each of the calls took that so many writers made."""
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    took: list[float] = []

    async def write() -> None:
        while (began := loop.time()) < end:
            await call()
            took.append(loop.time() - began)

    await asyncio.gather(*(write() for _ in range(writers)))
    return took


async def writes(root: pathlib.Path) -> None:
    """Throughput and latency, ours and etcd's; turn by turn, so that whatever else the machine does meets both."""
    taken: dict[str, list[list[float]]] = {}
    async with contextlib.AsyncExitStack() as stack:
        group = await stack.enter_async_context(raft_processes.running(root, 3))
        kinds: dict[str, Measure] = {"raft.": functools.partial(_in_process, group)}
        if _etcd.installed():
            channel = await stack.enter_async_context(_etcd.running(root))
            kinds["etcd."] = functools.partial(_etcd_calls, channel.unary_unary(_etcd.PUT))
        else:
            print("# etcd is not installed (Debian: etcd-server, etcd-client): no comparison", flush=True)
        kinds["raft.rpc_"] = functools.partial(_our_calls, group)
        for (size, size_bytes), writers in itertools.product(SIZES.items(), WRITERS):
            for _ in range(ROUNDS):
                for kind, measure in kinds.items():
                    took = await measure(writers, size_bytes)
                    taken.setdefault(f"{kind}{writers}.{size}", []).append(took)
            for kind in kinds:
                show(kind, f"{writers}.{size}", taken[f"{kind}{writers}.{size}"])
    if "etcd." in kinds:
        for kind in ("raft.", "raft.rpc_"):
            many, one = taken[f"{kind}256.200B"], taken[f"{kind}1.200B"]
            ratio = statistics.median(len(a) / len(b) for a, b in zip(many, taken["etcd.256.200B"], strict=True))
            figure(f"{kind}throughput_vs_etcd.256.200B", ratio, "x")
            pairs = zip(one, taken["etcd.1.200B"], strict=True)
            ratio = statistics.median(percentile(a, 0.5) / percentile(b, 0.5) for a, b in pairs)
            figure(f"{kind}p50_vs_etcd.1.200B", ratio, "x")


async def _in_process(group: raft_processes.Group, writers: int, size_bytes: int) -> list[float]:
    leader = await group.leader()
    answer = await leader.ask("write", writers=writers, seconds=SECONDS, size=size_bytes)
    took: list[float] = answer["took_s"]
    return took


async def _our_calls(group: raft_processes.Group, writers: int, size_bytes: int) -> list[float]:
    leader = await group.leader()

    def call() -> Awaitable[object]:
        op = raft_member.sized_task(f"rpc{next(_numbers):09d}", size_bytes)
        return leader.commit(raft_processes.transaction(op))

    return await load(call, writers=writers)


async def _etcd_calls(put: raft_processes.Call, writers: int, size_bytes: int) -> list[float]:
    return await load(lambda: put(_etcd.put(b"key%09d" % next(_numbers), size_bytes)), writers=writers)


async def failover(root: pathlib.Path) -> None:
    """From kill -9 of the leader to the next acknowledged write."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    async with raft_processes.running(root, 3) as group:
        for number in range(FAILOVERS):
            await group.level()
            victim = await group.leader()
            others = [member for member in group.members if member is not victim]
            encoded = raft_processes.transaction(raft_member.task(f"after{number}", ""))
            began = loop.time()
            await victim.kill()
            times.append(await _written(others, encoded) - began)
            await victim.start()
    figure("raft.failover_median_s", statistics.median(times), "s")
    figure("raft.failover_max_s", max(times), "s")


async def _written(members: Sequence[raft_processes.Member], encoded: bytes) -> float:
    """When the first of `members` acknowledged the write."""
    loop = asyncio.get_running_loop()
    for member in itertools.cycle(members):
        try:
            await member.commit(encoded, timeout_s=2.0)
        except grpc.RpcError:
            await asyncio.sleep(raft_processes.LOOK_S)
        else:
            return loop.time()
    raise AssertionError("nobody to ask")


async def elections(root: pathlib.Path) -> None:
    """How often a healthy leader is deposed while every core is busy with something else."""
    async with raft_processes.running(root, 3) as group:
        await group.level()
        leader = await group.leader()
        before = (await leader.ask("status"))["term"]
        loops = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
            for _ in range(os.cpu_count() or 1)
        ]
        loop = asyncio.get_running_loop()
        end = loop.time() + BUSY_S
        try:
            number = 0
            while loop.time() < end:
                number += 1
                encoded = raft_processes.transaction(raft_member.task(f"busy{number}", ""))
                await _written([leader, *group.members], encoded)
        finally:
            for process in loops:
                process.kill()
            await asyncio.gather(*(process.wait() for process in loops))
        terms = [(await member.ask("status"))["term"] for member in group.members]
        figure("raft.false_elections_per_hour", (max(terms) - before) * 3600 / BUSY_S, "1/h")
        figure("raft.busy_commits_per_s", number / BUSY_S, "1/s")


async def large(root: pathlib.Path) -> None:
    """A state of many tasks: snapshot, newcomer, start."""
    loop = asyncio.get_running_loop()
    async with raft_processes.running(root, 3, snapshot_entries=1_000_000, snapshot_bytes=1 << 30) as group:
        leader = await group.leader()
        await leader.ask("fill", tasks=LARGE_TASKS, timeout_s=LONG_S)
        await group.level()
        for member in group.members:  # each its own; the leader's is the one that counts
            answer = await member.ask("snapshot", timeout_s=LONG_S)
            if member is leader:
                figure("raft.snapshot_stall_ms", answer["stall_ms"], "ms")
                figure("raft.snapshot_s", answer["took_s"], "s")

        newcomer = await group.join()
        await newcomer.ask("watch")
        began = loop.time()
        added = await leader.ask("add", name=newcomer.name, addr=newcomer.addr, timeout_s=LONG_S)

        async def whole() -> bool:
            return bool((await newcomer.ask("status"))["tasks"] == LARGE_TASKS)

        await raft_processes.until("the newcomer has everything", whole)
        figure("raft.catch_up_s", loop.time() - began, "s")
        figure("raft.catch_up_leader_stall_ms", added["stall_ms"], "ms")
        figure("raft.catch_up_newcomer_stall_ms", (await newcomer.ask("watch"))["stall_ms"], "ms")

        leader = await group.leader()
        await leader.ask("entries", count=LARGE_ENTRIES, timeout_s=LONG_S)
        await group.level()
        index = (await leader.ask("status"))["applied"]
        again = next(member for member in group.members if member is not leader)
        await again.kill()
        began = loop.time()
        await again.start()

        async def caught_up() -> bool:
            return bool((await again.ask("status", timeout_s=5.0))["applied"] >= index)

        await raft_processes.until("the restarted member has applied everything", caught_up)
        figure("raft.start_s", loop.time() - began, "s")


PARTS = {"writes": writes, "failover": failover, "elections": elections, "large": large}


def main(arguments: Sequence[str]) -> None:
    for name in arguments or PARTS:
        with tempfile.TemporaryDirectory(prefix="skep-bench-raft-") as directory:
            asyncio.run(PARTS[name](pathlib.Path(directory)))
