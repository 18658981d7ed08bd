"""python -m tests.simulation --seeds N [--seed S]: runs seeds and stops at the first that breaks an invariant."""

import argparse
import logging
import os
import sys
import time

import structlog

from tests.simulation import run


def main() -> int:
    """Exit code 0 when every seed holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=20, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None, help="only this one, with the managers' log")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED", "random") == "random":
        os.environ["PYTHONHASHSEED"] = "0"  # sets of strings are in another order in every process otherwise
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    if arguments.seed is None:
        quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
        structlog.configure(wrapper_class=quiet)
    seeds = (
        [arguments.seed] if arguments.seed is not None else range(arguments.first, arguments.first + arguments.seeds)
    )
    began = time.perf_counter()
    virtual_s = 0.0
    done = 0
    for seed in seeds:
        try:
            report = run.simulate(seed)
        except Exception as error:
            print(f"FAILED: {type(error).__name__}: {error}", file=sys.stderr)
            replay = f"PYTHONHASHSEED={os.environ['PYTHONHASHSEED']} python -m tests.simulation --seed {seed}"
            print(f"replay: {replay}", file=sys.stderr)
            if arguments.seed is not None:
                raise
            return 1
        done += 1
        virtual_s += report.virtual_s
        print(
            f"seed {seed}: ok trace {report.trace} acknowledged {report.acknowledged} unknown {report.unknown} "
            f"reads {report.reads} terms {report.terms} faults {sum(report.faults.values())}",
            flush=True,
        )
    elapsed_s = time.perf_counter() - began
    print(
        f"{done} seeds, {virtual_s / 3600:.2f} virtual hours in {elapsed_s:.1f} s "
        f"({60 * done / elapsed_s:.0f} seeds per minute), PYTHONHASHSEED={os.environ['PYTHONHASHSEED']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
