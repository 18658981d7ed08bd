"""The product's own log under simulation: silent but for a replay, and every error in it is a finding.

Much in the product outlives a fault of its own on purpose: a loop that crashed is started again, a decider that raised
rests. In life that is right; here it would hide the fault. Whatever is logged as an error is therefore kept, and the
run that logged it fails.
"""

import asyncio
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

from tests.simulation import memory_disk, shadow

# What is an error to an operator and nothing wrong: machines lose their disks and nodes are removed here all the time.
EXPECTED = ("raft.failed", "daemon.removed_from_cluster")
_SEVERE = ("error", "exception", "critical")

_raised: list[str] = []


def configure(*, loud: bool = False) -> None:
    """Sets up logging for this process; `loud` prints every event with its virtual time."""
    structlog.configure(
        processors=[_collect, _print if loud else _drop],
        wrapper_class=structlog.make_filtering_bound_logger(10 if loud else 40),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


@contextmanager
def armed() -> Iterator[None]:
    """Raises Violation at the end, and at every `check` before it, when an error was logged meanwhile."""
    _raised.clear()
    before = structlog.get_config()
    ours = before["processors"][:1] == [_collect]
    if not ours:
        configure()
    try:
        yield
    finally:
        if not ours:
            structlog.configure(**before)
    check()


@contextmanager
def listening(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """A task of the loop that failed while nobody looked is a finding, for as long as its run lasts.

    Afterwards nothing is said: such tasks are collected in the middle of whatever comes next.
    """
    loop.set_exception_handler(_unretrieved)
    try:
        yield
    finally:
        loop.set_exception_handler(lambda *_: None)


def _unretrieved(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """That machines die in the middle of a write is what happens here."""
    del loop
    error = context.get("exception")
    if not isinstance(error, memory_disk.Crashed):
        ring(f"{context.get('message')}: {error!r}")


def check() -> None:
    """Raises Violation when an error was logged."""
    shadow.require(not _raised, f"the product logged an error: {_raised[:1]}")


def ring(words: str) -> None:
    """Something happened that is a finding."""
    _raised.append(words)


def _collect(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    del logger
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()[1]
    if method in _SEVERE and (event["event"] not in EXPECTED or isinstance(error, shadow.Violation)):
        words = " ".join(f"{key}={value}" for key, value in event.items() if key not in {"event", "exc_info"})
        if isinstance(error, shadow.Violation):
            words = str(error)  # a checker's, out of a loop that thinks it is its own
        _raised.append(f"{event['event']} {words} {error!r}")
    return event


def _drop(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    del logger, method, event
    raise structlog.DropEvent


def _print(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    del logger
    try:
        now = asyncio.get_running_loop().time()
    except RuntimeError:
        now = 0.0
    error = event.pop("exc_info", None)
    words = " ".join(f"{key}={value}" for key, value in event.items() if key != "event")
    return f"{now:10.4f} {method:7} {event['event']} {words}{f' {error!r}' if error else ''}"
