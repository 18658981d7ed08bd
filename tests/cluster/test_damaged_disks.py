"""Managers that are started on a disk that is not what they left: the right thing, with the right words."""

import asyncio
import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from manager.raft import commands, disk, log, ops, snapshot
from manager.store import store
from skep import clock, errors, ids, pb
from skep.security import datakey, files
from tests.cluster import harness, test_recovery

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
SECTOR_BYTES = 512
UNREADABLE = pathlib.Path("/sys/class/net/lo/speed")  # a file of 4096 bytes: Linux gives EINVAL to whoever reads it


def open_log(state_dir: pathlib.Path) -> log.DurableLog:
    identity = files.load(state_dir / "identity", now=clock.SystemClock().now())
    assert identity is not None
    key = datakey.load(state_dir / "identity", identity)
    assert key is not None
    return log.DurableLog(disk.OsDisk(state_dir / "raft"), datakey.RecordSeal(key, ids.system_rng()))


def compact(state_dir: pathlib.Path) -> None:
    """What the manager does by itself after 10,000 entries: everything but the last entries goes into a snapshot."""
    opened = open_log(state_dir)
    state = opened.load()
    assert state is not None
    contents = store.Store()
    until = state.hard.commit - 2
    for command, index, _ in state.entries:
        if index <= until and command[:1] == commands.REGULAR:
            encoded = pb.Batch.FromString(command[1:]).transactions
            contents.apply(index, [pb.Transaction.FromString(each) for each in encoded])
    members_index, members = max(
        (entry[1], commands.members_of(entry[0])) for entry in state.entries if commands.is_membership(entry[0])
    )
    wanted = snapshot.Snapshot(
        index=until, term=state.entries[until - 2][2], members=members, members_index=members_index
    )
    body = snapshot.reblock(snapshot.encode(contents.freeze().records()))
    taken = opened.save_snapshot(wanted, body)
    opened.write([ops.Taken(taken), ops.Head(until, wanted.term)])
    opened.close()


