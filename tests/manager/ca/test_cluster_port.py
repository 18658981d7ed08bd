"""The cluster port over real TLS: which certificates open it, and for what."""

import asyncio
import ssl

import grpc.aio
import pytest

from skep import errors, pb
from skep.security import enroll, keys, rpc_errors, tls
from skep.security import identity as identities
from skep.v1 import ca_pb2_grpc
from tests.manager.ca import harness


async def renew(identity: identities.Identity, manager: harness.Manager) -> identities.Identity:
    async with tls.channel(identity, manager.cluster_addr) as channel:
        return (await enroll.renew(identity, channel, time=harness.TIME)).identity


def test_a_node_renews_with_its_certificate() -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            worker = await site.admit(role=pb.NODE_ROLE_WORKER)
            for manager in (site.leader, site.follower):
                fresh = await renew(worker, manager)
                assert (fresh.node_id, fresh.role) == (worker.node_id, pb.NODE_ROLE_WORKER)
                assert fresh.key_pem != worker.key_pem

    harness.run(main)


@pytest.mark.parametrize("which", ["none", "foreign", "expired", "worker of a foreign cluster"])
def test_the_wrong_certificate_does_not_get_in(which: str) -> None:
    async def main() -> None:
        async with harness.site() as site:
            cluster_id = site.view.cluster.id
            foreign = keys.new_root(now=harness.TIME.now())
            if which == "none":
                channel = tls.unauthenticated_channel(site.root().cert_pem, site.leader.cluster_addr)
            elif which == "expired":
                expired = harness.forge(
                    site.root(), cluster_id=cluster_id, signed_at=harness.TIME.now() - 864_000, lifetime_s=3600
                )
                channel = tls.channel(expired, site.leader.cluster_addr)
            else:
                role = pb.NODE_ROLE_WORKER if which.startswith("worker") else pb.NODE_ROLE_MANAGER
                stranger = harness.forge(foreign, cluster_id=cluster_id, role=role)
                credentials = grpc.ssl_channel_credentials(
                    site.root().cert_pem, private_key=stranger.key_pem, certificate_chain=stranger.cert_pem
                )
                options = [("grpc.ssl_target_name_override", identities.MANAGER_NAME)]
                channel = grpc.aio.secure_channel(site.leader.cluster_addr, credentials, options)
            async with channel:
                with pytest.raises(errors.Unavailable, match="closed the connection"), rpc_errors.translated("it"):
                    await ca_pb2_grpc.MembershipStub(channel).LeaveCluster(pb.LeaveClusterRequest(), timeout=5)

    harness.run(main)


def test_a_certificate_of_another_cluster_with_the_same_root_is_denied() -> None:
    async def main() -> None:
        async with harness.site() as site:
            stranger = harness.forge(site.root(), cluster_id="another", node_id="n9")
            with pytest.raises(errors.Denied, match="node n9 belongs to another cluster"):
                await renew(stranger, site.leader)

    harness.run(main)


def test_a_removed_node_is_denied() -> None:
    async def main() -> None:
        async with harness.site() as site:
            gone = harness.forge(site.root(), cluster_id=site.view.cluster.id, node_id="gone")
            with pytest.raises(errors.Denied, match="node gone was removed from the cluster"):
                await renew(gone, site.leader)

    harness.run(main)


def test_calls_between_managers_are_refused_to_others() -> None:
    async def main() -> None:
        async with harness.site() as site:
            worker = await site.admit(role=pb.NODE_ROLE_WORKER)
            removed = harness.forge(site.root(), cluster_id=site.view.cluster.id, node_id="demoted")
            for identity, reason in ((worker, "is a skep-worker, this call is for skep-manager"),
                                     (removed, "is not one of the managers any more")):  # fmt: skip
                async with tls.channel(identity, site.leader.cluster_addr) as channel:
                    stub = ca_pb2_grpc.CAStub(channel)
                    issue = pb.IssueCertificateRequest(csr_pem=keys.new_csr(keys.new_key()), token=site.manager_token)
                    with pytest.raises(errors.Denied, match=reason), rpc_errors.translated("it"):
                        await stub.IssueForJoiner(issue, timeout=5)
                    for_leader = pb.RenewForNodeRequest(node_id=site.shared.leader_id, csr_pem=issue.csr_pem)
                    with pytest.raises(errors.Denied, match=reason), rpc_errors.translated("it"):
                        await stub.RenewForNode(for_leader, timeout=5)

    harness.run(main)


