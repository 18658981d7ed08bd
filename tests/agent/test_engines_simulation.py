"""A few seeds of the simulation of engines; `make simulate KIND=engines` runs many."""

import pytest

from agent.tasks import machine
from tests.simulation import engines, shadow

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize("seed", [2, 8, 11])
def test_no_task_is_lost_or_doubled_by_engines_that_fail_hang_and_lie(seed: int) -> None:
    report = engines.simulate(seed)
    assert report.tasks > 20
    assert sum(report.deeds.values()) > 20


def test_a_container_that_is_left_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks are worth something: an agent that believes whatever its engine says is caught."""
    real = machine._ended

    def credulous(now: machine.Situation) -> machine.Step:
        if now.completed is machine.Action.REMOVE:
            return machine.Step(now.state, machine.Action.DONE)
        return real(now)

    monkeypatch.setattr(machine, "_ended", credulous)
    monkeypatch.setattr("agent.worker.Worker._sweep_soon", lambda self: None)

    def run() -> None:
        for seed in range(1, 12):
            engines.simulate(seed)

    with pytest.raises(shadow.Violation, match="unknown containers are left"):
        run()
