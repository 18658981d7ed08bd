"""One manager's consensus as a process of its own: `python -m tests.manager.raft.raft_member ROOT NAME`.

The store, the log as skepd has it (real syncs, sealed with a data key that the member's own key wraps, marked as begun)
and gRPC with mutual TLS between members; no deciders, no API. A second port on
loopback, without TLS, takes transactions one a call (`commit`) and questions in JSON (`ask`). It ends with its parent:
when standard input ends. Parents use raft_processes.
"""

import asyncio
import base64
import functools
import gc
import hashlib
import json
import pathlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from manager.raft import config, core, disk, log
from manager.store import store
from skep import errors, ids, pb
from skep.security import datakey, identity
from tests.manager.raft import lossy_disk, raft_cluster

COMMIT = "/member/commit"  # an encoded pb.Transaction to its index
ASK = "/member/ask"  # JSON to JSON
FILL_TASKS = 500  # in one transaction of `fill`
ENTRIES_AT_ONCE = 200
LOOK_S = 0.001
GC_THRESHOLDS = (50_000, 20, 100)  # as in skepd
Answer = dict[str, Any]


def task(name: str, payload: str) -> pb.Op:
    """An operation that creates a task carrying `payload`."""
    op = raft_cluster.create(name)
    op.object.task.status.message = payload
    return op


def lifelike(number: int) -> pb.Op:
    """An operation that creates a task with the fields that a running one has."""
    op = pb.Op(kind=pb.OP_KIND_CREATE)
    row = op.object.task
    row.id = f"lifelike{number:017d}"
    row.service_id = f"service{number % 100:018d}"
    row.service_name = f"web{number % 100}"
    row.revision_id = f"{row.service_id}@1"
    row.slot = number // 100 + 1
    row.node_id = f"node{number % 1000:021d}"
    row.desired_state = row.status.state = pb.TASK_STATE_RUNNING
    row.status.message = "started"
    row.status.container.container_id = f"{number:064x}"
    row.status.container.pid = number
    return op


class Stall:
    """The longest time for which the event loop did not turn, while entered; in milliseconds."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self._task: asyncio.Task[None] | None = None

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            now = loop.time()
            self.longest_ms = max(self.longest_ms, (now - last - LOOK_S) * 1000)
            last = now

    async def __aenter__(self) -> "Stall":
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        await asyncio.sleep(2 * LOOK_S)  # one more look, so that a stall at the end counts
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Control:
    """The port on loopback."""

    def __init__(self, manager: raft_cluster.Manager) -> None:
        self._manager = manager
        self._watch: Stall | None = None
        self._written = 0

    async def commit(self, encoded: bytes, context: Any) -> bytes:
        """Commits a transaction. UNAVAILABLE says that it may or may not have taken effect."""
        try:
            return str(await self._manager.node.commit(pb.Transaction.FromString(encoded).ops)).encode()
        except errors.SkepError as error:
            unavailable = isinstance(error, errors.Unavailable)
            code = grpc.StatusCode.UNAVAILABLE if unavailable else grpc.StatusCode.ABORTED
            await context.abort(code, error.message)
            raise

    async def ask(self, encoded: bytes, _: Any) -> bytes:
        """Does what the JSON says."""
        request: dict[str, Any] = json.loads(encoded)
        method: Callable[..., Awaitable[Answer]] = getattr(self, f"ask_{request.pop('do')}")
        return json.dumps(await method(**request)).encode()

    # ---------------------------------------------------------------- questions

    async def ask_status(self) -> Answer:
        raft = self._manager.node
        return {
            "leads": raft.is_leader,
            "term": raft.term,
            "applied": raft.applied_index,
            "members": sorted(raft.members()),
            "tasks": len(self._manager.store.view().tasks),
        }

    async def ask_missing(self, names: list[str]) -> Answer:
        """Which of these tasks are not here, and a digest of everything at this index."""
        frozen = self._manager.store.freeze()
        tasks = self._manager.store.view().tasks
        missing = [name for name in names if tasks.get(name) is None]
        digest = await asyncio.to_thread(_digest, frozen)  # it takes long, and this member is to go on meanwhile
        return {"missing": missing, "digest": digest, "applied": frozen.index}

    async def ask_fill(self, tasks: int) -> Answer:
        """Creates that many tasks."""
        for first in range(0, tasks, FILL_TASKS):
            ops = [lifelike(number) for number in range(first, min(first + FILL_TASKS, tasks))]
            await self._manager.node.commit(ops)
        return {}

    async def ask_entries(self, count: int) -> Answer:
        """Puts `count` entries of one small transaction each into the log, whatever could share one."""
        for first in range(0, count, ENTRIES_AT_ONCE):
            await self._entries([f"entry{number}" for number in range(first, min(first + ENTRIES_AT_ONCE, count))])
        return {}

    async def _entries(self, names: list[str]) -> None:
        loop = asyncio.get_running_loop()
        raft, driver = self._manager.node._core, self._manager.node._driver
        assert raft is not None
        assert driver is not None
        ends: list[asyncio.Future[core.Outcome]] = [loop.create_future() for _ in names]
        for name, end in zip(names, ends, strict=True):
            batch = pb.Batch(transactions=[pb.Transaction(ops=[task(name, "")]).SerializeToString()])
            raft.propose(loop.time(), batch.SerializeToString(), functools.partial(_end, end))
        driver.wake()
        assert set(await asyncio.gather(*ends)) == {core.Outcome.DONE}, "an entry was lost"

    async def ask_snapshot(self) -> Answer:
        """Takes a snapshot now; the longest stall meanwhile."""
        raft, driver = self._manager.node._core, self._manager.node._driver
        assert raft is not None
        assert driver is not None
        loop = asyncio.get_running_loop()
        index, began = raft.applied_index, loop.time()
        async with Stall() as stall:
            raft.snapshot_now()
            assert await driver.until(lambda: raft.journal.snapshot.index >= index, timeout_s=120)
        return {"stall_ms": stall.longest_ms, "took_s": loop.time() - began, "blocks": raft.journal.snapshot.blocks}

    async def ask_add(self, name: str, addr: str) -> Answer:
        """Brings a member in; the longest stall of this loop meanwhile."""
        async with Stall() as stall:
            await self._manager.node.add_member(name, addr)
        return {"stall_ms": stall.longest_ms}

    async def ask_watch(self) -> Answer:
        """Begins to watch for stalls, or tells the longest since."""
        if self._watch is None:
            self._watch = await Stall().__aenter__()
            return {"stall_ms": 0.0}
        await self._watch.__aexit__()
        stall, self._watch = self._watch, None
        return {"stall_ms": stall.longest_ms}

    async def ask_write(self, writers: int, seconds: float, size: int) -> Answer:
        """Writers in this process, as the API, the deciders and the dispatcher are: seconds each commit took."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        took: list[float] = []

        async def write() -> None:
            while (began := loop.time()) < end:
                self._written += 1
                op = sized_task(f"local{self._manager.name}{self._written:09d}", size)
                await self._manager.node.commit([op])
                took.append(loop.time() - began)

        await asyncio.gather(*(write() for _ in range(writers)))
        return {"took_s": took}


