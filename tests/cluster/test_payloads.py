"""Secrets, configs and failure reports on a real cluster with the process runtime."""

import asyncio
import json
import pathlib

import pytest

from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

SHOW = 'echo "$(cat $SKEP_SECRETS_DIR/password) $(cat $SKEP_CONFIGS_DIR/app)"; exec sleep 1000'
CREATE = ("service", "create", "--detach", "--restart-delay", "200ms", "--stop-grace-period", "1s")


def test_secrets_reach_the_tasks_and_nothing_else(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        (tmp_path / "secret").write_text("correct-horse-battery")
        (tmp_path / "config").write_text('for {{.Service.Name}}: {{secret "password"}}')
        async with harness.running_cluster(tmp_path, managers=1, agents=1, heartbeat_s=harness.PATIENT_S) as cluster:
            await cluster.skep("secret", "create", "db", str(tmp_path / "secret"))
            await cluster.skep("config", "create", "--template-driver", "golang", "app", str(tmp_path / "config"))
            await cluster.skep(
                *CREATE, "--name", "web", "--replicas", "2", "--secret", "source=db,target=password,mode=0400",
                "--config", "app", "process", "sh", "-c", SHOW,
            )  # fmt: skip
            before = await cluster.converged("web", 2)
            assert len({task["NodeID"] for task in before}) == 2
            wanted = "correct-horse-battery for web: correct-horse-battery"

            async def told() -> bool:
                return (await cluster.skep("service", "logs", "web", check=False)).out.count(wanted) == 2

            await harness.until("both tasks read their files", told)
            refused = await cluster.skep("secret", "rm", "db", check=False)
            assert "secret 'db' is in use by the following service: web" in refused.err
            await agent_restart(cluster, before)
            await cluster.skep("service", "rm", "web")
            await cluster.skep("secret", "rm", "db")
            assert "correct-horse" not in (await cluster.skep("config", "ls", "--format", "json")).out
            found = await asyncio.to_thread(holding, tmp_path / "c", b"correct-horse-battery")
            assert [path for path in found if "agent" in path.parts or path.suffix in {".json", ".log"}] == []

    asyncio.run(main())


async def agent_restart(cluster: harness.Cluster, before: list[harness.Task]) -> None:
    """What an agent that starts again had in memory comes again, and new tasks find it."""
    victim = cluster.names[-1]
    await cluster.cluster.kill(victim)
    await cluster.cluster.respawn(victim)
    await cluster.cluster.ready()
    assert {task["ID"] for task in await cluster.converged("web", 2)} == {task["ID"] for task in before}
    await cluster.skep("service", "scale", "web=4")
    await cluster.converged("web", 4)


def holding(place: pathlib.Path, text: bytes) -> list[pathlib.Path]:
    """Files below `place`, but for the tasks' own output, that hold the text."""
    files = [path for path in place.rglob("*") if path.is_file() and not path.name.startswith("log.")]
    return [path for path in files if text in path.read_bytes()]


def test_a_failed_task_keeps_the_end_of_its_output(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1) as cluster:
            await cluster.skep(
                *CREATE, "--name", "bad", "--restart-condition", "none", "process", "sh", "-c",
                "echo the last words; kill -SEGV $$",
            )  # fmt: skip

            async def failed() -> bool:
                return [task["Status"]["State"] for task in await cluster.tasks("bad")] == ["failed"]

            await harness.until("the failure", failed)
            (task,) = await cluster.tasks("bad")
            assert task["Status"]["Err"] == "task: non-zero exit (139): killed by SIGSEGV"
            assert "LastOutput" not in task["Status"]
            shown = json.loads((await cluster.skep("task", "inspect", task["ID"])).out)
            assert shown[0]["Status"]["LastOutput"] == "the last words\n"

    asyncio.run(main())
