"""Runs one benchmark by name: `python -m tests.bench NAME [arguments]`.

A benchmark is a module of this folder with `main(arguments) -> None` that prints one `figure: value unit` a line.
Figures are reported, never asserted: machines are noisy. The load of the machine is printed before and after.
"""

import importlib
import os
import pathlib
import sys


def available() -> list[str]:
    """Names of all benchmarks."""
    here = pathlib.Path(__file__).parent
    return sorted(path.stem for path in here.glob("*.py") if not path.stem.startswith("_"))


def load() -> str:
    """One line on how busy the machine is."""
    one, five, _ = os.getloadavg()
    return f"machine.load_1m: {one:.2f} processes ({os.cpu_count()} cores, 5 min {five:.2f})"


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in available():
        print(f"usage: python -m tests.bench NAME; NAME is one of: {', '.join(available())}", file=sys.stderr)
        return 1
    module = importlib.import_module(f"tests.bench.{sys.argv[1]}")
    print(load(), flush=True)
    module.main(sys.argv[2:])
    print(load(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