def flip(path: pathlib.Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x55
    path.write_bytes(content)


def the_log(state_dir: pathlib.Path) -> pathlib.Path:
    (found,) = (state_dir / "raft").glob("log-*")
    return found


def the_snapshot(state_dir: pathlib.Path) -> pathlib.Path:
    (found,) = (state_dir / "raft").glob("snapshot-*")
    return found


def data_key(state_dir: pathlib.Path) -> pathlib.Path:
    return state_dir / "identity" / "data.key"


def other_file(state_dir: pathlib.Path) -> None:
    the_log(state_dir).write_bytes(b"\x7fELF" + bytes(5000))


def hole(state_dir: pathlib.Path) -> None:
    content = bytearray(the_log(state_dir).read_bytes())
    content[SECTOR_BYTES : 2 * SECTOR_BYTES] = bytes(SECTOR_BYTES)
    the_log(state_dir).write_bytes(content)


def swapped(state_dir: pathlib.Path) -> None:
    """A snapshot of another time under this one's name."""
    content = bytearray(the_snapshot(state_dir).read_bytes())
    content[8] ^= 1
    the_snapshot(state_dir).write_bytes(content)


def emptied(state_dir: pathlib.Path) -> None:
    for path in (state_dir / "raft").iterdir():
        path.unlink()


Damage = Callable[[pathlib.Path], object]
Where = Callable[[pathlib.Path], pathlib.Path]

DAMAGES: dict[str, tuple[Damage, Where, str]] = {
    "another file": (other_file, the_log, "not a log of skep at byte 0"),
    "a hole": (hole, the_log, "damaged record at byte"),
    "a bit of the log": (lambda place: flip(the_log(place), 100), the_log, "damaged record at byte 16"),
    "a bit of the snapshot": (lambda place: flip(the_snapshot(place), 100), the_snapshot, "damaged block at byte 24"),
    "another snapshot": (swapped, the_snapshot, "not the snapshot that the log names at byte 0"),
    "no snapshot": (lambda place: the_snapshot(place).unlink(), the_snapshot, "the snapshot that the log names is"),
    "no log": (lambda place: the_log(place).unlink(), lambda place: place / "raft", "but the log is missing"),
    "nothing": (emptied, lambda place: place / "raft", "but the log is missing"),
    "the key": (lambda place: data_key(place).write_bytes(b"{}"), data_key, "cannot be read"),
}  # fmt: skip


async def full_from_the_beginning(cluster: harness.Cluster) -> None:
    """Not a byte more fits on the disk on which the log lies."""
    home, raft = cluster.home, cluster.home.directory / "raft"
    with test_recovery.small_disk(raft.parent / "small", size="1m"):
        small = raft.parent / "small" / "raft"
        shutil.copytree(raft, small)
        shutil.move(raft, raft.parent / "kept")
        raft.symlink_to(small)
        with contextlib.suppress(OSError), (small / "fill").open("wb", buffering=0) as rest:
            while rest.write(bytes(100)):
                pass
        await cluster.cluster.respawn(home.name)  # small records still find room within the last page of the log
        with pytest.raises(errors.SkepError, match="may or may not have been made"):
            await cluster.cluster.call(home, "POST", "/configs/create", {"Name": "large", "Data": "eHh4" * 10_000})
        async with asyncio.timeout(30):
            assert await cluster.cluster.ended(home.name) == 1
        said = home.log.read_text().splitlines()[-1]
        for word in ("skepd: the manager part has failed", "No space left on device", "Free space"):
            assert word in said
        raft.unlink()
    shutil.move(raft.parent / "kept", raft)


def test_every_damage_is_named_and_nothing_is_touched(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1) as cluster:
            await cluster.skep(
                "service", "create", "--detach", "--name", "web", "--replicas", "2", "process", "sleep", "1000"
            )
            before = {task["ID"] for task in await cluster.converged("web", 2)}
            home, place = cluster.home, cluster.home.directory
            await cluster.cluster.kill(home.name)
            compact(place)
            whole = tmp_path / "whole"
            for part in ("raft", "identity"):
                shutil.copytree(place / part, whole / part)
            for name, (damage, where, words) in DAMAGES.items():
                named = str(where(place))
                damage(place)
                left = {path: path.read_bytes() for path in (place / "raft").iterdir()}
                await cluster.cluster.respawn(home.name)
                swarm = (await cluster.cluster.call(home, "GET", "/info"))["Swarm"]
                assert swarm["LocalNodeState"] == "error", name
                for word in (named, words, "from a backup"):
                    assert word in str(swarm["Error"]), name
                with pytest.raises(errors.SkepError, match="the manager part was not started"):
                    await cluster.cluster.call(home, "GET", "/services")
                await cluster.cluster.kill(home.name)
                assert {path: path.read_bytes() for path in (place / "raft").iterdir()} == left, name
                for part in ("raft", "identity"):
                    shutil.rmtree(place / part)
                    shutil.copytree(whole / part, place / part)

            if os.geteuid() == 0:
                await full_from_the_beginning(cluster)
            torn = the_log(place)  # a write that the end of the power cut off is no damage
            with torn.open("ab") as file:
                file.write(b"\xabREC\x40")
            await cluster.cluster.respawn(home.name)
            await cluster.cluster.ready()
            assert {task["ID"] for task in await cluster.converged("web", 2)} == before
            assert "raft.torn_tail_cut" in home.log.read_text()

    asyncio.run(main())


GONE: dict[str, Damage] = {
    "only the log, before there was any snapshot": lambda place: the_log(place).unlink(),
    "the whole directory": lambda place: shutil.rmtree(place / "raft"),
}


async def unreadable_for_a_while(cluster: harness.Cluster, name: str) -> None:
    """A disk that gives errors costs the manager part only, which comes back by itself once the disk works."""
    node = test_recovery.node_of(cluster, name)
    await cluster.cluster.kill(name)
    log_file = the_log(node.directory)
    kept = log_file.rename(node.directory / "kept")
    log_file.symlink_to(UNREADABLE)
    await cluster.cluster.respawn(name)
    info = await test_recovery.swarm_info(cluster, name)
    assert info["LocalNodeState"] == "error"
    for word in ("the manager part was not started: its disk fails", str(node.directory / "raft"), "repair the disk"):
        assert word in str(info["Error"])
    await cluster.cluster.ready()  # its agent works
    kept.replace(log_file)

    async def manager() -> bool:
        info = await test_recovery.swarm_info(cluster, name)
        return bool(info["ControlAvailable"]) and info["LocalNodeState"] == "active"

    await harness.until("it is a manager again", manager)


def test_one_of_three_that_lost_its_log_does_not_vote_and_comes_back_anew(tmp_path: pathlib.Path) -> None:
    """It would be the same voter without what it had acknowledged: refused, until it was demoted and promoted."""

    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            name = next(name for name in cluster.names if name != leader)
            cluster.talk_to(next(other for other in cluster.names if other not in (leader, name)))
            node = test_recovery.node_of(cluster, name)
            await unreadable_for_a_while(cluster, name)
            for number, (damage_name, damage) in enumerate(GONE.items()):
                await cluster.cluster.kill(name)
                shutil.copytree(node.directory / "raft", tmp_path / f"whole{number}")
                damage(node.directory)
                await cluster.cluster.respawn(name)
                info = await test_recovery.swarm_info(cluster, name)
                assert info["LocalNodeState"] == "error", damage_name
                for word in (str(node.directory / "raft"), "log.begun", "is missing", f"skep node demote {name}"):
                    assert word in str(info["Error"]), damage_name
                assert not any((node.directory / "raft").iterdir())
                await cluster.cluster.ready()  # its agent works
                states = {
                    n["Description"]["Hostname"]: n["ManagerStatus"]["Reachability"] for n in await cluster.nodes()
                }
                assert sorted(states.values()) == ["reachable", "reachable", "unreachable"], damage_name
                await cluster.call("POST", "/configs/create", {"Name": f"meanwhile{number}", "Data": "eHh4"})
                if number == 0:
                    await cluster.cluster.kill(name)
                    shutil.rmtree(node.directory / "raft")
                    shutil.copytree(tmp_path / f"whole{number}", node.directory / "raft")
                    await cluster.cluster.respawn(name)
                    await cluster.cluster.ready()
                    assert (await test_recovery.swarm_info(cluster, name))["ControlAvailable"], "its log is back"

            await cluster.skep("node", "demote", name)  # the way out, word for word

            async def worker() -> bool:
                return (await test_recovery.swarm_info(cluster, name))["LocalNodeState"] == "active"

            await harness.until("it is a worker", worker)
            await cluster.skep("node", "promote", name)

            async def three() -> bool:
                managers = [node.get("ManagerStatus", {}) for node in await cluster.nodes()]
                return [manager.get("Reachability") for manager in managers] == ["reachable"] * 3

            await harness.until("three managers again", three)
            cluster.talk_to(name)
            assert len(await cluster.call("GET", "/configs")) == len(GONE)

    asyncio.run(main())
