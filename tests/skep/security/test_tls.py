"""What servers show in their handshakes. That connections work is shown by the tests of the ports."""

from skep import clock, ids, pb
from skep.security import identity as identities
from skep.security import keys, tls


def make_identity() -> identities.Identity:
    now = clock.SystemClock().now()
    root = keys.new_root(now=now)
    key_pem = keys.new_key()
    cert_pem = keys.sign_node(
        keys.new_csr(key_pem),
        root=root,
        node_id=ids.new_id(ids.seeded_rng(1)),
        cluster_id=ids.new_id(ids.seeded_rng(2)),
        role=pb.NODE_ROLE_MANAGER,
        now=now,
        lifetime_s=3600.0,
    )
    return keys.verified(key_pem=key_pem, cert_pem=cert_pem, root_pem=root.cert_pem, now=now)


def test_a_server_replaces_its_certificate_only_when_it_was_renewed() -> None:
    present = [make_identity()]
    offered = tls.Offered(lambda: present[0], demanding=True)

    assert offered.first is not None
    assert [offered.renewed() for _ in range(3)] == [None] * 3

    present[0] = make_identity()

    assert offered.renewed() is not None
    assert offered.renewed() is None
