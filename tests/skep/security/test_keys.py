"""What is in a certificate, and which ones are refused."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import oid

from skep import errors, pb
from skep.security import identity as identities
from skep.security import keys

NOW = 1_800_000_000.0
DAY_S = 86_400.0


def sign(root: keys.Root, key_pem: bytes, *, role: pb.NodeRole.ValueType, lifetime_s: float = 90 * DAY_S) -> bytes:
    return keys.sign_node(
        keys.new_csr(key_pem), root=root, node_id="node1", cluster_id="c1", role=role, now=NOW, lifetime_s=lifetime_s
    )


def test_root_is_self_signed_for_twenty_years() -> None:
    cert = x509.load_pem_x509_certificate(keys.new_root(now=NOW).cert_pem)
    cert.verify_directly_issued_by(cert)
    assert cert.subject.rfc4514_string() == "CN=skep-ca"
    assert cert.not_valid_after_utc.timestamp() == NOW + 20 * 365 * DAY_S
    assert cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    ("role", "unit"), [(pb.NODE_ROLE_MANAGER, "skep-manager"), (pb.NODE_ROLE_WORKER, "skep-worker")]
)
def test_node_certificate_says_who_and_what(role: pb.NodeRole.ValueType, unit: str) -> None:
    root = keys.new_root(now=NOW)
    pem = sign(root, keys.new_key(), role=role)
    cert = x509.load_pem_x509_certificate(pem)
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [unit, "node1"]
    usage = list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usage == [oid.ExtendedKeyUsageOID.SERVER_AUTH, oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    info = keys.inspect(pem)
    assert info == keys.CertInfo("node1", "c1", role, not_before=NOW - 3600, not_after=NOW + 90 * DAY_S)


def test_lifetime_is_at_least_an_hour_and_never_beyond_the_root() -> None:
    root = keys.new_root(now=NOW)
    short = keys.inspect(sign(root, keys.new_key(), role=pb.NODE_ROLE_WORKER, lifetime_s=1.0))
    assert short.not_after == NOW + 3600
    endless = keys.inspect(sign(root, keys.new_key(), role=pb.NODE_ROLE_WORKER, lifetime_s=100 * 365 * DAY_S))
    assert endless.not_after == NOW + keys.CA_LIFETIME_S


def test_verified_builds_the_identity_without_showing_the_key() -> None:
    root, key = keys.new_root(now=NOW), keys.new_key()
    cert = sign(root, key, role=pb.NODE_ROLE_MANAGER)
    identity = keys.verified(key_pem=key, cert_pem=cert, root_pem=root.cert_pem, now=NOW)
    assert (identity.node_id, identity.cluster_id, identity.role) == ("node1", "c1", pb.NODE_ROLE_MANAGER)
    assert "PRIVATE" not in repr(identity)
    assert "PRIVATE" not in repr(root)


def test_verified_refuses_what_does_not_belong_together() -> None:
    root, key = keys.new_root(now=NOW), keys.new_key()
    cert = sign(root, key, role=pb.NODE_ROLE_WORKER)

    def check(*, key_pem: bytes = key, root_pem: bytes = root.cert_pem, now: float = NOW) -> identities.Identity:
        return keys.verified(key_pem=key_pem, cert_pem=cert, root_pem=root_pem, now=now)

    with pytest.raises(errors.Denied, match="private key does not belong to the certificate of node node1"):
        check(key_pem=keys.new_key())
    with pytest.raises(errors.Denied, match="not issued by the cluster's certificate authority"):
        check(root_pem=keys.new_root(now=NOW).cert_pem)
    with pytest.raises(errors.Denied, match=r"^Swarm certificates have expired\. To replace them, leave the cluster"):
        check(now=NOW + 91 * DAY_S)
    with pytest.raises(errors.Denied, match="check this machine's clock"):
        check(now=NOW - 2 * 3600)
    with pytest.raises(errors.Denied, match="private key cannot be read"):
        check(key_pem=b"nonsense")


def test_requests_that_are_not_sound_are_invalid() -> None:
    with pytest.raises(errors.Invalid, match="cannot be read"):
        keys.request_key(b"nonsense")
    with pytest.raises(errors.Invalid, match="too large"):
        keys.request_key(b"x" * (keys.PEM_BYTES_MAX + 1))

    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    weak = builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    with pytest.raises(errors.Invalid, match="P-256"):
        keys.request_key(weak.public_bytes(serialization.Encoding.PEM))
    other_curve = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())
    with pytest.raises(errors.Invalid, match="P-256"):
        keys.request_key(other_curve.public_bytes(serialization.Encoding.PEM))


def test_a_request_for_somebody_elses_key_is_refused() -> None:
    csr = x509.load_pem_x509_csr(keys.new_csr(keys.new_key()))
    der = bytearray(csr.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # the signature's last byte
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(errors.Invalid, match="not signed by its own key"):
        keys.request_key(forged)


def test_foreign_certificates_name_no_node() -> None:
    with pytest.raises(errors.Denied, match="not one of skep's"):
        keys.inspect(keys.new_root(now=NOW).cert_pem)
    with pytest.raises(errors.Denied, match="must be PEM"):
        keys.inspect(b"nonsense")
