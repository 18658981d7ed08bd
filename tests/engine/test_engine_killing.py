"""The short form of `killing.py`: one round of every kind of death."""

import asyncio
import pathlib
import random

import pytest

from tests.engine import conftest, killing

pytestmark = [pytest.mark.timeout(400)]

SECONDS = 15.0


def test_no_container_changes_when_agent_leader_and_engine_are_killed(
    engine: conftest.Engine, tmp_path: pathlib.Path
) -> None:
    own = engine.restartable()

    async def main() -> None:
        async with killing.running_cluster(tmp_path, own) as cluster:
            await killing.Killer(cluster, own, rng=random.Random(), say=print).run(SECONDS)

    asyncio.run(main())
