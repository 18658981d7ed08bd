"""Picking host ports."""

import socket

import pytest

from agent.network import ports
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
