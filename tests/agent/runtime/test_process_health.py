"""Health checks that ask a port of the task."""

import pathlib

import pytest

from agent.runtime import base, process
from agent.runtime.process import health
from skep import pb
from tests.agent.runtime import processes, workloads

FAST = {"interval": 50_000_000, "retries": 2, "timeout": 2_000_000_000}
# Answers /ok with 200 and everything else with 500, on the port that it was given.
SERVER = """
import http.server, os, pathlib
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.path == "/ok" and not pathlib.Path("broken").exists()
        self.send_response(200 if good else 500); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"""


def checked(*test: str) -> pb.HealthConfig:
    return pb.HealthConfig(test=test, **FAST)


@pytest.mark.parametrize(
    ("test", "kind", "port"),
    [(["HTTP", "/ok", "80"], "http", 30_000), (["TCP", "80"], "tcp", 30_000), (["TCP", "7"], "tcp", 7)],
)
def test_a_target_port_means_the_published_one(test: list[str], kind: str, port: int) -> None:
    made = health.parse(checked(*test), ports=[workloads.host_port(80, published=30_000)])
    assert made is not None
    assert (made.kind, made.port, made.test) == (kind, port, [])


@pytest.mark.parametrize(
    "test", [["HTTP", "ok", "80"], ["HTTP", "/a\nb", "80"], ["HTTP", "/"], ["TCP", "0"], ["TCP", "x"], ["TCP"], ["CMD"]]
)
def test_what_is_no_check(test: list[str]) -> None:
    with pytest.raises(base.TaskFatal, match="health check"):
        health.parse(checked(*test))


@pytest.mark.parametrize("test", [("HTTP", "/ok", "80"), ("TCP", "80")])
def test_a_task_is_healthy_once_its_port_answers(tmp_path: pathlib.Path, test: tuple[str, ...]) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        spec = pb.ContainerSpec(healthcheck=checked(*test))
        work = workloads.workload("python3", "-c", SERVER, container=spec, ports=[workloads.host_port(80)])
        await workloads.run(runtime, work)
        await workloads.until(lambda: runtime.observe(work.task.id), lambda seen: seen.healthy is True, what="healthy")

    processes.with_runtime(tmp_path, body)


def test_a_wrong_status_and_a_closed_port_are_unhealthy(tmp_path: pathlib.Path) -> None:
    async def body(runtime: process.ProcessRuntime) -> None:
        server = ("python3", "-c", SERVER)
        for command, test in ((server, ("HTTP", "/nope", "80")), (("sleep", "600"), ("TCP", "80"))):
            spec = pb.ContainerSpec(healthcheck=checked(*test))
            work = workloads.workload(*command, container=spec, ports=[workloads.host_port(80)])
            await workloads.run(runtime, work)
            await workloads.until(
                lambda task_id=work.task.id: runtime.observe(task_id),  # type: ignore[misc]
                lambda seen: seen.healthy is False,
                what="unhealthy",
            )

    processes.with_runtime(tmp_path, body)
