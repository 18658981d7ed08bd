"""The worst days of a manager: the quorum is gone, its log is damaged, its key is another's, its disk is full."""

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from skep import errors
from skep.cli import dev_cluster
from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SERVICE = (
    "service", "create", "--detach", "--stop-grace-period", "1s", "--name", "web", "--replicas", "6",
    "process", "sleep", "1000",
)  # fmt: skip


def node_of(cluster: harness.Cluster, name: str) -> dev_cluster.DevNode:
    return next(node for node in cluster.cluster.nodes if node.name == name)


async def swarm_info(cluster: harness.Cluster, name: str) -> dict[str, object]:
    found: dict[str, object] = (await cluster.cluster.call(node_of(cluster, name), "GET", "/info"))["Swarm"]
    return found


def pids(tasks: list[harness.Task]) -> dict[str, int]:
    return {task["ID"]: int(task["Status"]["ContainerStatus"]["PID"]) for task in tasks}


def test_the_quorum_is_lost_and_one_survivor_goes_on(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            await cluster.skep(*SERVICE)
            before = await cluster.converged("web", 6)
            survivor, *lost = cluster.names
            mine = next(n["ID"] for n in await cluster.nodes() if n["Description"]["Hostname"] == survivor)
            kept = {task["ID"]: task for task in before if task["NodeID"] == mine}
            for name in lost:
                await cluster.cluster.kill(name)

            async def leaderless() -> bool:
                with contextlib.suppress(errors.Unavailable):
                    await cluster.cluster.call(cluster.home, "GET", "/services")
                    return False
                return True

            await harness.until("there is no leader", leaderless)
            seen = await cluster.skep("--stale", "service", "ls", "--format", "{{.Name}} {{.Replicas}}")
            assert seen.out == "web 6/6\n"
            assert "answered without asking the leader: state" in seen.err
            assert len(seen.err.splitlines()) == 1
            refused = await cluster.skep("--stale", "service", "rm", "web", check=False)
            assert (refused.code, "--stale only reads" in refused.err) == (1, True)

            await cluster.skep("init", "--force-new-cluster")
            states = {node["Description"]["Hostname"]: node for node in await cluster.nodes()}
            assert states[survivor]["ManagerStatus"] == {
                "Leader": True, "Reachability": "reachable", "Addr": f"127.0.0.1:{cluster.home.port}",
            }  # fmt: skip
            for name in lost:
                assert states[name]["Spec"]["Role"] == "worker"
                assert states[name]["Status"]["State"] == "down"
            after = {task["ID"]: task for task in await cluster.converged("web", 6)}
            assert {task_id: after[task_id]["NodeID"] for task_id in kept} == dict.fromkeys(kept, mine), "nothing moved"
            assert pids(list(kept.values())).items() <= pids(list(after.values())).items()

            for name in lost:  # they come back one after the other, as workers
                await cluster.cluster.respawn(name)

                async def demoted(name: str = name) -> bool:
                    return not (await swarm_info(cluster, name))["ControlAvailable"]

                await harness.until(f"{name} is a worker", demoted)
            await cluster.cluster.ready()
            await cluster.skep("node", "promote", *lost)

            async def three() -> bool:
                return sum("ManagerStatus" in node for node in await cluster.nodes()) == 3

            await harness.until("three managers again", three)
            await cluster.converged("web", 6)

    asyncio.run(main())


def flip(path: pathlib.Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x55
    path.write_bytes(content)


def test_a_damaged_log_costs_the_manager_part_only_and_says_the_way_out(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, heartbeat_s=harness.PATIENT_S) as cluster:
            await cluster.skep(*SERVICE)
            before = pids(await cluster.converged("web", 6))
            leader = await cluster.leader()
            name = next(name for name in cluster.names if name != leader)
            cluster.talk_to(next(other for other in cluster.names if other != name))
            await cluster.cluster.kill(name)
            (log,) = (node_of(cluster, name).directory / "raft").glob("log-*")
            assert b"sleep" not in log.read_bytes(), "encrypted at rest"
            flip(log, 100)
            await cluster.cluster.respawn(name)
            info = await swarm_info(cluster, name)
            assert info["LocalNodeState"] == "error"
            for word in (str(log), "damaged record at byte", f"skep node demote {name}"):
                assert word in str(info["Error"])
            await cluster.cluster.ready()  # its agent works
            assert pids(await cluster.converged("web", 6)) == before

            await cluster.skep("node", "demote", name)  # the way out, word for word

            async def worker() -> bool:
                return (await swarm_info(cluster, name))["LocalNodeState"] == "active"

            await harness.until("it is a worker", worker)
            await cluster.skep("node", "promote", name)

            async def manager() -> bool:
                return bool((await swarm_info(cluster, name))["ControlAvailable"])

            await harness.until("it is a manager again", manager)
            assert pids(await cluster.converged("web", 6)) == before

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["missing key", "foreign key", "foreign log", "truncated log"])
def test_keys_and_logs_that_do_not_belong_here_are_refused(tmp_path: pathlib.Path, kind: str) -> None:
    async def main() -> None:
        async with (
            harness.running_cluster(tmp_path / "a", managers=1) as cluster,
            harness.running_cluster(tmp_path / "b", managers=1) as other,
        ):
            own, foreign = cluster.home.directory, other.home.directory
            await cluster.cluster.kill(cluster.home.name)
            await other.cluster.kill(other.home.name)
            (log,) = (own / "raft").glob("log-*")
            key = own / "identity" / "data.key"
            match kind:
                case "missing key":
                    key.unlink()
                    words = [str(key), "is missing"]
                case "foreign key":
                    shutil.copy(foreign / "identity" / "data.key", key)
                    words = [str(key), "belongs to another identity"]
                case "foreign log":
                    shutil.copy(next((foreign / "raft").glob("log-*")), log)
                    words = [str(log), "sealed with another key at byte 16"]
                case _:
                    log.write_bytes(log.read_bytes()[:10])
                    words = [str(log), "at byte 0"]
            await cluster.cluster.respawn(cluster.home.name)
            info = await swarm_info(cluster, cluster.home.name)
            assert info["LocalNodeState"] == "error"
            for word in [*words, "restore", "from a backup"]:
                assert word in str(info["Error"])
            with pytest.raises(errors.SkepError, match=r"the manager part was not started: .*"):
                await cluster.cluster.call(cluster.home, "GET", "/services")

    asyncio.run(main())


@contextlib.contextmanager
def small_disk(where: pathlib.Path, *, size: str) -> Iterator[None]:
    where.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "skep-test", str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_makes_the_manager_step_aside_and_leaves_the_tasks_alone(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path / "x", heartbeat_s=harness.PATIENT_S) as cluster:
            await cluster.skep(*SERVICE)
            before = pids(await cluster.converged("web", 6))
            name = await cluster.leader()
            cluster.talk_to(next(other for other in cluster.names if other != name))
            directory = node_of(cluster, name).directory
            await cluster.cluster.terminate(name)
            shutil.move(directory / "raft", directory / "raft.kept")
            with small_disk(directory / "raft", size="200k"):
                for path in (directory / "raft.kept").iterdir():
                    shutil.copy(path, directory / "raft" / path.name)
                await cluster.cluster.respawn(name)
                number = 0

                async def full() -> bool:
                    nonlocal number
                    number += 1
                    await cluster.call("POST", "/services/create", {
                        "Name": f"filler{number}", "Labels": {"x": "y" * 30_000},
                        "TaskTemplate": {"ContainerSpec": {"Image": "x", "Command": ["y"]}},
                        "Mode": {"Replicated": {"Replicas": 0}},
                    })  # fmt: skip
                    return cluster.cluster.pid(name) is None

                await harness.until("the manager with the full disk has ended", full)
                assert await cluster.cluster.ended(name) == 1
                said = node_of(cluster, name).log.read_text().splitlines()[-1]
                for word in ("skepd: the manager part has failed", "No space left on device", "Free space"):
                    assert word in said
                running = [int(task["Status"]["ContainerStatus"]["PID"]) for task in await cluster.running("web")]
                assert all(pathlib.Path(f"/proc/{pid}").exists() for pid in before.values())
                assert running
                for path in (directory / "raft").iterdir():
                    shutil.copy(path, directory / "raft.kept" / path.name)
            (directory / "raft").rmdir()
            shutil.move(directory / "raft.kept", directory / "raft")
            await cluster.cluster.respawn(name)  # there is room again
            await cluster.cluster.ready()
            names = {service["Spec"]["Name"] for service in await cluster.call("GET", "/services")}
            assert names == {"web", *(f"filler{index + 1}" for index in range(number))}
            assert pids(await cluster.converged("web", 6)) == before
            print(json.dumps({"written": number}))

    asyncio.run(main())
