"""The manager part before it is a member: what it says to those who ask it."""

import asyncio
import pathlib
from typing import Any, cast

import prometheus_client
import pytest

from manager.store import commit
from skep import clock, ids, pb
from skep.daemon import manager_part, settings
from skep.security import identity as identities

OWN = identities.Identity(
    node_id="newcomer", cluster_id="c", role=pb.NODE_ROLE_MANAGER, cert_pem=b"", root_pem=b"", key_pem=b""
)


class Group:
    """The group as a newcomer sees it that is being fed the log."""

    leader_id = "leader"

    def members(self) -> dict[str, str]:
        return {"leader": "127.0.0.1:9"}


def test_a_newcomer_asks_for_patience_instead_of_being_turned_away_by_the_leader(tmp_path: pathlib.Path) -> None:
    """The leader answers members only, and would deny it for being a manager no more, which is no reason to retry."""

    async def main() -> None:
        part = manager_part.ManagerPart(
            config=settings.Settings(
                state_dir=tmp_path, socket=tmp_path / "s", name="n", runtime="memory", docker_socket="", labels={}
            ),
            place=settings.Membership(listen_addr="0.0.0.0:2377", advertise_addr="10.0.0.1:2377"),
            identity=lambda: OWN,
            front=cast("Any", None),
            metrics=manager_part.Metrics(prometheus_client.CollectorRegistry()),
            time=clock.SystemClock(),
            rng=ids.system_rng(),
        )
        part._raft = cast("Any", Group())
        with pytest.raises(commit.NotProposed, match="not a member of the managers' group yet"):
            async for _ in part.forward(pb.HttpRequest()):
                pass
        with pytest.raises(commit.NotProposed, match="try again"):
            part.tunnel()

    asyncio.run(main())
