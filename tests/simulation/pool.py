"""Runs seeds on all cores and stops at the first that breaks an invariant."""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator

from tests.simulation import alarm, kinds

PR_SET_PDEATHSIG = 1  # see prctl(2)
SEED_S = 300.0  # of processor time: no seed takes so long, unless something in it goes round and round
BACKLOG = 2  # jobs a process has waiting: no more is wasted when one of them fails


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    job: kinds.Job
    failure: str = ""  # in words; empty when all invariants held
    summary: str = ""
    trace: str = ""
    virtual_s: float = 0.0
    cpu_s: float = 0.0


@dataclasses.dataclass
class Tally:
    """What a number of jobs amount to."""

    started_at: float = dataclasses.field(default_factory=time.perf_counter)
    done: dict[str, int] = dataclasses.field(default_factory=dict)
    virtual_s: dict[str, float] = dataclasses.field(default_factory=dict)
    cpu_s: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Counts a job that held."""
        kind = outcome.job.kind
        self.done[kind] = self.done.get(kind, 0) + 1
        self.virtual_s[kind] = self.virtual_s.get(kind, 0.0) + outcome.virtual_s
        self.cpu_s[kind] = self.cpu_s.get(kind, 0.0) + outcome.cpu_s

    def line(self) -> str:
        """For people."""
        elapsed_s = time.perf_counter() - self.started_at
        seeds = sum(self.done.values())
        each = ", ".join(f"{count} {kind} ({self.cpu_s[kind] / count:.2f} s each)" for kind, count in self.done.items())
        hours = sum(self.virtual_s.values()) / 3600
        rate = 60 * seeds / elapsed_s
        return f"{seeds} seeds: {each}; {hours:.2f} virtual hours in {elapsed_s:.0f} s, {rate:.0f} seeds per minute"


def run_job(job: kinds.Job) -> Outcome:
    """One job in this process."""
    began = time.process_time()
    try:
        with _bounded(job):
            report = job.run()
    except Exception as error:  # noqa: BLE001  # whatever it is, the seed has found something
        words = f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError):
            words += "\n" + "".join(traceback.format_exception(error))
        return Outcome(job, failure=words, cpu_s=time.process_time() - began)
    spent_s = time.process_time() - began
    return Outcome(job, summary=report.summary(), trace=report.trace, virtual_s=report.virtual_s, cpu_s=spent_s)


@contextlib.contextmanager
def _bounded(job: kinds.Job) -> Iterator[None]:
    """Ends this process with words when the job never ends: an exception would get lost in the product's handlers."""

    def give_up(_number: int, frame: types.FrameType | None) -> None:
        traceback.print_stack(frame)
        print(f"FAILED: {job.kind} {job.seed} goes on for ever; replay: {job.replay}", file=sys.stderr, flush=True)
        os._exit(1)

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, SEED_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def run_jobs(jobs: Iterable[kinds.Job], *, processes: int, progress: Callable[[Outcome], None]) -> Outcome | None:
    """Runs jobs in order of their start until one fails, which is returned; None when all held."""
    source = iter(jobs)
    # Forked: the simulation draws no entropy of its own, and what is imported need not be imported again.
    context = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)
    failed: Outcome | None = None
    try:
        waiting: dict[concurrent.futures.Future[Outcome], None] = {}
        while True:
            for job in _take(source, processes * BACKLOG - len(waiting)):
                waiting[pool.submit(run_job, job)] = None
            if not waiting:
                return None
            done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                del waiting[future]
                outcome = future.result()
                if outcome.failure:
                    failed = outcome
                else:
                    progress(outcome)
            if failed is not None:
                return failed
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _take(source: Iterator[kinds.Job], count: int) -> Iterator[kinds.Job]:
    for _ in range(count):
        job = next(source, None)
        if job is None:
            return
        yield job


def _begin() -> None:
    alarm.configure()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever is stopped in the middle leaves nobody behind
    sys.stdout = sys.stderr  # what is printed by accident must not get between the results


def cores() -> int:
    """How many processes are worth while."""
    return max(1, len(os.sched_getaffinity(0)))
