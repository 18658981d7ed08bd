"""python -m tests.simulation: runs seeds on all cores and stops at the first that breaks an invariant."""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.simulation import alarm, kinds, mutants, pool
from tests.simulation.cluster import mutants as cluster_mutants

REPORT_EVERY_S = 10.0
CI_SEEDS = {kinds.CONSENSUS: 200, kinds.CLUSTER: 40, kinds.ENGINES: 30}  # fresh ones, with every commit
FAULTS = mutants.MUTANTS | cluster_mutants.MUTANTS


def main() -> int:
    """Exit code 0 when every seed holds."""
    arguments = _arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"  # sets of strings are in another order in every process otherwise
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    names = [arguments.kind] if arguments.kind else list(kinds.KINDS)
    with mutants.put_back(FAULTS[arguments.fault]) if arguments.fault else contextlib.nullcontext():
        if arguments.seed is not None:
            return _replay([kinds.Job(kind, arguments.seed) for kind in names], loud=not arguments.quiet)
        if arguments.ci:
            return _continuous_integration()
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        return _run(kinds.Job(kind, seed) for seed in seeds for kind in names)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=20, help="how many of each kind, from --first on")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None, help="only this one, with the product's log")
    parser.add_argument("--kind", choices=list(kinds.KINDS), default=None, help="only this kind")
    parser.add_argument(
        "--fault", choices=list(FAULTS), default=None, help="put this known fault back, to see it found"
    )
    parser.add_argument("--quiet", action="store_true", help="with --seed: without the log")
    parser.add_argument(
        "--ci", action="store_true", help="regression seeds, then fresh ones that the commit at HEAD stands for"
    )
    return parser.parse_args()


def _replay(jobs: list[kinds.Job], *, loud: bool) -> int:
    alarm.configure(loud=loud)
    for job in jobs:
        outcome = pool.run_job(job)
        if outcome.failure:
            print(f"FAILED: {job.kind} {job.seed}: {outcome.failure}", file=sys.stderr)
            return 1
        print(f"{job.kind} {job.seed}: ok, trace {outcome.trace}, {outcome.summary}, {outcome.cpu_s:.2f} s")
    return 0


def _run(jobs: Iterator[kinds.Job]) -> int:
    tally = pool.Tally()
    reported_at = time.perf_counter()

    def progress(outcome: pool.Outcome) -> None:
        nonlocal reported_at
        tally.add(outcome)
        if time.perf_counter() - reported_at >= REPORT_EVERY_S:
            reported_at = time.perf_counter()
            print(tally.line(), flush=True)

    failed = pool.run_jobs(jobs, processes=pool.cores(), progress=progress)
    if failed is not None:
        print(f"FAILED: {failed.job.kind} {failed.job.seed}: {failed.failure}", file=sys.stderr)
        print(f"replay: {failed.job.replay}", file=sys.stderr)
        return 1
    print(tally.line(), flush=True)
    return 0


def _continuous_integration() -> int:
    base, commit = _base()
    print(f"simulation: seeds from {base} on (of commit {commit})", flush=True)
    fresh = (kinds.Job(kind, base + number) for kind, count in CI_SEEDS.items() for number in range(count))
    return _run(iter([*kinds.REGRESSIONS, *fresh]))


def _base() -> tuple[int, str]:
    """Every commit has seeds of its own, and anyone finds out which."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    commit = head or "0" * 40  # not a checkout
    return int(commit[:6], 16) * 1000, commit[:12]


if __name__ == "__main__":
    sys.exit(main())
