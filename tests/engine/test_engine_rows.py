"""Every field that docs/container-spec.md calls honoured, on a real engine."""

import dataclasses

import pytest

from agent.runtime import base, docker
from agent.runtime.docker import security
from tests.agent.runtime import container_rows as rows
from tests.agent.runtime import workloads
from tests.engine import conftest, dockerd


def workload(row: rows.Row, node: conftest.Node) -> base.Workload:
    arguments = ["sh", "-c", row.script] if row.script else []
    made = workloads.workload(*arguments, container=row.spec, node_id=node.node_id)
    made.spec.task.resources.CopyFrom(row.resources)
    if row.log_driver is not None:
        made.spec.task.log_driver.CopyFrom(row.log_driver)
    made.node.description.engine.labels[security.ALLOW] = security.ALLOWED
    return made


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.name)
def test_field_reaches_the_container(node: conftest.Node, row: rows.Row) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = workload(row, node)
        version = dockerd.call(node.engine.socket, "GET", "/version")["ApiVersion"]
        if tuple(int(part) for part in version.split(".")) < row.since:
            with pytest.raises(base.TaskFatal, match=row.refusal):
                await runtime.prepare(work, lambda _: None)
            return
        await runtime.prepare(work, lambda _: None)
        seen = await runtime.observe(work.task.id)
        if row.runs:
            await runtime.start(work)
            seen = await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
            assert (seen.exit_code, seen.error) == (0, "")
            text = await workloads.output(runtime, work.task.id)
            assert text.replace("\r", "").strip() == row.says
        inspected = dockerd.call(node.engine.socket, "GET", f"/containers/{seen.container_id}/json")
        assert row.shows(inspected) in row.expected

    node.run(body)


def test_devices_only_where_the_node_allows_them(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        for row in rows.ROWS:
            if row.name in {"ContainerSpec.Devices", "ContainerSpec.Privileged"}:
                work = workload(row, node)
                work.node.description.engine.labels.clear()
                with pytest.raises(base.TaskFatal, match=r"this node does not allow it: its label io.skep.privileged"):
                    await runtime.prepare(dataclasses.replace(work), lambda _: None)

    node.run(body)