def _end(future: asyncio.Future[core.Outcome], outcome: core.Outcome, _: Any) -> None:
    future.set_result(outcome)


def _digest(frozen: store.Frozen) -> str:
    digest = hashlib.sha256()
    for record in frozen.records():
        digest.update(record.SerializeToString(deterministic=True))
    return digest.hexdigest()


def sized_task(name: str, size_bytes: int) -> pb.Op:
    """A task whose transaction takes about `size_bytes` bytes."""
    base = pb.Transaction(ops=[task(name, "")]).ByteSize()
    return task(name, "x" * max(size_bytes - base - 8, 0))


def sealed_log(
    keys: pathlib.Path, name: str, papers: raft_cluster.Papers, directory: pathlib.Path, *, lossy: bool
) -> log.DurableLog:
    """See skep.daemon.manager_part.open_log; with `lossy` on a disk that forgets what was not synced."""
    own = identity.Identity(
        node_id=name, cluster_id="test", role=pb.NODE_ROLE_MANAGER, cert_pem=papers.certificate,
        root_pem=papers.authority, key_pem=papers.key,
    )  # fmt: skip
    rng = ids.system_rng()
    key = datakey.load(keys, own) or datakey.make(keys, own, rng=rng)
    target = lossy_disk.LossyDisk(directory) if lossy else disk.OsDisk(directory)
    return log.DurableLog(target, datakey.RecordSeal(key, rng), mark=disk.OsMark(keys / "log.begun"))


async def serve(root: pathlib.Path, name: str) -> None:
    settings = json.loads((root / f"{name}.json").read_text())
    papers = raft_cluster.Papers(*(base64.b64decode(settings[part]) for part in ("authority", "key", "certificate")))
    times = config.RaftConfig(**settings["config"])
    open_log = functools.partial(sealed_log, root / f"{name}.identity", name, papers, lossy=settings["lossy"])
    manager = raft_cluster.Manager(name, root, papers, times, open_log=open_log)
    manager.addr = settings["addr"]
    control = Control(manager)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "commit": grpc.unary_unary_rpc_method_handler(control.commit),
        "ask": grpc.unary_unary_rpc_method_handler(control.ask),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("member", handlers)])
    await manager.start(bootstrap=settings["bootstrap"], join=settings["join"])
    server.add_insecure_port(settings["control"])
    await server.start()
    parent = asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    await asyncio.wait([parent, manager.node.failure], return_when=asyncio.FIRST_COMPLETED)
    await manager.stop()
    await server.stop(None)


if __name__ == "__main__":
    gc.set_threshold(*GC_THRESHOLDS)
    asyncio.run(serve(pathlib.Path(sys.argv[1]), sys.argv[2]))
