"""Consensus over real gRPC, TLS and files: elections, commits, crashes, catching up, membership."""

import asyncio
import contextlib
import dataclasses
import functools
import pathlib

import grpc
import pytest

from skep import errors, pb
from skep.security import identity
from skep.v1 import raft_pb2_grpc
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
            assert successor.store.view().tasks.get("one") is not None
            await successor.node.commit([cluster.create("two")])

            await leader.start()
            await cluster.eventually(lambda: leader.store.view().tasks.get("two") is not None)

    asyncio.run(main())


def test_a_follower_that_was_away_catches_up_by_snapshot(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        times = dataclasses.replace(cluster.FAST, snapshot_entries=20, keep_entries=5)
        async with cluster.running(tmp_path, 3, times=times) as managers:
            leader = await managers.leader()
            away = next(m for m in managers.managers.values() if m is not leader)
            await away.crash()
            big = "x" * 400_000  # several blocks
            for number in range(60):
                operation = cluster.create(f"t{number}")
                operation.object.task.status.message = big if number < 3 else ""
                await leader.node.commit([operation])
            await away.start()
            await cluster.eventually(lambda: len(away.store.view().tasks) == 60)
            assert sum(task.status.message == big for task in away.store.view().tasks) == 3

            # and everybody restores from its own snapshot and log
            for manager in managers.managers.values():
                await manager.crash()
            for manager in managers.managers.values():
                await manager.start()
            leader = await managers.leader()
            assert len(leader.store.view().tasks) == 60
            assert sorted(p.stat().st_mode & 0o777 for p in (tmp_path / "m0").iterdir()) == [0o600, 0o600]
            assert (tmp_path / "m0").stat().st_mode & 0o777 == 0o700

    asyncio.run(main())


def test_managers_join_move_leave_and_hand_over(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with cluster.running(tmp_path, 1) as managers:
            first = await managers.leader()
            await first.node.commit([cluster.create("one")])
            for name in ("m1", "m2"):
                newcomer = managers.new(name)
                await newcomer.listen()
                await newcomer.start(join=first.node.members())
                await first.node.add_member(name, newcomer.addr)
                await cluster.eventually(functools.partial(cluster.holds, newcomer, "one"))
            assert sorted(first.node.members()) == ["m0", "m1", "m2"]
            assert first.node.reachable() == {"m0": True, "m1": True, "m2": True}
            with pytest.raises(errors.Invalid):
                await first.node.add_member("m3", "nowhere")

            # a manager comes back under another address
            moved = managers.managers["m2"]
            await moved.crash()
            moved.addr = ""
            await moved.listen()
            await moved.start()
            await first.node.add_member("m2", moved.addr)
            await first.node.commit([cluster.create("two")])
            await cluster.eventually(lambda: moved.store.view().tasks.get("two") is not None)

            await first.node.transfer_leadership()
            second = await managers.leader(besides="m0")
            await second.node.remove_member("m0")
            await cluster.eventually(lambda: first.node.removed)
            await first.stop()

            third = next(m for m in managers.managers.values() if m not in (first, second))
            await third.crash()
            await cluster.eventually(lambda: not second.node.reachable()[third.name] or not second.node.is_leader)
            with pytest.raises((errors.FailedPrecondition, errors.Unavailable)):
                await second.node.remove_member(second.name)
            await third.start()
            leader = await managers.leader(besides="m0")
            other = second if leader is third else third

            await leader.node.remove_member(leader.name)  # a leader can remove itself
            await cluster.eventually(lambda: leader.node.removed and other.node.is_leader)
            assert list(other.node.members()) == [other.name]
            with pytest.raises(errors.FailedPrecondition):
                await other.node.remove_member(other.name)
            await other.node.commit([cluster.create("three")])

    asyncio.run(main())


def test_one_that_was_removed_while_away_learns_of_it(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with cluster.running(tmp_path, 3) as managers:
            leader = await managers.leader()
            away = next(m for m in managers.managers.values() if m is not leader)
            await away.crash()
            await leader.node.remove_member(away.name)
            await away.start()
            await cluster.eventually(lambda: away.node.removed)
            assert not away.node.is_leader

    asyncio.run(main())


def test_workers_and_strangers_are_turned_away(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with cluster.running(tmp_path, 1) as managers:
            leader = await managers.leader()

            async def call(name: str, role: str, meant: str) -> object:
                key, certificate = managers.authority.issue(name, role)
                credentials = grpc.ssl_channel_credentials(managers.authority.certificate, key, certificate)
                options = (("grpc.ssl_target_name_override", identity.MANAGER_NAME),)
                async with grpc.aio.secure_channel(leader.addr, credentials, options=options) as channel:
                    stub: raft_pb2_grpc.RaftAsyncStub = raft_pb2_grpc.RaftStub(channel)
                    stream = stub.Link(metadata=(("skep-to", meant),))
                    frame = pb.RaftFrame(kind=pb.RAFT_FRAME_KIND_VOTE, term=99, forced=True)
                    with contextlib.suppress(asyncio.InvalidStateError, grpc.RpcError):
                        await stream.write(frame)
                    return await stream.read()

            for name, role, meant in (("w", "worker", "m0"), ("m9", "manager", "elsewhere")):
                with pytest.raises(grpc.RpcError):
                    await call(name, role, meant)
            refusal = await call("m9", "manager", "m0")
            assert isinstance(refusal, pb.RaftAck)
            assert not refusal.accepted
            assert [member.node_id for member in refusal.configuration.members] == ["m0"]
            assert leader.node.term < 99
            assert leader.node.is_leader

    asyncio.run(main())


def test_many_writers_share_entries_and_each_gets_its_own_answer(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with cluster.running(tmp_path, 3) as managers:
            leader = await managers.leader()
            before = leader.node.applied_index
            results = await asyncio.gather(
                *(leader.node.commit([cluster.create(f"c{number % 150}")]) for number in range(200)),
                return_exceptions=True,
            )
            assert [isinstance(result, int) for result in results] == [True] * 150 + [False] * 50
            assert all(isinstance(result, errors.AlreadyExists) for result in results[150:])
            assert leader.node.applied_index - before < 50
            with pytest.raises(errors.Invalid):
                await leader.node.commit([cluster.create("x" * 2_000_000)])

    asyncio.run(main())
