"""Joining over real TLS: who gets in, who does not, and what they are told."""

import asyncio
import contextlib
import io
import logging

import pytest
import structlog

from manager.ca import authority
from skep import errors, pb
from skep.security import enroll, keys, tokens
from tests.manager.ca import harness


async def join(addrs: list[str], token: str, **options: pb.NodeAvailability.ValueType) -> enroll.Enrolled:
    return await enroll.enroll(addrs, token=token, hostname="newcomer", time=harness.TIME, **options)


@pytest.mark.parametrize("through_follower", [False, True])
def test_a_worker_and_a_manager_join(through_follower: bool) -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            addr = (site.follower if through_follower else site.leader).join_addr
            worker = await join([addr], site.worker_token, availability=pb.NODE_AVAILABILITY_DRAIN)
            manager = await join([addr], f" {site.manager_token}\n")
            assert worker.identity.role == pb.NODE_ROLE_WORKER
            assert manager.identity.role == pb.NODE_ROLE_MANAGER
            assert sorted(worker.managers) == sorted(site.shared.members.values())
            node = site.node(worker.identity.node_id)
            assert node.role == node.spec.role == pb.NODE_ROLE_WORKER
            assert node.spec.availability == pb.NODE_AVAILABILITY_DRAIN
            assert node.description.hostname == "newcomer"
            assert node.status.state == pb.NODE_STATE_UNKNOWN
            assert site.node(manager.identity.node_id).spec.role == pb.NODE_ROLE_MANAGER
            assert worker.identity.cluster_id == site.view.cluster.id

    harness.run(main)


def test_a_wrong_secret_is_refused_and_changes_nothing() -> None:
    async def main() -> None:
        async with harness.site() as site:
            before = site.shared.state.index
            wrong = tokens.make(root_pem=site.root().cert_pem, secret="0" * tokens.SECRET_WIDTH)
            with pytest.raises(errors.Denied) as caught:
                await join([site.leader.join_addr], wrong)
            assert caught.value.message == "A valid join token is necessary to join this cluster"
            assert site.shared.state.index == before

    harness.run(main)


def test_another_clusters_token_is_never_sent() -> None:
    async def main() -> None:
        async with harness.site() as site, harness.site() as other:
            with pytest.raises(errors.Denied) as caught:
                await join([site.leader.join_addr], other.worker_token)
            assert caught.value.message == (
                "the token's digest does not match the certificate authority at "
                f"{site.leader.join_addr}: wrong cluster or someone in between"
            )
            assert site.leader.join.issue_calls == 0
            # The right cluster further down the list is still found.
            await join([site.leader.join_addr, other.leader.join_addr], other.worker_token)
            assert site.leader.join.issue_calls == 0

    harness.run(main)


def test_someone_in_between_who_replays_the_root_gets_no_token() -> None:
    """The root certificate is public: showing it is not enough, the connection itself must be signed by it."""

    async def main() -> None:
        async with harness.site() as site:
            foreign = keys.new_root(now=harness.TIME.now())
            impostor = harness.Manager(site.shared, harness.forge(foreign, cluster_id=site.view.cluster.id))
            async with impostor.serve():
                with pytest.raises(errors.Unavailable, match="not from this cluster"):
                    await join([impostor.join_addr], site.worker_token)
                assert impostor.join.issue_calls == 0

    harness.run(main)


def test_addresses_are_tried_in_turn_and_named_when_none_answers() -> None:
    async def main() -> None:
        async with harness.site() as site:
            dead = await unused_addr()
            joined = await join([dead, site.leader.join_addr], site.worker_token)
            assert joined.identity.role == pb.NODE_ROLE_WORKER
            with pytest.raises(errors.Unavailable, match=f"cannot reach {dead}: .*refused"):
                await join([dead], site.worker_token)

    harness.run(main)


def test_the_cluster_port_gives_a_hint() -> None:
    async def main() -> None:
        async with harness.site() as site:
            host, port = site.leader.cluster_addr.split(":")
            with pytest.raises(errors.FailedPrecondition) as caught:
                await join([site.leader.cluster_addr], site.worker_token)
            assert f"cluster port. Machines join through the join port, by default the next one up: try {host}:" in str(
                caught.value
            )
            assert str(int(port) + 1) in caught.value.message

    harness.run(main)


