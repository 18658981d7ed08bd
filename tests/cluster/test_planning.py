"""Plans that come true, explanations and what-if on a real cluster with the process runtime."""

import asyncio
import json
import pathlib
from typing import Any

import pytest

from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SLEEPER = ("process", "sh", "-c", "echo version $VERSION; exec sleep 1000")
CREATE = ("service", "create", "--detach", "--restart-delay", "200ms", "--stop-grace-period", "2s")
NOTHING, CHANGES, INFEASIBLE = 0, 2, 3


def test_what_is_planned_comes_about(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path) as cluster:
            await plan_and_apply(cluster)
            await explain(cluster)
            await what_if(cluster)
            await back_to_any_revision(cluster)

    asyncio.run(main())


async def plan(cluster: harness.Cluster, code: int, *arguments: str) -> dict[str, Any]:
    """The plan as JSON; the command must end with `code`."""
    head, *rest = arguments
    noun = [head, rest[0], "--json", *rest[1:]]  # before the image: what follows it belongs to the task
    outcome = await cluster.skep(*noun, check=False)
    assert outcome.code == code, outcome
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def placement(tasks: list[harness.Task]) -> dict[int, str]:
    return {int(task["Slot"]): str(task["NodeID"]) for task in tasks}


async def plan_and_apply(cluster: harness.Cluster) -> None:
    creation = (*CREATE, "--name", "web", "--replicas", "3", "--env", "VERSION=1", "--update-monitor", "500ms")
    planned = await plan(cluster, CHANGES, *creation, "--plan", *SLEEPER)
    assert planned["AtRest"]
    assert planned["Services"][0]["Counts"] == {"new": 3}
    assert await cluster.call("GET", "/services") == []
    await cluster.skep(*creation, *SLEEPER)
    assert placement(await cluster.converged("web", 3)) == goals(planned)

    update = ("service", "update", "--env-add", "VERSION=2", "--replicas", "5", "web")
    planned = await plan(cluster, CHANGES, *update, "--plan")
    assert [each["Path"] for each in planned["Fields"]] == [
        "TaskTemplate.ContainerSpec.Env", "Mode.Replicated.Replicas",
    ]  # fmt: skip
    assert planned["Services"][0]["UpdateStatus"]["State"] == "completed"
    await cluster.skep(*update)
    assert placement(await cluster.converged("web", 5)) == goals(planned)
    await plan(cluster, NOTHING, *update, "--plan")

    victim = next(name for name in cluster.names if name != cluster.home.name)
    drain = ("node", "update", "--availability", "drain", victim)
    planned = await plan(cluster, CHANGES, *drain, "--plan")
    counts = planned["Services"][0]["Counts"]
    assert counts["kept"] + counts["moved"] == 5
    await cluster.skep(*drain)
    ids = {node["Description"]["Hostname"]: node["ID"] for node in await cluster.nodes()}

    async def emptied() -> bool:
        return all(task.get("NodeID") != ids[victim] for task in await cluster.running("web"))

    await harness.until("the drained node is empty", emptied)
    assert placement(await cluster.converged("web", 5)) == goals(planned)
    await cluster.skep("node", "activate", victim)


def goals(planned: dict[str, Any]) -> dict[int, str]:
    """Where the plan has the tasks of its first service."""
    return {each["Slot"]: each["To"] for each in planned["Services"][0]["Tasks"] if each["To"]}


async def explain(cluster: harness.Cluster) -> None:
    huge = (*CREATE, "--name", "huge", "--reserve-memory", "900g", "--constraint", "node.labels.disk==ssd")
    planned = await plan(cluster, INFEASIBLE, *huge, "--plan", *SLEEPER)
    assert "memory" in planned["Services"][0]["Tasks"][0]["Reason"]
    await cluster.skep(*huge, *SLEEPER)

    async def waits() -> bool:
        return any(task["Status"].get("Err") for task in await cluster.tasks("huge"))

    await harness.until("the reason in the task's status", waits)
    (task,) = await cluster.tasks("huge")
    found = json.loads((await cluster.skep("explain", "--json", "task", "huge.1", "--why-not", cluster.names[0])).out)
    assert found["Summary"] == task["Status"]["Err"]
    (node,) = found["Nodes"]
    assert [each["Rule"] for each in node["Failing"]] == ["memory", "constraint"]
    told = await cluster.skep("explain", "service", "huge")
    assert "Nearest remedy: free " in told.out
    assert "skep node update --label-add disk=ssd" in told.out
    assert "huge.1 waits for a node; not here" in (await cluster.skep("explain", "node", "self")).out
    await cluster.skep("service", "rm", "huge")


async def what_if(cluster: harness.Cluster) -> None:
    await cluster.converged("web", 5)
    before = placement(await cluster.running("web"))
    lost = await plan(cluster, CHANGES, "what-if", "lose", cluster.names[2])
    gone = sum(node["Before"] for node in lost["Nodes"] if node["Name"] == cluster.names[2])
    assert lost["Services"][0]["Counts"].get("moved", 0) == gone
    assert placement(await cluster.running("web")) == before, "a question moves nothing"
    quorum = await plan(cluster, INFEASIBLE, "what-if", "lose", *cluster.names[1:])
    assert "quorum" in quorum["Notes"][0]
    await plan(cluster, NOTHING, "what-if", "add", "2x4cpu8g")


async def back_to_any_revision(cluster: harness.Cluster) -> None:
    history = await cluster.skep("service", "history", "--format", "{{.Number}} {{.Standing}}", "web")
    assert history.out.splitlines() == ["2 current", "1 previous"]
    await cluster.skep("service", "update", "--env-add", "VERSION=3", "web")
    rollback = ("service", "rollback", "--to", "1", "web")
    planned = await plan(cluster, CHANGES, *rollback, "--plan")
    await cluster.skep(*rollback)
    tasks = await cluster.converged("web", 3)
    assert placement(tasks) == goals(planned)
    assert all("VERSION=1" in task["Spec"]["ContainerSpec"]["Env"] for task in tasks)
