"""Picking host ports, and seeing which ones the machine listens on."""

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from agent import facts
from agent.network import listening, ports
from skep import errors, pb
from tests.agent.runtime import workloads


def test_picked_ports_differ_and_are_free() -> None:
    picker = ports.PortPicker()
    numbers = [picker.assign(f"t{index}", [workloads.host_port(80)])[0].published_port for index in range(50)]
    assert len(set(numbers)) == 50
    with socket.socket() as probe:
        probe.bind(("", numbers[0]))


def test_wished_port_is_kept_and_avoided_by_picks() -> None:
    picker = ports.PortPicker()
    wished = workloads.host_port(80, published=8080)
    assert picker.assign("t1", [wished]) == [wished]
    assert picker.assign("t2", [wished]) == [wished]  # the next task of a stop-first update
    picker.release("t1")
    picker.release("t1")


def test_remembered_ports_are_not_picked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    picker = ports.PortPicker()
    first = picker.assign("t1", [workloads.host_port(80)])
    again = ports.PortPicker()
    again.remember("t1", first)
    assert again.assign("t2", [workloads.host_port(80)])[0].published_port != first[0].published_port


def test_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with pytest.raises(errors.Conflict, match=f"host port {number} is already in use"):
            ports.check_free([workloads.host_port(80, published=number)])
    ports.check_free([workloads.host_port(80, published=number)])


def test_sctp_is_refused() -> None:
    port = pb.PortConfig(target_port=80, protocol=pb.PORT_PROTOCOL_SCTP)
    with pytest.raises(errors.Invalid, match="sctp"):
        ports.PortPicker().assign("t1", [port])


@contextlib.contextmanager
def listener(family: socket.AddressFamily, host: str) -> Iterator[int]:
    """Listens below the ephemeral ports, where facts look."""
    for number in range(listening._ephemeral_first() - 1, 1024, -7):
        with socket.socket(family, socket.SOCK_STREAM) as made:
            try:
                made.bind((host, number))
            except OSError:
                continue
            made.listen()
            yield number
            return
    raise AssertionError("no port is free")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_is_seen_while_somebody_listens_on_it(family: socket.AddressFamily, host: str) -> None:
    with listener(family, host) as number:
        assert number in facts.THIS_MACHINE.ports()
        assert number in (listening.ports_of([os.getpid()]) or set())
        assert number not in (listening.ports_of([os.getppid()]) or set())
        with socket.create_connection((host, number)):
            assert number in facts.THIS_MACHINE.ports()
    assert number not in facts.THIS_MACHINE.ports()  # a connection that is over is not taken for somebody who listens


def test_an_ephemeral_port_is_nobody_s_choice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        assert number in listening.sockets().values()
        assert number not in listening.ports()


def test_ports_of_a_machine_that_does_not_say(tmp_path: pathlib.Path) -> None:
    assert listening.sockets(tmp_path) == {}
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text("  sl  local_address\n   0: garbage\n")
    assert listening.sockets(tmp_path) == {}
