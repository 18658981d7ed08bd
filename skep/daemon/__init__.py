"""skepd: the composition root. One process per machine, always an agent, also a manager while its role says so."""

import os

# gRPC's C core writes refused handshakes and taken ports to stderr in a format of its own; we log what matters.
# It reads this when it is first imported, hence here.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
