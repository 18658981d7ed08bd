"""Keys and certificates: the cluster's own authority, signing requests, node certificates.

Owns what is inside a certificate and how one is checked. It touches no file, no socket and no clock: the time comes in
as `now`, in seconds since the epoch.

A node certificate says: CN = node ID, OU = role (skep-manager or skep-worker), O = cluster ID. Its DNS names are the
role's name and the node ID, so a client can insist on "some manager" or on "exactly that node".
"""

import dataclasses
import datetime
import functools
import hashlib
from collections.abc import Iterable

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import oid

from skep import errors, pb
from skep.security import identity as identities

CA_NAME = "skep-ca"
CA_LIFETIME_S = 20 * 365 * 86_400.0
NODE_LIFETIME_S = 90 * 86_400.0  # default of ClusterSpec.ca.node_cert_expiry
NODE_LIFETIME_S_MIN = 3_600.0
BACKDATE_S = 3_600.0  # machines' clocks differ; a certificate is valid from an hour before it was made
PEM_BYTES_MAX = 64 * 1024  # what a peer may hand us as a certificate or signing request
PARSED_MAX = 1024  # certificates kept parsed; every call on a connection shows the same one

EXPIRED = "Swarm certificates have expired. To replace them, leave the cluster and join again."

_NAME_OF_ROLE = {
    pb.NODE_ROLE_MANAGER: identities.MANAGER_NAME,
    pb.NODE_ROLE_WORKER: identities.WORKER_NAME,
}
_ROLE_OF_NAME = {name: role for role, name in _NAME_OF_ROLE.items()}


@dataclasses.dataclass(frozen=True)
class Root:
    """A certificate authority. `repr` never shows the key."""

    cert_pem: bytes
    key_pem: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class CertInfo:
    """What a node certificate says about its holder."""

    node_id: str
    cluster_id: str
    role: pb.NodeRole.ValueType
    not_before: float  # seconds since the epoch
    not_after: float


def role_name(role: pb.NodeRole.ValueType) -> str:
    """The DNS name and organisational unit of a role."""
    return _NAME_OF_ROLE[role]


