"""Managers killed at random moments under load; `make crash ROUNDS=200` is the long form."""

import asyncio
import pathlib

import pytest

from tests.manager.raft import raft_crashes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
ROUNDS = 6


@pytest.mark.parametrize("power", [False, True], ids=["SIGKILL", "loss of power"])
def test_managers_that_die_under_load_lose_nothing_that_was_acknowledged(tmp_path: pathlib.Path, power: bool) -> None:
    crashes = asyncio.run(raft_crashes.crash(tmp_path, rounds=ROUNDS, seed=11, power=power))
    assert len(crashes.acknowledged) > 20 * ROUNDS
    assert crashes.kills >= ROUNDS
    assert list(tmp_path.glob("m*/snapshot-*")), "snapshots were made"
