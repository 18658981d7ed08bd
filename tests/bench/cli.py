"""How long `skep --help` and `skep service create --help` take, process start included. Medians of fresh processes."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

RUNS = 15


def median_ms(arguments: Sequence[str], *, runs: int = RUNS) -> float:
    """The median wall time of the command, in milliseconds; one run before to fill the file cache."""
    times: list[float] = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, check=True)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times[1:])


def main(arguments: Sequence[str]) -> None:
    runs = int(arguments[0]) if arguments else RUNS
    print(f"cli.help_ms: {median_ms(['skep', '--help'], runs=runs):.0f} ms")
    print(f"cli.service_create_help_ms: {median_ms(['skep', 'service', 'create', '--help'], runs=runs):.0f} ms")
    print(f"cli.python_start_ms: {median_ms(['this'], runs=runs):.0f} ms")