@pytest.mark.parametrize("behaviour", ["silent", "plain", "closes"])
def test_something_else_listens_there(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enroll, "CONNECT_TIMEOUT_S", 0.3)

    async def main() -> None:
        ended = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if behaviour == "plain":
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with contextlib.suppress(OSError):
                if behaviour == "silent":
                    await reader.read()
                writer.close()
                await writer.wait_closed()
            ended.set()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        addr = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        token = tokens.make(root_pem=keys.new_root(now=0.0).cert_pem, secret="1" * tokens.SECRET_WIDTH)
        async with server:
            with pytest.raises(errors.Unavailable, match=addr):
                await join([addr], token)
            await ended.wait()

    harness.run(main)


def test_bad_input_is_told_before_anything_is_dialled() -> None:
    async def main() -> None:
        with pytest.raises(errors.Invalid, match="invalid join token"):
            await join(["127.0.0.1:1"], "SKPTKN-1-oops")
        token = tokens.make(root_pem=keys.new_root(now=0.0).cert_pem, secret="1" * tokens.SECRET_WIDTH)
        for addr in ("127.0.0.1:port", "127.0.0.1:0", "host:70000", ":2378"):
            with pytest.raises(errors.Invalid, match="HOST:PORT"):
                await join([addr], token)
        with pytest.raises(errors.Invalid, match="no address"):
            await join([], token)

    harness.run(main)


def test_a_retry_with_the_same_key_makes_no_second_node() -> None:
    async def main() -> None:
        async with harness.site() as site:
            csr = keys.new_csr(keys.new_key())
            asked = [
                site.leader.authority.issue(
                    csr, token=site.worker_token, availability=pb.NODE_AVAILABILITY_ACTIVE, hostname="h"
                )
                for _ in range(2)
            ]
            first, second = await asyncio.gather(*asked)
            assert first.node_id == second.node_id
            assert len(site.view.nodes) == 2
            with pytest.raises(errors.FailedPrecondition, match="has joined as skep-worker already"):
                await site.leader.authority.issue(
                    csr, token=site.manager_token, availability=pb.NODE_AVAILABILITY_ACTIVE, hostname="h"
                )

    harness.run(main)


def test_rotation_voids_one_token_and_leaves_the_other() -> None:
    async def main() -> None:
        async with harness.site() as site:
            old_worker, old_manager = site.worker_token, site.manager_token
            await site.leader.authority.rotate(pb.NODE_ROLE_WORKER)
            assert site.worker_token != old_worker
            assert site.worker_token[:60] == old_worker[:60]  # same digest
            assert site.manager_token == old_manager
            with pytest.raises(errors.Denied, match="A valid join token"):
                await join([site.leader.join_addr], old_worker)
            await join([site.leader.join_addr], site.worker_token)

    harness.run(main)


def test_guessing_is_slowed_down() -> None:
    async def main() -> None:
        async with harness.site() as site:
            wrong = tokens.make(root_pem=site.root().cert_pem, secret="0" * tokens.SECRET_WIDTH)
            for _ in range(5):
                with pytest.raises(errors.Denied):
                    await join([site.leader.join_addr], wrong)
            with pytest.raises(errors.Unavailable, match=r"too many attempts .* try again in \d+ s"):
                await join([site.leader.join_addr], site.worker_token)

    harness.run(main)


@pytest.mark.parametrize("through_follower", [False, True])
def test_no_token_in_errors_reprs_or_logs(
    through_follower: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> list[str]:
        async with harness.site(followers=1) as site, harness.site() as other:
            addr = (site.follower if through_follower else site.leader).join_addr
            wrong = tokens.make(root_pem=site.root().cert_pem, secret="z" * tokens.SECRET_WIDTH)
            said: list[str] = []
            for token in (wrong, other.worker_token, wrong[:-1]):
                with pytest.raises(errors.SkepError) as caught:
                    await join([addr], token)
                said += [str(caught.value), repr(caught.value), repr(caught.value.__context__)]
            joined = await join([addr], site.worker_token)
            said += [repr(joined), repr(authority.found(hostname="h", addr="a:1", now=0.0, rng=FixedRng()))]
            for secret in ("z" * 24, other.worker_token[-25:], site.worker_token[-25:], "PRIVATE"):
                assert not any(secret in line for line in [*said, log.getvalue(), caplog.text])
            return said

    log = io.StringIO()
    caplog.set_level(logging.DEBUG)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(log), cache_logger_on_first_use=False)
    try:
        assert harness.run(main)
    finally:
        structlog.reset_defaults()
    assert "ca.join_refused" in log.getvalue()
    assert "ca.admitted" in log.getvalue()


class FixedRng:
    """Chance with a known outcome."""

    def random(self) -> float:
        return 0.5

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2

    def getrandbits(self, k: int, /) -> int:
        return (1 << k) - 1


async def unused_addr() -> str:
    """An address that nobody listens on."""
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"127.0.0.1:{port}"
