"""An engine for the tests of this folder: the one in SKEP_TEST_DOCKER_HOST, or one that the session starts itself.

SKEP_ENGINE=podman starts Podman's service in place of a Docker Engine; docs/podman.md says what it cannot do.
"""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from agent.runtime import docker
from skep import clock, ids
from tests.engine import dockerd, podmand, registry

HOST_VARIABLE, REQUIRED_VARIABLE, KIND_VARIABLE = "SKEP_TEST_DOCKER_HOST", "SKEP_REQUIRE_ENGINE", "SKEP_ENGINE"
Own = dockerd.OwnDockerd | podmand.OwnPodman


@dataclasses.dataclass(frozen=True)
class Engine:
    """Where the tests' engine listens; `own` when the session started it and may restart it."""

    socket: pathlib.Path
    own: Own | None
    authority: registry.Authority | None = None  # trusted by the engine

    def restartable(self) -> Own:
        """The engine to crash and restart; skips the test where it is somebody else's."""
        if self.own is None:
            pytest.skip(f"the engine in {HOST_VARIABLE} is not ours to restart")
        return self.own


def lacking(what: str) -> None:
    """The machine lacks something that tests need: they are skipped, or fail where the engine is required."""
    if os.environ.get(REQUIRED_VARIABLE) == "1":
        pytest.fail(what)
    pytest.skip(what)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the engine is marked so."""
    for item in items:
        if pathlib.Path(__file__).parent in item.path.parents:
            item.add_marker("engine")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine with the image skep/busybox:1."""
    given = os.environ.get(HOST_VARIABLE, "")
    if given:
        socket = pathlib.Path(given.removeprefix("unix://"))
        dockerd.import_busybox(socket)
        yield Engine(socket, None)
        dockerd.call(socket, "DELETE", f"/images/{dockerd.BUSYBOX_IMAGE}?force=1")
        return
    with_podman = os.environ.get(KIND_VARIABLE, "docker") == "podman"
    missing = podmand.missing() if with_podman else dockerd.missing()
    if missing:
        if with_podman:
            pytest.fail(missing)
        lacking(f"no container engine: {missing}; {HOST_VARIABLE} may name one")
    own: Own = podmand.OwnPodman() if with_podman else dockerd.OwnDockerd()
    authority = registry.Authority()
    own.trusted.write_bytes(authority.pem)
    try:
        own.start()
        dockerd.import_busybox(own.socket)
        yield Engine(own.socket, own, authority)
    finally:
        own.stop()


@dataclasses.dataclass(frozen=True)
class Node:
    """Runs a test's coroutine against a runtime of its own node ID."""

    engine: Engine
    node_id: str

    def make(self, *, call_s: float = 30.0) -> docker.DockerRuntime:
        """Another driver for the same node."""
        return docker.DockerRuntime(
            node_id=self.node_id, socket=f"unix://{self.engine.socket}", call_s=call_s,
            clock=clock.SystemClock(), rng=ids.system_rng(),
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[docker.DockerRuntime]:
        """Removes the node's containers in the end."""
        runtime = self.make()
        await runtime.open()
        try:
            yield runtime
        finally:
            for task_id in await runtime.list():
                await runtime.remove(task_id)
            await runtime.close()

    def run(self, body: Callable[[docker.DockerRuntime], Awaitable[None]]) -> None:
        """Runs the coroutine to its end."""

        async def main() -> None:
            async with self.opened() as runtime:
                await body(runtime)

        asyncio.run(main())


@pytest.fixture
def node(engine: Engine) -> Node:
    """A node of its own for each test."""
    return Node(engine, ids.new_id(ids.system_rng()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests really ran on an engine."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    ran = {report.nodeid for report in reports if "engine" in report.keywords and report.when == "call"}
    skipped = {report.nodeid for report in terminalreporter.getreports("skipped") if "engine" in report.keywords}
    if ran or skipped:
        terminalreporter.write_line(f"engine tests: {len(ran)} ran on a container engine, {len(skipped)} skipped")
