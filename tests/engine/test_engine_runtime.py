"""The Docker runtime against a real engine."""

import asyncio
import os
import pathlib
import signal
import urllib.request

import pytest

from agent.runtime import base, docker
from skep import errors, ids, pb
from tests.agent.runtime import workloads
from tests.engine import conftest, dockerd


def container(**fields: object) -> pb.ContainerSpec:
    return pb.ContainerSpec(image=dockerd.BUSYBOX_IMAGE, **fields)  # type: ignore[arg-type]


def shell(
    node: conftest.Node,
    script: str,
    *,
    spec: pb.ContainerSpec | None = None,
    ports: list[pb.PortConfig] | None = None,
    limits: pb.Resources | None = None,
) -> base.Workload:
    made = spec or container(init=True)
    made.args[:] = ["sh", "-c", script]
    if not made.HasField("stop_grace_period"):
        made.stop_grace_period = 5_000_000_000
    return workloads.workload(container=made, ports=ports, limits=limits, node_id=node.node_id)


def test_lifecycle(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        said: list[str] = []
        work = shell(node, "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done", spec=container())
        task_id = work.task.id
        assert await runtime.observe(task_id) == base.ABSENT
        await runtime.prepare(work, said.append)
        await runtime.prepare(work, said.append)
        assert said[0].startswith(f"image {dockerd.BUSYBOX_IMAGE} is taken as it is here: ")  # no registry has it
        assert said[1:] == ["creating the container"]
        assert (await runtime.observe(task_id)).phase is base.Phase.CREATED
        await runtime.start(work)
        await runtime.start(work)
        seen = await runtime.observe(task_id)
        assert (seen.phase, seen.health_checked, seen.healthy) == (base.Phase.RUNNING, False, None)
        assert seen.pid > 1
        assert await runtime.list() == [task_id]
        await workloads.until(lambda: workloads.output(runtime, task_id), lambda text: "up" in text, what="trap")
        await runtime.stop(work)
        await runtime.stop(work)
        ended = await runtime.observe(task_id)
        assert (ended.phase, ended.exit_code, ended.container_id) == (base.Phase.EXITED, 3, seen.container_id)
        await runtime.start(work)  # a task is one attempt
        assert (await runtime.observe(task_id)).phase is base.Phase.EXITED
        await runtime.remove(task_id)
        await runtime.remove(task_id)
        assert await runtime.observe(task_id) == base.ABSENT

    node.run(body)


def test_exit_codes_come_as_events(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        events = runtime.events()
        assert await anext(events) == ""
        for script, exit_code in (("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)):
            work = shell(node, script)
            await workloads.run(runtime, work)
            async with asyncio.timeout(workloads.DEADLINE_S):
                while (await runtime.observe(work.task.id)).phase is not base.Phase.EXITED:
                    await anext(events)
            assert (await runtime.observe(work.task.id)).exit_code == exit_code
        await events.aclose()  # type: ignore[attr-defined]

    node.run(body)


def test_command_that_is_not_there(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = workloads.workload("no-such-program", container=container(), node_id=node.node_id)
        await runtime.prepare(work, lambda _: None)
        with pytest.raises(base.TaskFatal, match="executable file not found"):
            await runtime.start(work)
        seen = await runtime.observe(work.task.id)
        assert (seen.phase, seen.exit_code) == (base.Phase.EXITED, 127)
        assert "no-such-program" in seen.error

    node.run(body)


def test_stubborn_task_is_killed_after_its_grace(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        spec = container(stop_grace_period=1_000_000_000)
        work = shell(node, "trap '' TERM; echo up; while :; do sleep 0.1; done", spec=spec)
        await workloads.run(runtime, work)
        await workloads.until(lambda: workloads.output(runtime, work.task.id), lambda text: "up" in text, what="trap")
        await runtime.stop(work)
        assert (await runtime.observe(work.task.id)).exit_code == 137

    node.run(body)


def test_output_with_and_without_terminal(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        script = "echo out one; sleep 0.05; echo err >&2; sleep 0.05; printf last"
        plain, tty = shell(node, script), shell(node, script, spec=container(tty=True))
        for work in (plain, tty):
            await workloads.run(runtime, work)
        followed = await workloads.output(runtime, plain.task.id, base.LogOptions(follow=True))
        assert followed.startswith("out one\nerr\n")  # the engine may end before it has written a last, open line
        for work in (plain, tty):
            await workloads.until(
                lambda work=work: workloads.output(runtime, work.task.id),  # type: ignore[misc]
                lambda text: text.endswith("last"),
                what="whole output",
            )
        entries = [entry async for entry in runtime.logs(plain.task.id, base.LogOptions())]
        assert [(entry.stream, entry.data) for entry in entries] == [
            (pb.LOG_STREAM_STDOUT, b"out one\n"), (pb.LOG_STREAM_STDERR, b"err\n"), (pb.LOG_STREAM_STDOUT, b"last"),
        ]  # fmt: skip
        assert all(entry.timestamp.seconds > 1_600_000_000 for entry in entries)
        assert await workloads.output(runtime, plain.task.id, base.LogOptions(tail=1)) == "last"
        assert await workloads.output(runtime, plain.task.id, base.LogOptions(stdout=False)) == "err\n"
        entries = [entry async for entry in runtime.logs(tty.task.id, base.LogOptions())]
        assert [entry.data for entry in entries] == [b"out one\r\n", b"err\r\n", b"last"]

    node.run(body)


def test_specification_reaches_the_container(node: conftest.Node, tmp_path: pathlib.Path) -> None:
    (tmp_path / "given").write_text("from the host")
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)  # for the container's user

    async def body(runtime: docker.DockerRuntime) -> None:
        spec = container(
            env=["A=b=c", "WHO={{.Service.Name}}.{{.Task.Slot}} on {{.Node.Hostname}}"],
            dir="/tmp", user="nobody", groups=["77"], hostname="{{.Service.Name}}-{{.Task.Slot}}",
            read_only=True, labels={"team": "bees"}, hosts=["10.1.1.1 far away"], init=True,
            ulimits=[pb.Ulimit(name="nofile", soft=77, hard=99)], oom_score_adj=500,
            sysctls={"net.ipv4.ip_default_ttl": "33"},
            mounts=[
                pb.Mount(type=pb.MOUNT_TYPE_BIND, source=str(tmp_path), target="/given", read_only=True),
                pb.Mount(type=pb.MOUNT_TYPE_TMPFS, target="/scratch",
                         tmpfs_options=pb.Mount.TmpfsOptions(size_bytes=1 << 20, mode=0o1777)),
                pb.Mount(type=pb.MOUNT_TYPE_VOLUME, target="/volume"),
            ],
        )  # fmt: skip
        script = (
            "env | grep -E '^(A|WHO)='; pwd; id -u; id -G; hostname; touch /x 2>/dev/null || echo read-only; "
            "grep 10.1.1.1 /etc/hosts; ulimit -n; cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_default_ttl; "
            "cat /given/given; echo; touch /scratch/y && echo scratch; test -d /volume && echo volume"
        )
        limits = pb.Resources(nano_cpus=500_000_000, memory_bytes=64 << 20, pids=50)
        work = shell(node, script, spec=spec, limits=limits)
        await workloads.run(runtime, work)
        seen = await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
        text = await workloads.output(runtime, work.task.id)
        lines = text.splitlines()
        assert sorted(lines[:2]) == ["A=b=c", "WHO=web.1 on host1"]
        assert lines[2:4] == ["/tmp", "65534"]
        assert "77" in lines[4].split()
        assert lines[5:7] == ["web-1", "read-only"]
        hosts = [line.split() for line in lines[7:-6]]
        assert sorted(name for address, *names in hosts for name in names if address == "10.1.1.1") == ["away", "far"]
        assert lines[-6:] == ["77", "500", "33", "from the host", "scratch", "volume"]
        found = dockerd.call(node.engine.socket, "GET", f"/containers/{seen.container_id}/json")
        assert found["Name"] == f"/web.1.{work.task.id}"
        host = found["HostConfig"]
        assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 64 << 20, 50)
        assert host["RestartPolicy"]["Name"] == "no"
        labels = found["Config"]["Labels"]
        assert labels["team"] == "bees"
        assert labels["io.skep.task"] == labels["com.docker.swarm.task.id"] == work.task.id
        assert labels["io.skep.node"] == node.node_id
        volume = next(mount["Name"] for mount in found["Mounts"] if mount["Type"] == "volume")
        await runtime.remove(work.task.id)
        names = [v["Name"] for v in dockerd.call(node.engine.socket, "GET", "/volumes")["Volumes"] or []]
        assert volume not in names  # anonymous volumes go with the task

    node.run(body)


def test_published_ports(node: conftest.Node) -> None:
    if node.engine.own is not None and not node.engine.own.bridge:
        conftest.lacking("this machine does not allow a bridge")

    async def body(runtime: docker.DockerRuntime) -> None:
        script = "mkdir /tmp/w; echo hello > /tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w"
        first = shell(node, script, ports=[workloads.host_port(80)])
        seen = await workloads.run(runtime, first)
        (port,) = seen.ports
        assert (port.target_port, port.publish_mode) == (80, pb.PUBLISH_MODE_HOST)

        async def fetch() -> str:
            def get() -> str:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port.published_port}/", timeout=2) as answer:
                        return str(answer.read().decode())
                except OSError as error:
                    return str(error)

            return await asyncio.to_thread(get)

        await workloads.until(fetch, lambda text: text == "hello\n", what="answer on the published port")
        second = shell(node, script, ports=[workloads.host_port(80, published=port.published_port)])
        await runtime.prepare(second, lambda _: None)
        with pytest.raises(base.TaskFatal, match=r"port is already allocated|address already in use"):
            await runtime.start(second)

    node.run(body)


def test_health_verdicts_come_as_events(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        check = pb.HealthConfig(
            test=["CMD-SHELL", "test -e /tmp/ok"], interval=100_000_000, retries=2, timeout=5_000_000_000
        )
        script = "touch /tmp/ok; while [ ! -e /tmp/go ]; do sleep 0.1; done; rm /tmp/ok; sleep 600"
        work = shell(node, script, spec=container(healthcheck=check))
        events = runtime.events()
        seen = await workloads.run(runtime, work)
        assert seen.health_checked
        async with asyncio.timeout(workloads.DEADLINE_S):
            while (await runtime.observe(work.task.id)).healthy is not True:
                await anext(events)
            made = dockerd.call(
                node.engine.socket, "POST", f"/containers/{seen.container_id}/exec", {"Cmd": ["touch", "/tmp/go"]}
            )
            dockerd.call(node.engine.socket, "POST", f"/exec/{made['Id']}/start", {"Detach": True})
            while (await runtime.observe(work.task.id)).healthy is not False:
                await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    node.run(body)


def test_out_of_memory_in_words(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = shell(node, "exec tail /dev/zero", limits=pb.Resources(memory_bytes=16 << 20), spec=container())
        await workloads.run(runtime, work)
        seen = await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
        assert (seen.exit_code, seen.error) == (137, "out of memory")

    node.run(body)


def test_image_that_cannot_be_pulled(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        # Nothing listens there; loopback registries are asked without TLS, so no name service is involved.
        work = workloads.workload(container=pb.ContainerSpec(image="127.0.0.1:1/nothing:here"), node_id=node.node_id)
        said: list[str] = []
        with pytest.raises(base.TaskTemporary, match=r"cannot pull image 127.0.0.1:1/nothing:here: .*refused"):
            await runtime.prepare(work, said.append)
        assert said == [] or said[0].startswith("pulling")
        with pytest.raises(base.TaskFatal, match=r"invalid reference|must be lowercase"):
            await runtime.prepare(
                workloads.workload(container=pb.ContainerSpec(image="UPPER/Case"), node_id=node.node_id), said.append
            )

    node.run(body)


def test_missing_bind_source(node: conftest.Node, tmp_path: pathlib.Path) -> None:
    source = str(tmp_path / "absent")

    async def body(runtime: docker.DockerRuntime) -> None:
        mount = pb.Mount(type=pb.MOUNT_TYPE_BIND, source=source, target="/x")
        work = shell(node, "true", spec=container(mounts=[mount]))
        with pytest.raises(base.TaskFatal, match=f"invalid bind mount source, source path not found: {source}"):
            await runtime.prepare(work, lambda _: None)

    node.run(body)


def test_second_driver_adopts_and_strangers_are_left_alone(node: conftest.Node) -> None:
    socket = node.engine.socket
    stranger = dockerd.call(
        socket, "POST", "/containers/create",
        {"Image": dockerd.BUSYBOX_IMAGE, "Cmd": ["sleep", "600"], "Labels": {"io.skep.task": "notours"}},
    )["Id"]  # fmt: skip
    dockerd.call(socket, "POST", f"/containers/{stranger}/start")

    async def body(runtime: docker.DockerRuntime) -> None:
        work = shell(node, "sleep 600")
        before = await workloads.run(runtime, work)
        other = conftest.Node(node.engine, ids.new_id(workloads.RNG))
        async with other.opened() as neighbour:  # another node on the same engine
            assert await neighbour.list() == []
            assert await neighbour.observe(work.task.id) == base.ABSENT
            await neighbour.remove(work.task.id)
        again = node.make()
        await again.open()
        assert await again.list() == [work.task.id]
        assert await again.observe(work.task.id) == before
        await again.remove("notours")
        await again.stop(work)
        assert (await runtime.observe(work.task.id)).phase is base.Phase.EXITED
        await again.close()

    try:
        node.run(body)
        assert dockerd.call(socket, "GET", f"/containers/{stranger}/json")["State"]["Running"]
    finally:
        dockerd.call(socket, "DELETE", f"/containers/{stranger}?force=1")


def test_engine_crash_and_return(node: conftest.Node) -> None:
    own = node.engine.restartable()

    async def body(runtime: docker.DockerRuntime) -> None:
        stays = shell(node, "sleep 600")
        dies = shell(node, "sleep 601", spec=container())
        before, dying = await workloads.run(runtime, stays), await workloads.run(runtime, dies)
        events = runtime.events()
        assert await anext(events) == ""
        await asyncio.to_thread(own.kill)
        try:
            with pytest.raises(base.TaskTemporary, match="container engine"):
                await runtime.observe(stays.task.id)
            os.kill(dying.pid, signal.SIGKILL)  # dies while nobody can tell
        finally:
            await asyncio.to_thread(own.start)
        async with asyncio.timeout(workloads.DEADLINE_S):
            while await anext(events) != "":
                pass
        after = await runtime.observe(stays.task.id)
        assert (after.phase, after.container_id, after.pid) == (base.Phase.RUNNING, before.container_id, before.pid)
        seen = await workloads.phase(runtime, dies.task.id, base.Phase.EXITED)
        assert seen.container_id == dying.container_id
        await events.aclose()  # type: ignore[attr-defined]

    node.run(body)


def test_hung_engine_is_told_as_such(node: conftest.Node) -> None:
    own = node.engine.restartable()

    async def body(runtime: docker.DockerRuntime) -> None:
        impatient = node.make(call_s=0.3)
        await impatient.open()
        own.pause()
        try:
            with pytest.raises(base.TaskTemporary, match="does not answer GET /v1"):
                await impatient.list()
            with pytest.raises(errors.Unavailable):
                await impatient.describe()
        finally:
            own.resume()
        assert await runtime.list() == []
        await impatient.close()

    node.run(body)


def test_describe(node: conftest.Node) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        description = await runtime.describe()
        assert description.platform.os == "linux"
        assert description.resources.nano_cpus >= 1_000_000_000
        assert description.engine.engine_version
        assert {plugin.type for plugin in description.engine.plugins} >= {"Volume", "Network", "Log"}

    node.run(body)