def test_a_worker_cannot_pose_as_a_manager() -> None:
    async def main() -> None:
        async with harness.site() as site:
            worker = await site.admit(role=pb.NODE_ROLE_WORKER)
            async with harness.Manager(site.shared, worker).serve() as impostor:
                with pytest.raises(errors.Unavailable, match="cannot reach the manager"):
                    await renew(worker, impostor)

    harness.run(main)


def test_the_join_port_serves_nothing_else() -> None:
    async def main() -> None:
        async with harness.site() as site:
            async with tls.unauthenticated_channel(site.root().cert_pem, site.leader.join_addr) as channel:
                with pytest.raises(errors.Unimplemented, match="is that the right port"), rpc_errors.translated("it"):
                    await ca_pb2_grpc.MembershipStub(channel).LeaveCluster(pb.LeaveClusterRequest(), timeout=5)
            # Were it ever to be served there by mistake, it still knows no caller without a certificate.
            server = grpc.aio.server(options=tls.SERVER_OPTIONS)
            ca_pb2_grpc.add_CAServicer_to_server(site.leader.ca, server)
            port = server.add_secure_port("127.0.0.1:0", tls.join_server_credentials(lambda: site.leader.identity))
            await server.start()
            async with tls.unauthenticated_channel(site.root().cert_pem, f"127.0.0.1:{port}") as channel:
                with pytest.raises(errors.Denied, match="needs a node certificate"), rpc_errors.translated("it"):
                    await ca_pb2_grpc.CAStub(channel).RenewCertificate(pb.RenewCertificateRequest(), timeout=5)
            await server.stop(None)

    harness.run(main)


def test_a_renewed_certificate_takes_effect_on_running_servers() -> None:
    async def main() -> None:
        async with harness.site() as site:
            manager = site.leader
            old = manager.identity
            async with tls.channel(old, manager.cluster_addr) as kept:
                await enroll.renew(old, kept, time=harness.TIME)  # connects
                manager.identity = await renew(old, manager)
                for addr in (manager.cluster_addr, manager.join_addr):
                    host, port = addr.split(":")
                    shown = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
                    assert shown.encode() == manager.identity.cert_pem
                assert (await renew(manager.identity, manager)).node_id == old.node_id
                # What was connected stays connected.
                await enroll.renew(old, kept, time=harness.TIME)

    harness.run(main)


def test_a_renewal_brings_the_role_of_the_moment() -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            worker = await site.admit(role=pb.NODE_ROLE_WORKER)
            await site.change(worker.node_id, role=pb.NODE_ROLE_MANAGER)
            promoted = await renew(worker, site.follower)
            assert promoted.role == pb.NODE_ROLE_MANAGER
            await site.change(worker.node_id, role=pb.NODE_ROLE_WORKER)
            assert (await renew(promoted, site.leader)).role == pb.NODE_ROLE_WORKER

    harness.run(main)


def test_without_a_leader_a_renewal_says_so() -> None:
    async def main() -> None:
        async with harness.site(followers=1) as site:
            site.shared.leader_id = ""
            with pytest.raises(errors.Unavailable, match="The swarm does not have a leader"):
                await renew(site.follower.identity, site.follower)
            site.shared.leader_id = "a node that is not there"
            with pytest.raises(errors.Unavailable, match="The swarm does not have a leader"):
                await renew(site.follower.identity, site.follower)

    harness.run(main)


def test_certificates_last_as_long_as_the_cluster_says() -> None:
    async def main() -> None:
        async with harness.site() as site:
            await site.change_cluster(node_cert_expiry_s=7200)
            info = keys.inspect((await site.admit(role=pb.NODE_ROLE_WORKER)).cert_pem)
            assert 7190 < info.not_after - harness.TIME.now() <= 7200

    harness.run(main)
