"""Managers killed at random moments under load; `make crash ROUNDS=200` is the long form."""

import asyncio
import pathlib

import pytest

from tests.manager.raft import raft_crashes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
ROUNDS = 10


def test_managers_killed_under_load_lose_nothing_that_was_acknowledged(tmp_path: pathlib.Path) -> None:
    crashes = asyncio.run(raft_crashes.crash(tmp_path, rounds=ROUNDS, seed=11))
    assert len(crashes.acknowledged) > 20 * ROUNDS
    assert crashes.kills >= ROUNDS
    assert list(tmp_path.glob("m*/snapshot-*")), "snapshots were made"
