"""The process runtime with real processes."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import sys
import textwrap

import pytest

from agent.runtime import base, process
from agent.runtime.process import cgroups, proof
from agent.runtime.process import files as process_files
from skep import pb
from tests.agent.runtime import processes, workloads


def test_lifecycle(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload("sh", "-c", "echo out; echo err >&2; exec sleep 600")
        task_id = work.task.id
        assert await runtime.observe(task_id) == base.ABSENT
        await runtime.prepare(work, lambda _: None)
        await runtime.prepare(work, lambda _: None)
        assert (await runtime.observe(task_id)).phase is base.Phase.CREATED
        await runtime.start(work)
        await runtime.start(work)
        seen = await runtime.observe(task_id)
        assert seen.phase is base.Phase.RUNNING
        assert not processes.gone(seen.pid)
        assert await runtime.list() == [task_id]
        await workloads.until(lambda: workloads.output(runtime, task_id), lambda text: "err\n" in text, what="output")
        await runtime.stop(work)
        await runtime.stop(work)
        ended = await runtime.observe(task_id)
        assert (ended.phase, ended.exit_code, ended.error) == (base.Phase.EXITED, 143, "killed by SIGTERM")
        assert processes.gone(seen.pid)
        await runtime.start(work)
        assert (await runtime.observe(task_id)).phase is base.Phase.EXITED
        lines = [(entry.stream, entry.data) async for entry in runtime.logs(task_id, base.LogOptions())]
        assert sorted(lines) == [(pb.LOG_STREAM_STDOUT, b"out\n"), (pb.LOG_STREAM_STDERR, b"err\n")]
        await runtime.remove(task_id)
        await runtime.remove(task_id)
        assert await runtime.observe(task_id) == base.ABSENT
        assert not list((tmp_path / "tasks").iterdir())

    processes.with_runtime(tmp_path / "tasks", body)


@pytest.mark.parametrize(("script", "exit_code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
def test_exit_code_and_event(tmp_path: pathlib.Path, script: str, exit_code: int) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload("sh", "-c", script)
        events = runtime.events()
        assert await anext(events) == ""
        await workloads.run(runtime, work)
        async with asyncio.timeout(workloads.DEADLINE_S):
            while (await runtime.observe(work.task.id)).phase is not base.Phase.EXITED:
                assert await anext(events) in {"", work.task.id}
        assert (await runtime.observe(work.task.id)).exit_code == exit_code

    processes.with_runtime(tmp_path, body)


@pytest.mark.parametrize(
    ("command", "exit_code", "words"),
    [
        ("no-such-program-anywhere", 127, "executable file not found"),
        ("/etc/passwd", 126, "permission denied"),
    ],
)
def test_start_failure_in_words(tmp_path: pathlib.Path, command: str, exit_code: int, words: str) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(command)
        await runtime.prepare(work, lambda _: None)
        with pytest.raises(base.TaskFatal, match=words):
            await runtime.start(work)
        seen = await runtime.observe(work.task.id)
        assert (seen.phase, seen.exit_code) == (base.Phase.EXITED, exit_code)
        assert words in seen.error

    processes.with_runtime(tmp_path, body)


def test_stop_signal_grace_and_kill(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        polite = workloads.workload(
            "sh", "-c", "trap 'echo bye; exit 3' INT; echo up; while :; do sleep 0.05; done",
            container=pb.ContainerSpec(stop_signal="SIGINT"),
        )  # fmt: skip
        stubborn = workloads.workload(
            "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done",
            container=pb.ContainerSpec(stop_grace_period=200_000_000),
        )  # fmt: skip
        for work, exit_code in ((polite, 3), (stubborn, 137)):
            await workloads.run(runtime, work)
            await workloads.until(
                lambda work=work: workloads.output(runtime, work.task.id),  # type: ignore[misc]
                lambda text: "up\n" in text,
                what="trap",
            )
            await runtime.stop(work)
            seen = await runtime.observe(work.task.id)
            assert (seen.phase, seen.exit_code) == (base.Phase.EXITED, exit_code)
        assert "bye" in await workloads.output(runtime, polite.task.id)

    processes.with_runtime(tmp_path, body)


def test_grandchildren_end_with_the_task(tmp_path: pathlib.Path) -> None:
    script = textwrap.dedent("""
        import os, time
        if os.fork() == 0:
            os.setsid()                      # out of the group and of the session
            if os.fork() == 0:
                os.setsid()
                print("grandchild", os.getpid(), flush=True)
                time.sleep(600)
            os._exit(0)
        os.wait()
        time.sleep(600)
    """)

    async def body(runtime: process.ProcessRuntime) -> None:
        for ending in ("stop", "crash"):
            work = workloads.workload(sys.executable, "-c", script)
            seen = await workloads.run(runtime, work)
            text = await workloads.until(
                lambda work=work: workloads.output(runtime, work.task.id),  # type: ignore[misc]
                lambda text: "grandchild" in text,
                what="grandchild",
            )
            grandchild = int(text.split()[1])
            assert not processes.gone(grandchild)
            if ending == "stop":
                await runtime.stop(work)
            else:
                os.kill(seen.pid, signal.SIGKILL)
                await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
            assert processes.gone(grandchild)

    processes.with_runtime(tmp_path, body)


def test_output_is_rotated_and_followed(tmp_path: pathlib.Path) -> None:
    # 300 kB through three files of 64 kB: the oldest lines are gone, the newest are whole and in order.
    container = pb.ContainerSpec()
    dots = "." * 76
    script = f"i=0; while [ $i -lt 3000 ]; do echo line $i {dots}; i=$((i+1)); done; printf end"

    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload("sh", "-c", script, container=container)
        work.spec.task.log_driver.name = "json-file"
        work.spec.task.log_driver.options.update({"max-size": "64k", "max-file": "3"})
        await workloads.run(runtime, work)
        followed = await workloads.output(runtime, work.task.id, base.LogOptions(follow=True))
        assert followed.endswith("end")
        await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
        logs = sorted((tmp_path / work.task.id).glob("log.*"))
        assert len(logs) == 3
        assert all(path.stat().st_size <= 64 * 1024 for path in logs)
        kept = (await workloads.output(runtime, work.task.id)).splitlines()
        numbers = [int(line.split()[1]) for line in kept[:-1]]
        assert numbers == list(range(numbers[0], 3000))
        assert numbers[0] > 0
        tail = await workloads.output(runtime, work.task.id, base.LogOptions(tail=2))
        assert [line.split()[0] for line in tail.splitlines()] == ["line", "end"]
        assert await workloads.output(runtime, work.task.id, base.LogOptions(since=4e9)) == ""

    processes.with_runtime(tmp_path, body)


def test_environment_is_clean_and_expanded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_SECRET", "x")

    async def body(runtime: process.ProcessRuntime) -> None:
        container = pb.ContainerSpec(env=["A=b=c", "WHO={{.Service.Name}}.{{.Task.Slot}} on {{.Node.Hostname}}"])
        work = workloads.workload(
            "sh", "-c", "env; pwd", container=container, ports=[workloads.host_port(80), workloads.host_port(81)]
        )
        await workloads.run(runtime, work)
        seen = await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
        lines = (await workloads.output(runtime, work.task.id)).splitlines()
        env = dict(line.split("=", 1) for line in lines if "=" in line)
        published = [str(port.published_port) for port in seen.ports]
        assert env["A"] == "b=c"
        assert env["WHO"] == "web.1 on host1"
        assert env["SKEP_TASK_ID"] == work.task.id
        assert env["SKEP_TASK_NAME"] == f"web.1.{work.task.id}"
        assert [env["SKEP_PORT_80"], env["SKEP_PORT_81"], env["PORT"]] == [*published, published[0]]
        assert "AGENT_SECRET" not in env
        assert lines[-1] == str(tmp_path / work.task.id / "work")

    processes.with_runtime(tmp_path, body)


def test_published_port_is_served_and_a_taken_one_is_named(tmp_path: pathlib.Path) -> None:
    server = (
        "import http.server, os; "
        "http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler)"
        ".serve_forever()"
    )

    def reachable(port: int) -> bool:
        with contextlib.closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    async def body(runtime: process.ProcessRuntime) -> None:
        first = workloads.workload(sys.executable, "-c", server, ports=[workloads.host_port(80)])
        seen = await workloads.run(runtime, first)
        port = seen.ports[0].published_port

        async def look() -> bool:
            return reachable(port)

        await workloads.until(look, bool, what="server")
        second = workloads.workload("sleep", "600", ports=[workloads.host_port(80, published=port)])
        await runtime.prepare(second, lambda _: None)  # the next task of a stop-first update is prepared early
        with pytest.raises(base.TaskFatal, match=f"host port {port} is already in use"):
            await runtime.start(second)
        await runtime.stop(first)
        await runtime.start(second)
        assert (await runtime.observe(second.task.id)).phase is base.Phase.RUNNING

    processes.with_runtime(tmp_path, body)


def test_health_check_gives_verdicts(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        check = pb.HealthConfig(
            test=["CMD-SHELL", "test -e healthy"], interval=50_000_000, retries=2, timeout=5_000_000_000
        )
        work = workloads.workload("sleep", "600", container=pb.ContainerSpec(healthcheck=check))
        seen = await workloads.run(runtime, work)
        assert (seen.health_checked, seen.healthy) == (True, None)
        events = runtime.events()
        flag = tmp_path / work.task.id / "work" / "healthy"
        flag.touch()
        async with asyncio.timeout(workloads.DEADLINE_S):
            while (await runtime.observe(work.task.id)).healthy is not True:
                await anext(events)
            flag.unlink()
            while (await runtime.observe(work.task.id)).healthy is not False:
                await anext(events)

    processes.with_runtime(tmp_path, body)


def test_slow_health_check_is_cut_off(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        check = pb.HealthConfig(test=["CMD", "sleep", "600"], interval=20_000_000, retries=1, timeout=100_000_000)
        work = workloads.workload("sleep", "600", container=pb.ContainerSpec(healthcheck=check))
        await workloads.run(runtime, work)
        await workloads.until(
            lambda: runtime.observe(work.task.id), lambda seen: seen.healthy is False, what="unhealthy"
        )

    processes.with_runtime(tmp_path, body)


def test_task_and_health_check_live_under_the_task_s_limits(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        processes.need_limits(runtime, "memory")
        check = pb.HealthConfig(
            test=["CMD-SHELL", "sleep 0.3; cp /proc/self/cgroup checked"], interval=50_000_000, timeout=5_000_000_000
        )
        work = workloads.workload(
            "sh", "-c", "cp /proc/self/cgroup task; exec sleep 600", container=pb.ContainerSpec(healthcheck=check)
        )
        work.spec.task.resources.limits.memory_bytes = 64 << 20
        await workloads.run(runtime, work)
        await workloads.until(lambda: runtime.observe(work.task.id), lambda seen: seen.healthy is True, what="healthy")
        place = tmp_path / work.task.id / "work"
        own = (place / "task").read_text()
        assert work.task.id in own
        assert (place / "checked").read_text() == own

    processes.with_runtime(tmp_path, body)


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (pb.ContainerSpec(image="nginx"), "give the service a command"),
        (pb.ContainerSpec(args=["x"], mounts=[pb.Mount(target="/x")]), "mounts"),
        (pb.ContainerSpec(args=["x"], read_only=True, tty=True), "read-only root, tty"),
        (pb.ContainerSpec(args=["x"], user="no-such-user"), "no such user"),
        (pb.ContainerSpec(args=["x"], stop_signal="SIGNOPE"), "stop signal 'SIGNOPE'"),
        (pb.ContainerSpec(args=["x"], dir="here"), "absolute"),
        (pb.ContainerSpec(args=["x"], env=["A={{.Nope}}"]), r"expanding env A failed"),
        (pb.ContainerSpec(args=["x"], healthcheck=pb.HealthConfig(test=["WHAT"])), "health check"),
        (pb.ContainerSpec(args=["x"], ulimits=[pb.Ulimit(name="bananas")]), "unknown ulimit"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: pathlib.Path, container: pb.ContainerSpec, words: str
) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(container=container)
        with pytest.raises(base.TaskFatal, match=words):
            await runtime.prepare(work, lambda _: None)
        assert await runtime.observe(work.task.id) == base.ABSENT

    processes.with_runtime(tmp_path, body)


def test_missing_directory_is_named(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload("pwd", container=pb.ContainerSpec(dir="/no/such/place"))
        await runtime.prepare(work, lambda _: None)
        with pytest.raises(base.TaskFatal, match="/no/such/place: no such file or directory"):
            await runtime.start(work)

    processes.with_runtime(tmp_path, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start programs as another user")
def test_user_and_ulimit(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        container = pb.ContainerSpec(user="nobody", ulimits=[pb.Ulimit(name="nofile", soft=77, hard=99)])
        work = workloads.workload("sh", "-c", "id -un; ulimit -n; ulimit -Hn; touch x && echo ok", container=container)
        await workloads.run(runtime, work)
        await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
        assert (await workloads.output(runtime, work.task.id)).split() == ["nobody", "77", "99", "ok"]

    processes.with_runtime(tmp_path, body)


def test_a_limit_that_nothing_enforces_is_refused_and_never_dropped(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        runtime._cgroups = cgroups.Cgroups(node_id=workloads.NODE_ID)  # as without root: not opened, it has none
        assert (await runtime.describe()).engine.labels["io.skep.process.limits"] == "none"
        work = workloads.workload("true", limits=pb.Resources(memory_bytes=32 << 20))
        with pytest.raises(base.TaskFatal, match=r"cannot honour: limits of memory \(this node enforces: none; "):
            await runtime.prepare(work, lambda _: None)
        assert await runtime.observe(work.task.id) == base.ABSENT

    processes.with_runtime(tmp_path, body)


def test_memory_limit_is_told_as_out_of_memory(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        processes.need_limits(runtime, "memory")
        assert "memory" in (await runtime.describe()).engine.labels["io.skep.process.limits"]
        work = workloads.workload(
            sys.executable, "-c", "x = bytearray(200_000_000); x[::4096] = b'x' * len(x[::4096])",
            limits=pb.Resources(memory_bytes=32 << 20),
        )  # fmt: skip
        await workloads.run(runtime, work)
        seen = await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
        assert (seen.exit_code, seen.error) == (137, "out of memory")

    processes.with_runtime(tmp_path, body)


def test_describe(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        description = await runtime.describe()
        assert description.engine.runtime == "process"
        assert description.resources.nano_cpus >= 1_000_000_000
        assert description.resources.memory_bytes > 1 << 20

    processes.with_runtime(tmp_path, body)


def test_supervisor_is_small_and_starts_fast(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload("sleep", "600")
        await workloads.run(runtime, work)
        shim_pid = json.loads((tmp_path / work.task.id / "run.json").read_text())["shim_pid"]
        status = (proof.PROC / str(shim_pid) / "status").read_text()
        rss_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        assert rss_kb < 15 * 1024

    processes.with_runtime(tmp_path, body)


def test_secrets_and_configs_are_files_in_memory_that_end_with_the_task(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        files = (
            workloads.file("password", b"hush", mode=0o400),
            workloads.file("etc/app", b"a=1\n", kind="config", mode=0o444),
        )
        script = 'cat "$SKEP_SECRETS_DIR/password"; cat "$SKEP_CONFIGS_DIR/etc/app"; echo "$SKEP_SECRETS_DIR"'
        work = workloads.workload("sh", "-c", script, files=files)
        await workloads.run(runtime, work)
        await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
        text = await workloads.output(runtime, work.task.id)
        assert text.startswith("husha=1\n/")
        where = pathlib.Path(text.splitlines()[-1])
        assert b"hush" not in b"".join(each.read_bytes() for each in (tmp_path / work.task.id).glob("*.json"))

        async def gone() -> bool:
            return not where.exists()

        await workloads.until(gone, bool, what="end of the files")
        absolute = workloads.workload("true", files=(workloads.file("/etc/x", b"x"),))
        with pytest.raises(base.TaskFatal, match=r"target /etc/x: the process runtime keeps files in \$SKEP_SECRETS"):
            await runtime.prepare(absolute, lambda _: None)

    processes.with_runtime(tmp_path, body)


@pytest.mark.parametrize("how", ["ended before it was watched", "never started", "ended while no agent ran"])
def test_files_end_with_the_task_however_it_ends(tmp_path: pathlib.Path, how: str) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        work = workloads.workload(
            "no-such-program" if how == "never started" else "true", files=(workloads.file("password", b"hush"),)
        )
        task_id = work.task.id
        launch = runtime._launch

        async def launched_and_over(directory: process_files.TaskDirectory) -> None:
            await launch(directory)

            async def ended() -> bool:
                return directory.read_exit() is not None

            await workloads.until(ended, bool, what="the exit")
            if how == "ended while no agent ran":
                raise base.TaskTemporary("the agent dies")

        runtime._launch = launched_and_over  # type: ignore[method-assign]
        await runtime.prepare(work, lambda _: None)
        assert runtime._vault.tasks() == [task_id]
        if how == "ended before it was watched":
            await runtime.start(work)
        else:
            with pytest.raises(base.TaskFatal if how == "never started" else base.TaskTemporary):
                await runtime.start(work)

        async def kept() -> list[str]:
            return runtime._vault.tasks()

        if how == "ended while no agent ran":
            async with processes.opened(tmp_path):
                await workloads.until(kept, lambda held: held == [], what="the end of the files")
        else:
            await workloads.until(kept, lambda held: held == [], what="the end of the files")

    processes.with_runtime(tmp_path, body)


def test_signals_are_told_from_exit_codes(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        for script, code, error in (("kill -SEGV $$", 139, "killed by SIGSEGV"), ("exit 139", 139, "")):
            work = workloads.workload("sh", "-c", script)
            await workloads.run(runtime, work)
            seen = await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
            assert (seen.exit_code, seen.error) == (code, error)

    processes.with_runtime(tmp_path, body)
