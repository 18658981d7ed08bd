"""The simulation of whole clusters as a test: runs repeat themselves, and known faults are found."""

import subprocess
import sys

import pytest

from agent.runtime import memory
from tests.simulation import alarm, engines, kinds, pool, shadow
from tests.simulation import mutants as known
from tests.simulation.cluster import mutants, run

pytestmark = pytest.mark.simulation


def test_a_run_is_a_function_of_its_seed() -> None:
    first = run.simulate(3, faults_s=6.0)
    assert run.simulate(3, faults_s=6.0) == first
    assert run.simulate(4, faults_s=6.0).trace != first.trace


@pytest.mark.parametrize("kind", list(kinds.KINDS))
def test_a_run_is_the_same_in_another_process(kind: str) -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "4", "--kind", kind, "--quiet"]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" s\n")[0].rpartition(",")[0]
        for _ in range(2)
    )
    assert "ok, trace" in first
    assert first == second


def test_the_first_failure_stops_the_run_and_says_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def simulate(seed: int) -> kinds.Report:
        shadow.require(seed != 3, "the third one is bad")
        return _Report()

    monkeypatch.setitem(kinds.KINDS, kinds.CLUSTER, simulate)
    done: list[int] = []
    failed = pool.run_jobs(
        (kinds.Job(kinds.CLUSTER, seed) for seed in range(1, 1000)),
        processes=2,
        progress=lambda outcome: done.append(outcome.job.seed),
    )
    assert failed is not None
    assert failed.failure == "Violation: the third one is bad"
    assert failed.job.replay == "make simulate SEED=3 KIND=cluster"
    assert len(done) < 20


def test_a_fault_can_be_put_back_by_hand() -> None:
    command = [
        sys.executable, "-m", "tests.simulation", "--kind", "consensus", "--seeds", "20",
        "--fault", "votes are forgotten",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAILED: consensus" in done.stderr


def test_a_seed_that_never_ends_is_told() -> None:
    """In a process of its own: it takes that process with it."""
    script = (
        "from tests.simulation import kinds, pool\n"
        "pool.SEED_S = 0.2\n"
        "kinds.KINDS['cluster'] = lambda seed: [None for _ in iter(int, 1)]\n"
        "pool.run_job(kinds.Job('cluster', 7))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "cluster 7 goes on for ever; replay: make simulate SEED=7 KIND=cluster" in done.stderr


def test_an_engine_that_is_made_to_start_a_task_twice_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    run_it = engines.Engine._run

    def again(self: engines.Engine, task_id: str, entry: memory._Entry) -> None:
        run_it(self, task_id, entry)
        if self.chance.random() < 0.1:
            run_it(self, task_id, entry)

    monkeypatch.setattr(engines.Engine, "_run", again)
    with pytest.raises(shadow.Violation, match="was started twice"):
        engines.simulate(2)


# Each known fault with the first seed to try and what is said when it is found: finding something else does not count.
FINDS = {
    "versions are not checked": (3, "let a change of"),
    "successors do not wait": (2, "runs 2 times"),
    "statuses go backwards": (1, "went back at"),
    "agents forget what runs": (56, "engines run"),
    "ended tasks are started again": (1, "0 completions"),
    "drained nodes get tasks": (1, "which takes none"),
    "nodes are overcommitted": (1, "of a service that may have"),
    "updates know no parallelism": (12, "is down to"),
    "old tasks go too early": (25, "is down to"),
    "reads without a barrier": (51, "is not linearizable"),
    "writes are acknowledged too early": (5, "is not linearizable"),
    "silence is not waited for": (11, "must never run twice"),
    "agents ignore their leases": (241, "must never run twice"),
    "agents make anew what runs": (4, "a second time"),
}


@pytest.mark.timeout(300)  # a minute of other people's work may lie between two of ours
@pytest.mark.parametrize("name", list(FINDS))
def test_faults_that_are_put_back_are_found(name: str) -> None:
    first, words = FINDS[name]
    # The first one, until the simulation draws otherwise.
    found = known.first_find(mutants.MUTANTS[name], run.simulate, range(first, first + 10))
    assert found is not None
    assert words in str(found[1])


class _Report:
    trace = ""
    virtual_s = 1.0

    def summary(self) -> str:
        return ""


def test_an_error_in_the_products_log_is_a_finding() -> None:
    with pytest.raises(shadow.Violation, match=r"decider\.failed"), alarm.armed():
        alarm.ring("decider.failed")
