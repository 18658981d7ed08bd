"""Images of a private registry: password, certificate of an authority of its own, digests, errors in words."""

import asyncio
import base64
import contextlib
import http.client
import json
import pathlib
import time
from collections.abc import Iterator

import pytest

from agent.runtime import base, docker
from skep import pb
from tests.agent.runtime import workloads
from tests.cluster import harness
from tests.engine import conftest, dockerd, registry


def credentials(password: str = registry.PASSWORD) -> str:
    made = {"username": registry.USER, "password": password}
    return base64.urlsafe_b64encode(json.dumps(made).encode()).decode()


@contextlib.contextmanager
def serving(engine: conftest.Engine, authority: registry.Authority | None) -> Iterator[registry.OwnRegistry]:
    if engine.own is None or authority is None:
        pytest.skip("the engine is not ours: it would not trust the registry")
    if not engine.own.address:
        conftest.lacking("this machine does not allow a bridge")
    if registry.missing():
        conftest.lacking(registry.missing())
    made = registry.OwnRegistry(engine.own.address, authority)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def private(engine: conftest.Engine) -> Iterator[registry.OwnRegistry]:
    with serving(engine, engine.authority) as made:
        yield made


def push(engine: conftest.Engine, made: registry.OwnRegistry, name: str, *, mark: str = "") -> str:
    """Puts an image into the registry as NAME:1 and nowhere else; returns the reference with its digest."""
    repository = f"{made.host}/{name}"
    dockerd.import_busybox(engine.socket, image=f"{repository}:1", mark=mark or name)  # own layers: they are fetched
    with contextlib.closing(dockerd.UnixConnection(engine.socket)) as connection:
        connection.request("POST", f"/images/{repository}/push?tag=1", headers={"X-Registry-Auth": credentials()})
        answer: http.client.HTTPResponse = connection.getresponse()
        lines = [json.loads(line) for line in answer.read().splitlines() if line.strip()]
    problems = [line["error"] for line in lines if "error" in line]
    assert not problems, problems
    digest = next(line["aux"]["Digest"] for line in lines if "Digest" in line.get("aux", {}))
    dockerd.call(engine.socket, "DELETE", f"/images/{repository}:1")
    return f"{repository}@{digest}"


def task(node: conftest.Node, image: str, *, auth: str) -> base.Workload:
    spec = pb.ContainerSpec(image=image, registry_auth=auth)
    return workloads.workload("true", container=spec, node_id=node.node_id)


def pulls(engine: conftest.Engine, since: float) -> list[str]:
    filters = json.dumps({"type": ["image"], "event": ["pull"]}).replace('"', "%22").replace(" ", "")
    raw = dockerd.call(engine.socket, "GET", f"/events?since={since:.3f}&until={time.time():.3f}&filters={filters}")
    events = [raw] if isinstance(raw, dict) else [json.loads(line) for line in raw.splitlines() if line.strip()]
    return [event["Actor"]["ID"] for event in events]


def test_one_pull_by_digest_however_many_tasks_wait(node: conftest.Node, private: registry.OwnRegistry) -> None:
    engine = node.engine
    image = push(engine, private, "bees/app")

    async def body(runtime: docker.DockerRuntime) -> None:
        since = time.time() - 0.001
        said: list[str] = []
        tasks = [task(node, image, auth=credentials()) for _ in range(4)]
        await asyncio.gather(*(runtime.prepare(each, said.append) for each in tasks))
        assert pulls(engine, since) == [image]
        assert any(line.startswith(f"pulling {image}: ") for line in said), said
        await runtime.start(tasks[0])
        assert (await workloads.phase(runtime, tasks[0].task.id, base.Phase.EXITED)).exit_code == 0
        await runtime.prepare(task(node, image, auth=""), said.append)  # it is here: nobody is asked
        assert pulls(engine, since) == [image]

    node.run(body)
    dockerd.call(engine.socket, "DELETE", f"/images/{image}?force=1")


