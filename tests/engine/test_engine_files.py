"""Secrets and configs in containers of a real engine."""

import pathlib

import pytest

from agent.runtime import base, docker
from skep import pb
from tests.agent.runtime import workloads
from tests.engine import conftest, dockerd


def kept(task_id: str) -> list[pathlib.Path]:
    places = (pathlib.Path("/run"), pathlib.Path("/dev/shm"))
    return [found for place in places for found in place.glob(f"skep-files-*/*/{task_id}")]


@pytest.mark.parametrize("read_only", [False, True])
def test_each_reference_is_a_read_only_file_with_its_owner_and_mode(node: conftest.Node, read_only: bool) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        files = (
            workloads.file("password", b"hush"),
            workloads.file("again", b"hush", uid=5, gid=77, mode=0o400),  # the same secret: the first is not touched
            workloads.file("/etc/app/x.conf", b"a=1\n", kind="config", path="/etc/app/x.conf", mode=0o440),
        )
        script = (
            "cat /run/secrets/password; cat /etc/app/x.conf; "
            "stat -c '%n %u:%g %a' /run/secrets/password /run/secrets/again /etc/app/x.conf; "
            "echo y 2>/dev/null >/run/secrets/password || echo refused; sleep 600"
        )
        spec = pb.ContainerSpec(image=dockerd.BUSYBOX_IMAGE, read_only=read_only, init=True)
        work = workloads.workload("sh", "-c", script, container=spec, files=files, node_id=node.node_id)
        seen = await workloads.run(runtime, work)
        task_id = work.task.id
        text = await workloads.until(
            lambda: workloads.output(runtime, task_id), lambda text: "refused" in text, what="output"
        )
        assert text.splitlines() == [
            "husha=1", "/run/secrets/password 0:0 444", "/run/secrets/again 5:77 400", "/etc/app/x.conf 0:0 440",
            "refused",
        ]  # fmt: skip
        assert len(kept(task_id)) == 1
        changes = dockerd.call(node.engine.socket, "GET", f"/containers/{seen.container_id}/changes") or []
        assert all(change["Kind"] != 0 or not change["Path"].endswith("x.conf") for change in changes)
        await runtime.stop(work)
        assert (await runtime.observe(task_id)).phase is base.Phase.EXITED
        assert kept(task_id) == []  # a container that has ended needs them no more
        await runtime.remove(task_id)

    node.run(body)


def test_files_of_a_task_that_never_got_a_container_are_found_and_removed(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        spec = pb.ContainerSpec(image="127.0.0.1:1/nothing:here")
        work = workloads.workload(container=spec, files=(workloads.file("a", b"hush"),), node_id=node.node_id)
        with pytest.raises(base.TaskTemporary):
            await runtime.prepare(work, lambda _: None)
        assert await runtime.list() == [work.task.id]
        await runtime.remove(work.task.id)
        assert await runtime.list() == []
        assert kept(work.task.id) == []

    node.run(body)
