"""Picks host ports for tasks that share the machine's own network (process runtime).

Owns which ports were handed out and to whom; must not hold a port open for longer than the look whether it is free.
"""

import socket

from skep import errors, pb

ATTEMPTS = 64  # the kernel hands out free ports; more collisions than this mean that there are none
KINDS = {pb.PORT_PROTOCOL_TCP: socket.SOCK_STREAM, pb.PORT_PROTOCOL_UDP: socket.SOCK_DGRAM}


class PortPicker:
    """Hands out free host ports and never the same one to two tasks.

    A port that the user chose is only noted: in a stop-first update the next task is prepared while the last one still
    has the port. `check_free` looks at the moment of the start.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[pb.PortConfig]] = {}

    def remember(self, task_id: str, ports: list[pb.PortConfig]) -> None:
        """Notes the ports that a task already has (found again after a restart of the agent)."""
        self._held[task_id] = list(ports)

    def release(self, task_id: str) -> None:
        """Forgets all ports of the task."""
        self._held.pop(task_id, None)

    def assign(self, task_id: str, ports: list[pb.PortConfig]) -> list[pb.PortConfig]:
        """Copies of `ports` with every published port filled in, and remembers them.

        Raises Invalid for SCTP, Unavailable when no port is free.
        """
        assigned: list[pb.PortConfig] = []
        self._held[task_id] = assigned
        try:
            for port in ports:
                copy = pb.PortConfig()
                copy.CopyFrom(port)
                copy.published_port = port.published_port or self._pick(port)
                assigned.append(copy)
        except errors.SkepError:
            self.release(task_id)
            raise
        return list(assigned)

    def _pick(self, port: pb.PortConfig) -> int:
        taken = {(held.protocol, held.published_port) for ports in self._held.values() for held in ports}
        for _ in range(ATTEMPTS):
            with _socket(port) as probe:
                try:
                    probe.bind(("", 0))
                except OSError as error:
                    raise errors.Unavailable(f"no free host port for {port.target_port}: {error.strerror}") from error
                number = int(probe.getsockname()[1])
            if (port.protocol, number) not in taken:
                return number
        raise errors.Unavailable(f"no free host port for {port.target_port}: all are held by other tasks")


def check_free(ports: list[pb.PortConfig]) -> None:
    """Raises Conflict naming the first published port that another program of this machine has."""
    for port in ports:
        with _socket(port) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port.protocol == pb.PORT_PROTOCOL_TCP))
            try:
                probe.bind(("", port.published_port))
            except PermissionError:
                continue  # below 1024 without root: the task's own capabilities decide
            except OSError as error:
                raise errors.Conflict(f"host port {port.published_port} is already in use on this node") from error


def _socket(port: pb.PortConfig) -> socket.socket:
    kind = KINDS.get(port.protocol)
    if kind is None:
        raise errors.Invalid(f"port {port.target_port}/sctp cannot be published by the process runtime")
    return socket.socket(socket.AF_INET, kind)
