"""Consensus over real gRPC, TLS and files: elections, commits, crashes, catching up, membership."""

import asyncio
import pathlib

import pytest

from skep import errors
from tests.manager.raft import raft_cluster as cluster


def test_three_managers_commit_and_survive_the_loss_of_the_leader(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with cluster.running(tmp_path, 3) as managers:
            leader = await managers.leader()
            index = await leader.node.commit([cluster.create("one")])
            assert leader.store.index == index
            with pytest.raises(errors.AlreadyExists):
                await leader.node.commit([cluster.create("one")])
            follower = next(m for m in managers.managers.values() if m is not leader)
            with pytest.raises(errors.Unavailable):
                await follower.node.commit([cluster.create("two")])
            await leader.node.barrier()

            await leader.crash()
            successor = await managers.leader(besides=leader.name)
            assert successor.store.view().configs.get("one") is not None
            await successor.node.commit([cluster.create("two")])

            await leader.start()
            await cluster.eventually(lambda: leader.store.view().configs.get("two") is not None)

    asyncio.run(main())
