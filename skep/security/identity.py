"""Who a machine is: its key, its certificate, the cluster's root, and who is at the other end of a connection."""

import dataclasses

from skep import pb

MANAGER_NAME = "skep-manager"  # DNS name in the certificate of every manager; clients verify against it
WORKER_NAME = "skep-worker"


@dataclasses.dataclass(frozen=True)
class Identity:
    """A node's own credentials. `repr` never shows the key."""

    node_id: str
    cluster_id: str
    role: pb.NodeRole.ValueType
    cert_pem: bytes
    root_pem: bytes
    key_pem: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Peer:
    """The verified other end of a mutual-TLS connection."""

    node_id: str
    cluster_id: str
    role: pb.NodeRole.ValueType
    address: str  # host part of its socket address, as seen here