def new_key() -> bytes:
    """A new private key (ECDSA P-256) as PEM, unencrypted PKCS #8."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def new_root(*, now: float) -> Root:
    """A new self-signed authority, valid for 20 years."""
    key_pem = new_key()
    key = _load_key(key_pem)
    name = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, CA_NAME)])
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(name, name, key.public_key(), not_before=now - BACKDATE_S, not_after=now + CA_LIFETIME_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign", "digital_signature"), critical=True)
        .add_extension(key_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
    )
    return Root(cert_pem=_pem(builder.sign(key, hashes.SHA256())), key_pem=key_pem)


def new_csr(key_pem: bytes) -> bytes:
    """A signing request that proves possession of the key. It names nobody: the authority decides who it is for."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(_load_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def sign_node(
    csr_pem: bytes,
    *,
    root: Root,
    node_id: str,
    cluster_id: str,
    role: pb.NodeRole.ValueType,
    now: float,
    lifetime_s: float = NODE_LIFETIME_S,
) -> bytes:
    """A certificate (PEM) for the key behind the request.

    `lifetime_s` is raised to the minimum of one hour and never outlives the root. Raises Invalid when the request is
    malformed, is not signed by its own key, or holds a kind of key that skep does not use.
    """
    public_key = request_key(csr_pem)
    ca_cert = _load_cert(root.cert_pem)
    ca_key = _load_key(root.key_pem)
    not_after = min(now + max(lifetime_s, NODE_LIFETIME_S_MIN), ca_cert.not_valid_after_utc.timestamp())
    unit = role_name(role)
    subject = x509.Name(
        [
            x509.NameAttribute(oid.NameOID.ORGANIZATION_NAME, cluster_id),
            x509.NameAttribute(oid.NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(oid.NameOID.COMMON_NAME, node_id),
        ]
    )
    builder = (
        _builder(ca_cert.subject, subject, public_key, not_before=now - BACKDATE_S, not_after=not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage("digital_signature", "key_agreement"), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.SERVER_AUTH, oid.ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(unit), x509.DNSName(node_id)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    return _pem(builder.sign(ca_key, hashes.SHA256()))


def request_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request, once its signature is verified. Raises Invalid."""
    if len(csr_pem) > PEM_BYTES_MAX:
        raise errors.Invalid("the certificate signing request is too large")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        valid = csr.is_signature_valid
        public_key = csr.public_key()
    except (ValueError, exceptions.UnsupportedAlgorithm, exceptions.InvalidSignature):
        raise errors.Invalid("the certificate signing request cannot be read: it must be PEM (PKCS #10)") from None
    if not valid:
        raise errors.Invalid("the certificate signing request is not signed by its own key")
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise errors.Invalid("the certificate signing request must hold an ECDSA P-256 key")
    return public_key


def fingerprint(public_key: ec.EllipticCurvePublicKey) -> int:
    """A number of 256 bits that stands for the key."""
    encoded = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return int.from_bytes(hashlib.sha256(encoded).digest(), "big")


def canonical(cert_pem: bytes) -> bytes:
    """The first certificate of `cert_pem`, encoded the one way that digests are taken of. Raises Invalid."""
    return _pem(_load_cert(cert_pem))


@functools.lru_cache(maxsize=PARSED_MAX)
def inspect(cert_pem: bytes) -> CertInfo:
    """What a node certificate says. Trusts it: the signature is checked by TLS or by `verified`.

    Raises Denied when it is not a certificate that skep issues to nodes.
    """
    try:
        cert = _load_cert(cert_pem)
    except errors.Invalid as error:
        raise errors.Denied(error.message) from None
    node_id = _attribute(cert.subject, oid.NameOID.COMMON_NAME)
    cluster_id = _attribute(cert.subject, oid.NameOID.ORGANIZATION_NAME)
    role = _ROLE_OF_NAME.get(_attribute(cert.subject, oid.NameOID.ORGANIZATIONAL_UNIT_NAME))
    if not node_id or not cluster_id or role is None:
        raise errors.Denied("the certificate does not name a node, its role and its cluster: it is not one of skep's")
    return CertInfo(
        node_id=node_id,
        cluster_id=cluster_id,
        role=role,
        not_before=cert.not_valid_before_utc.timestamp(),
        not_after=cert.not_valid_after_utc.timestamp(),
    )


def verified(*, key_pem: bytes, cert_pem: bytes, root_pem: bytes, now: float) -> identities.Identity:
    """The identity made of these three, once they are known to belong together and to be valid at `now`.

    Raises Denied saying which one does not fit.
    """
    try:
        cert, root = _load_cert(cert_pem), _load_cert(root_pem)
        key = _load_key(key_pem)
    except errors.Invalid as error:
        raise errors.Denied(error.message) from None
    info = inspect(cert_pem)
    if cert.public_key() != key.public_key():
        raise errors.Denied(f"the private key does not belong to the certificate of node {info.node_id}")
    try:
        cert.verify_directly_issued_by(root)
    except (ValueError, TypeError, exceptions.InvalidSignature):
        raise errors.Denied(
            f"the certificate of node {info.node_id} was not issued by the cluster's certificate authority"
        ) from None
    if now > info.not_after:
        raise errors.Denied(EXPIRED)
    if now < info.not_before:
        since = datetime.datetime.fromtimestamp(info.not_before, tz=datetime.UTC).isoformat(timespec="seconds")
        raise errors.Denied(
            f"the certificate of node {info.node_id} is not valid before {since}: check this machine's clock"
        )
    return identities.Identity(
        node_id=info.node_id,
        cluster_id=info.cluster_id,
        role=info.role,
        cert_pem=cert_pem,
        root_pem=root_pem,
        key_pem=key_pem,
    )


def issuer(root_pem: bytes) -> tuple[bytes, bytes]:
    """(subject, public key) of the authority in DER, as the API's TLSInfo shows them."""
    cert = _load_cert(root_pem)
    public_key = cert.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return cert.subject.public_bytes(), public_key


# ---------------------------------------------------------------- parts


def _builder(
    issuer_name: x509.Name,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    not_before: float,
    not_after: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer_name)
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(int(not_before), tz=datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(int(not_after), tz=datetime.UTC))
    )


def _key_usage(*usages: str) -> x509.KeyUsage:
    known = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{usage: usage in usages for usage in known})


def _attribute(name: x509.Name, which: x509.ObjectIdentifier) -> str:
    values: Iterable[x509.NameAttribute[str | bytes]] = name.get_attributes_for_oid(which)
    found = [value.value for value in values]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""


def _load_key(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm):
        raise errors.Invalid("the private key cannot be read: it must be unencrypted PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise errors.Invalid("the private key must be an elliptic curve key")
    return key


def _load_cert(cert_pem: bytes) -> x509.Certificate:
    if len(cert_pem) > PEM_BYTES_MAX:
        raise errors.Invalid("the certificate is too large")
    try:
        return x509.load_pem_x509_certificate(cert_pem)
    except ValueError:
        raise errors.Invalid("the certificate cannot be read: it must be PEM") from None


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)
