"""The layout of a dev cluster: made once, found again."""

import asyncio
import pathlib
import socket

import pytest

from skep import errors
from skep.cli import dev_cluster


def test_a_layout_is_made_once_and_found_again(tmp_path: pathlib.Path) -> None:
    made, known = dev_cluster.DevCluster.layout(tmp_path / "d", managers=3, agents=2)
    assert not known
    assert [node.manager for node in made] == [True] * 3 + [False] * 2
    again, known = dev_cluster.DevCluster.layout(tmp_path / "d", managers=1, agents=0)
    assert known
    assert again == made
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700


def test_ports_come_in_pairs_that_do_not_collide() -> None:
    ports = dev_cluster.free_port_pairs(5)
    taken = [each for port in ports for each in (port, port + 1)]
    assert len(set(taken)) == 10
    with socket.socket() as anybody:
        anybody.bind(("127.0.0.1", 0))
        assert max(taken) < anybody.getsockname()[1], "nobody is given such a port for a connection"
    for port in taken:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_daemon_that_cannot_start_is_reported_with_the_end_of_its_log(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        nodes, _ = dev_cluster.DevCluster.layout(tmp_path, managers=1, agents=0)
        cluster = dev_cluster.DevCluster(
            tmp_path, nodes, runtime="nonsense", docker_socket="/nonexistent", say=print, restart=False
        )
        try:
            with pytest.raises(errors.Unavailable, match=r"(?s)ended at its start.*nonsense"):
                await cluster.start(fresh=True, init={})
        finally:
            await cluster.stop(keep=True)

    asyncio.run(main())
