"""A few seeds of the simulation; `make simulate` runs many."""

import pytest

from tests.simulation import mutants, run, shadow

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize("seed", range(1, 9))
def test_invariants_hold_under_faults(seed: int) -> None:
    report = run.simulate(seed, faults_s=8.0)
    assert report.acknowledged > 5


def test_a_run_is_a_function_of_its_seed() -> None:
    assert run.simulate(3, faults_s=4.0).trace == run.simulate(3, faults_s=4.0).trace
    assert run.simulate(3, faults_s=4.0).trace != run.simulate(4, faults_s=4.0).trace


@pytest.mark.parametrize("name", mutants.QUICKLY_FOUND)
def test_faults_that_are_put_back_are_found(name: str) -> None:
    found = mutants.first_find(mutants.MUTANTS[name], lambda seed: run.simulate(seed, faults_s=10.0), range(1, 6))
    assert found is not None
    assert isinstance(found[1], shadow.Violation)
