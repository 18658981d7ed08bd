"""A survivor's log made a group of one: nothing is lost, it leads at once, and others can join again."""

import asyncio
import pathlib

import pytest

from manager.raft import disk, rebuild, sealing
from manager.raft import log as logs
from skep import errors
from tests.manager.raft import raft_cluster


def test_the_survivor_leads_with_everything_it_had(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with raft_cluster.running(tmp_path, 3) as cluster:
            leader = await cluster.leader()
            for number in range(5):
                await leader.node.commit([raft_cluster.create(f"c{number}")])
            survivor = next(each for each in cluster.managers.values() if each is not leader)
            await raft_cluster.eventually(lambda: raft_cluster.holds(survivor, "c4"))
            for manager in cluster.managers.values():
                await manager.crash()
            log = logs.DurableLog(disk.OsDisk(tmp_path / survivor.name))
            rebuilt = rebuild.make_alone(log, node_id=survivor.name, addr=survivor.addr)
            log.close()
            assert sorted([*rebuilt.others, survivor.name]) == sorted(cluster.managers)
            await survivor.start()
            await raft_cluster.eventually(lambda: survivor.node.is_leader)
            assert survivor.node.members() == {survivor.name: survivor.addr}
            assert all(raft_cluster.holds(survivor, f"c{number}") for number in range(5))
            await survivor.node.commit([raft_cluster.create("after")])
            newcomer = cluster.new("m9")
            await newcomer.listen()
            await newcomer.start(join=survivor.node.members())
            await survivor.node.add_member("m9", newcomer.addr)
            await raft_cluster.eventually(lambda: raft_cluster.holds(newcomer, "after"))

    asyncio.run(main())


def test_a_log_without_a_cluster_is_refused(tmp_path: pathlib.Path) -> None:
    log = logs.DurableLog(disk.OsDisk(tmp_path))
    with pytest.raises(errors.FailedPrecondition, match="holds no cluster"):
        rebuild.make_alone(log, node_id="a", addr="a:1")
    log.close()
    (tmp_path / "log-0000000000000001").write_bytes(b"nonsense")
    with pytest.raises(sealing.Damaged, match="not a log of skep"):
        rebuild.make_alone(logs.DurableLog(disk.OsDisk(tmp_path)), node_id="a", addr="a:1")