def test_a_tag_that_has_moved_is_noticed_by_the_next_revision(
    node: conftest.Node, private: registry.OwnRegistry
) -> None:
    engine = node.engine
    push(engine, private, "bees/moving", mark="one")
    image = f"{private.host}/bees/moving:1"

    async def body(runtime: docker.DockerRuntime) -> None:
        async def content(revision: str) -> str:
            spec = pb.ContainerSpec(image=image, registry_auth=credentials())
            work = workloads.workload("cat", "/etc/mark", container=spec, node_id=node.node_id)
            work.task.revision_id = revision
            await workloads.run(runtime, work)
            await workloads.phase(runtime, work.task.id, base.Phase.EXITED)
            return await workloads.output(runtime, work.task.id)

        assert await content("r1") == "one"
        before = dockerd.call(engine.socket, "GET", f"/images/{image}/json")["Id"]
        push(engine, private, "bees/moving", mark="two")
        name = image.removesuffix(":1")
        dockerd.call(engine.socket, "POST", f"/images/{before}/tag?repo={name}&tag=1")  # as if pushed elsewhere
        assert await content("r1") == "one", "the tasks of a revision have one image"
        assert await content("r2") == "two"

    node.run(body)
    dockerd.call(engine.socket, "DELETE", f"/images/{image}?force=1")


@pytest.mark.parametrize(
    ("name", "auth", "words"),
    [
        ("bees/locked", "", "no basic auth credentials"),
        ("bees/locked", credentials("wrong"), "unauthorized"),
        ("bees/nothing", credentials(), "not found|manifest unknown"),
    ],
)
def test_refusals_are_final_and_in_words(
    node: conftest.Node, private: registry.OwnRegistry, name: str, auth: str, words: str
) -> None:
    async def body(runtime: docker.DockerRuntime) -> None:
        work = task(node, f"{private.host}/{name}:1", auth=auth)
        with pytest.raises(base.TaskFatal, match=words) as caught:
            await runtime.prepare(work, lambda _: None)
        assert str(caught.value).startswith(f"cannot pull image {private.host}/{name}:1: ")
        assert registry.PASSWORD not in str(caught.value)

    node.run(body)


def test_credentials_travel_with_a_service(
    engine: conftest.Engine, private: registry.OwnRegistry, tmp_path: pathlib.Path
) -> None:
    push(engine, private, "bees/hive")
    image = f"{private.host}/bees/hive:1"
    known = base64.b64encode(f"{registry.USER}:{registry.PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {private.host: {"auth": known}}}))

    async def main() -> None:
        async with harness.running_cluster(
            tmp_path, managers=1, runtime="docker", docker_socket=str(engine.socket)
        ) as cluster:
            create = ("service", "create", "--init", "--restart-condition", "none", "--detach")

            async def refused() -> bool:
                tasks = await cluster.tasks("without")
                return [task["Status"]["State"] for task in tasks] == ["rejected"]

            await cluster.skep(*create, "--name", "without", image, "sleep", "600")
            await harness.until("a pull without credentials is refused", refused)
            (task,) = await cluster.tasks("without")
            assert "no basic auth credentials" in task["Status"]["Err"]
            await cluster.skep(
                *create, "--name", "with", "--with-registry-auth", image, "sleep", "600",
                env={"DOCKER_CONFIG": str(tmp_path)},
            )  # fmt: skip
            await cluster.converged("with", 1)
            shown = json.dumps([await cluster.call("GET", "/services"), await cluster.call("GET", "/tasks")])
            assert registry.PASSWORD not in shown
            assert known not in shown
            assert credentials()[:48] not in shown  # the header, up to what differs

    asyncio.run(main())
    dockerd.call(engine.socket, "DELETE", f"/images/{image}?force=1")


def test_a_registry_whose_authority_the_engine_does_not_trust(node: conftest.Node) -> None:
    with serving(node.engine, registry.Authority()) as stranger:

        async def body(runtime: docker.DockerRuntime) -> None:
            with pytest.raises(base.TaskTemporary, match="certificate signed by unknown authority"):
                await runtime.prepare(task(node, f"{stranger.host}/a:1", auth=credentials()), lambda _: None)

        node.run(body)
