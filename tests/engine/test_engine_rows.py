"""Every field that docs/container-spec.md calls honoured, on a real engine."""

import dataclasses
import socket

import pytest

from agent.runtime import base, docker
from agent.runtime.docker import security
from skep import pb
from tests.agent.runtime import container_rows as rows
from tests.agent.runtime import workloads
from tests.engine import conftest, dockerd


def workload(row: rows.Row, node: conftest.Node) -> base.Workload:
    arguments = ["sh", "-c", row.script] if row.script else []
    made = workloads.workload(*arguments, container=row.spec, node_id=node.node_id)
    made.spec.task.resources.CopyFrom(row.resources)
    made.spec.task.runtime = row.runtime
    if row.log_driver is not None:
        made.spec.task.log_driver.CopyFrom(row.log_driver)
    made.node.description.engine.labels[security.ALLOW] = security.ALLOWED
    return made


def api_version(node: conftest.Node) -> tuple[int, ...]:
    return tuple(int(part) for part in dockerd.call(node.engine.socket, "GET", "/version")["ApiVersion"].split("."))


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.name)
def test_field_reaches_the_container(node: conftest.Node, row: rows.Row) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = workload(row, node)
        if api_version(node) < row.since:
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


def test_the_engine_is_told_the_platform(node: conftest.Node) -> None:
    """So it refuses an image of another one; here by a node that takes itself for what it is not."""

    async def body(runtime: docker.DockerRuntime) -> None:
        mine = (await runtime.describe()).platform
        other = pb.Platform(os=mine.os, architecture="s390x")
        for platform in (mine, other):
            work = workloads.workload("echo", "up", container=short_lived(), node_id=node.node_id)
            work.node.description.platform.CopyFrom(platform)
            work.spec.task.placement.platforms.extend([pb.Platform(os="linux", architecture="arm"), platform])
            if platform == mine or api_version(node) < (1, 41):
                await workloads.run(runtime, work)
                await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
                assert await workloads.output(runtime, work.task.id) == "up\n"
                continue
            with pytest.raises(base.TaskFatal, match="does not match the specified platform"):
                await runtime.prepare(work, lambda _: None)

    node.run(body)


def short_lived() -> pb.ContainerSpec:
    return pb.ContainerSpec(image=rows.IMAGE, stop_grace_period=1_000_000_000)


def test_volume_subpath(node: conftest.Node) -> None:
    """A part of a volume that another container has filled."""

    async def body(runtime: docker.DockerRuntime) -> None:
        name = f"skep-subpath-{node.node_id}"

        def using(script: str, *, subpath: str = "") -> base.Workload:
            volume = pb.Mount.VolumeOptions(subpath=subpath)
            mount = pb.Mount(type=pb.MOUNT_TYPE_VOLUME, source=name, target="/v", volume_options=volume)
            container = pb.ContainerSpec(image=rows.IMAGE, mounts=[mount])
            return workloads.workload("sh", "-c", script, container=container, node_id=node.node_id)

        below = using("cat /v/file; ls /v", subpath="inner")
        if api_version(node) < (1, 45):
            with pytest.raises(base.TaskFatal, match=r"volume subpath \(needs Engine API 1.45"):
                await runtime.prepare(below, lambda _: None)
            return
        try:
            for work, says in ((using("mkdir /v/inner; echo deep >/v/inner/file"), ""), (below, "deep\nfile\n")):
                await workloads.run(runtime, work)
                assert (await workloads.phase(runtime, work.task.id, base.Phase.EXITED)).exit_code == 0
                assert await workloads.output(runtime, work.task.id) == says
                await runtime.remove(work.task.id)
        finally:
            dockerd.call(node.engine.socket, "DELETE", f"/volumes/{name}")

    node.run(body)


def test_udp_port(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        port = workloads.host_port(53)
        port.protocol = pb.PORT_PROTOCOL_UDP
        work = workloads.workload(
            "sh", "-c", "exec sleep 60", container=short_lived(), ports=[port], node_id=node.node_id
        )
        (published,) = (await workloads.run(runtime, work)).ports
        assert (published.target_port, published.protocol) == (53, pb.PORT_PROTOCOL_UDP)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
            other.bind(("0.0.0.0", published.published_port))  # the machine's own port, not only the engine's word

    node.run(body)


def test_sctp_port(node: conftest.Node) -> None:
    """As far as being created: kernels may lack the protocol."""

    async def body(runtime: docker.DockerRuntime) -> None:
        port = workloads.host_port(36412, published=36412)
        port.protocol = pb.PORT_PROTOCOL_SCTP
        work = workloads.workload("true", container=short_lived(), ports=[port], node_id=node.node_id)
        await runtime.prepare(work, lambda _: None)
        seen = await runtime.observe(work.task.id)
        inspected = dockerd.call(node.engine.socket, "GET", f"/containers/{seen.container_id}/json")
        assert inspected["HostConfig"]["PortBindings"]["36412/sctp"][0]["HostPort"] == "36412"

    node.run(body)
