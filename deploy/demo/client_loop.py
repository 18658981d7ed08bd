"""The demo's user: asks the service again and again while things happen, and counts what failed.

It does what any client behind a load balancer gets: the running replicas in turn, and when a connection is refused the
next replica. A request has failed when no replica answered it.
"""

import asyncio
import collections
import dataclasses
from collections.abc import Awaitable, Callable

REQUEST_TIMEOUT_S = 2.0
PERIOD_S = 0.02
TRIES_MAX = 3


@dataclasses.dataclass
class Count:
    """What became of the requests."""

    answered: int = 0
    retried: int = 0
    failed: int = 0
    versions: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __str__(self) -> str:
        seen = ", ".join(f"version {version}: {count}" for version, count in sorted(self.versions.items()))
        return f"{self.answered} answered ({seen}), {self.retried} retried on another replica, {self.failed} failed"


async def ask(port: int) -> str:
    """One request; returns the first word of the answer, the version. Raises OSError or TimeoutError."""
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET / HTTP/1.0\r\nHost: demo\r\n\r\n")
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0] + b" " or not body:
        raise OSError("no whole answer")
    return body.decode().split()[0]


class ClientLoop:
    """Runs between `start` and `stop`. `ports` gives the ports of the replicas that run now."""

    def __init__(self, ports: Callable[[], Awaitable[list[int]]]) -> None:
        self._ports = ports
        self._task: asyncio.Task[None] | None = None
        self._known: list[int] = []
        self.count = Count()

    async def start(self) -> None:
        """Begins to ask."""
        self.count = Count()
        self._known = await self._ports()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> Count:
        """Ends, and returns what was counted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        return self.count

    async def _run(self) -> None:
        refresh = asyncio.create_task(self._refresh())
        turn = 0
        try:
            while True:
                turn += 1
                await self._request(turn)
                await asyncio.sleep(PERIOD_S)
        finally:
            refresh.cancel()

    async def _refresh(self) -> None:
        while True:
            known = await self._ports()
            if known:
                self._known = known
            await asyncio.sleep(PERIOD_S * 5)

    async def _request(self, turn: int) -> None:
        known = self._known
        for attempt in range(TRIES_MAX):
            try:
                version = await ask(known[(turn + attempt) % len(known)])
            except (OSError, TimeoutError):
                if attempt + 1 < TRIES_MAX:
                    self.count.retried += 1
                known = self._known
            else:
                self.count.answered += 1
                self.count.versions[version] += 1
                return
        self.count.failed += 1
