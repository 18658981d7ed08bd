"""Bad input gets a clear error and exit code 1, and changes nothing."""

import asyncio
import json
import pathlib

import pytest

from skep import errors
from tests.cluster import harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

# Arguments, and what the error must name.
BAD: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("service", "create", "--frobnicate", "process", "true"), ("--frobnicate",)),
    (("service", "create", "--name", "not_ok!", "process", "true"), ("name",)),
    (("service", "create", "--name", "x", "--replicas", "-1", "process", "true"), ("replicas",)),
    (
        ("service", "create", "--name", "x", "--constraint", "node.role=manager", "process", "true"),
        ("constraint", "=="),
    ),
    (("service", "create", "--name", "taken", "process", "true"), ("taken", "exists")),
    (("service", "create", "--name", "x", "--publish", "8080:80", "process", "true"), ("mode=host",)),
    (("service", "create", "--name", "x", "--mode", "global", "--replicas", "2", "process", "true"), ("global",)),
    (("service", "create", "--name", "x", "--limit-memory", "1k", "process", "true"), ("4MiB",)),
    (("service", "create", "--name", "x", "--restart-delay", "soon", "process", "true"), ("restart-delay",)),
    (("service", "create"), ("IMAGE",)),
    (("service", "scale", "taken=many"), ("many",)),
    (("service", "scale", "nobody=1"), ("nobody", "no such service")),
    (("service", "inspect", "nobody"), ("nobody",)),
    (("service", "rollback", "taken"), ("previous",)),
    (("node", "update", "--availability", "drain", "nobody"), ("nobody",)),
    (("node", "update", "--availability", "asleep", "dev-1"), ("asleep",)),
    (("nonsense",), ("nonsense",)),
]


def test_bad_input_is_refused_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with harness.running_cluster(tmp_path, managers=1) as cluster:
            await cluster.skep("service", "create", "--detach", "--name", "taken", "--replicas", "0", "process", "true")
            before = await state(cluster)
            for arguments, words in BAD:
                outcome = await cluster.skep(*arguments, check=False)
                assert outcome.code == 1, (arguments, outcome)
                assert "Traceback" not in outcome.err
                for word in words:
                    assert word.lower() in outcome.err.lower(), (arguments, outcome.err)
            assert await state(cluster) == before

    asyncio.run(main())


async def state(cluster: harness.Cluster) -> str:
    services = await cluster.call("GET", "/services")
    nodes = [{key: node[key] for key in ("ID", "Spec")} for node in await cluster.nodes()]
    return json.dumps([services, nodes, await cluster.call("GET", "/tasks")])


def test_joining_with_a_wrong_token_or_the_token_of_another_cluster_is_refused(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with (
            harness.running_cluster(tmp_path / "a", managers=1) as one,
            harness.running_cluster(tmp_path / "b", managers=1) as other,
        ):
            foreign = (await other.call("GET", "/swarm"))["JoinTokens"]["Worker"]
            own = (await one.call("GET", "/swarm"))["JoinTokens"]["Worker"]
            wrong_secret = own.rsplit("-", 1)[0] + "-" + foreign.rsplit("-", 1)[1]
            addr = f"127.0.0.1:{one.home.port + 1}"
            await other.skep("leave", "--force")
            for token, word in ((foreign, "digest"), (wrong_secret, "valid join token"), ("nonsense", "token")):
                refused = await other.skep("join", addr, check=False, env={"SKEP_JOIN_TOKEN": token})
                assert refused.code == 1, refused
                assert word in refused.err
                assert token.rsplit("-", 1)[-1] not in refused.err or token == "nonsense"
            assert len(await one.nodes()) == 1
            with pytest.raises(errors.SkepError, match="not a swarm manager"):
                await other.cluster.call(other.home, "GET", "/nodes")
            await other.skep("join", addr, env={"SKEP_JOIN_TOKEN": own})

            async def joined() -> bool:
                return [node["Status"]["State"] for node in await one.nodes()] == ["ready", "ready"]

            await harness.until("the machine has joined after all", joined)

    asyncio.run(main())
