"""Membership changes and the transfer of leadership, step by step: what each waits for and when it is refused."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from manager.raft import config, core
from skep import errors

BEHIND_ENTRIES_MAX = 100  # a newcomer that lacks no more than this gets its vote


class Driver(Protocol):
    """What is needed of the driver."""

    async def until(self, condition: Callable[[], bool], *, timeout_s: float) -> bool: ...

    def change(self, members: Mapping[str, str], done: core.Done) -> None: ...

    def wake(self) -> None: ...


class Changes:
    """Carries out one change at a time."""

    def __init__(self, driver: Driver, raft: core.RaftCore, times: config.RaftConfig) -> None:
        self._driver = driver
        self._core = raft
        self._times = times
        self._busy = ""

    async def add(self, node_id: str, addr: str) -> None:
        """Adds a member once it has caught up, or changes a member's address."""
        host, _, port = addr.rpartition(":")
        if not node_id or not host or not port.isdecimal():
            raise errors.Invalid(f"manager {node_id!r} needs an ID and an address HOST:PORT, not {addr!r}")
        self._begin(f"adding manager {node_id}")
        try:
            members = self._core.members
            if members.get(node_id) == addr:
                return
            if node_id not in members:
                await self._catch_up(node_id, addr)
            await self._commit({**self._core.members, node_id: addr})
        finally:
            self._busy = ""
            if node_id not in self._core.members:
                self._core.unlearn(asyncio.get_running_loop().time(), node_id)

    async def remove(self, node_id: str) -> None:
        """Removes a member, unless the others could then not decide anything."""
        self._begin(f"removing manager {node_id}")
        try:
            members = self._core.members
            if node_id not in members:
                raise errors.NotFound(f"manager {node_id} is not in the cluster")
            rest = {member: addr for member, addr in members.items() if member != node_id}
            if not rest:
                raise errors.FailedPrecondition("the last manager cannot be removed: the cluster would be gone")
            alive = self._core.responsive
            answering = sum(1 for member in rest if member in alive)
            if 2 * answering <= len(rest):
                raise errors.FailedPrecondition(
                    f"removing manager {node_id} would leave {answering} of {len(rest)} managers reachable, which is "
                    f"no majority: the cluster would be without a quorum. Bring other managers back, or add one, first"
                )
            await self._commit(rest)
        finally:
            self._busy = ""

    async def transfer(self) -> None:
        """Hands leadership to the member that is best placed."""
        loop = asyncio.get_running_loop()
        ask_at = loop.time()

        def taken_over() -> bool:
            nonlocal ask_at
            if not self._core.leading:
                return True
            now, successor = loop.time(), self._core.successor()
            if now >= ask_at and successor and self._core.hand_over(now, successor):
                ask_at = now + self._times.heartbeat_s  # again then: the request may be lost
                self._driver.wake()  # rounds send before they look at who waits
            return False

        if not self._core.successor():
            raise errors.Unavailable("no other manager is reachable that could take over")
        timeout_s = min(self._times.change_timeout_s, 3 * self._times.election_max_s)
        if not await self._driver.until(taken_over, timeout_s=timeout_s):
            raise errors.Unavailable("no other manager took over in time")

    def _begin(self, what: str) -> None:
        if self._busy:
            raise errors.FailedPrecondition(f"{what} has to wait: {self._busy} is under way")
        self._busy = what

    async def _catch_up(self, node_id: str, addr: str) -> None:
        self._core.learn(asyncio.get_running_loop().time(), node_id, addr)

        def caught_up() -> bool:
            behind = self._core.journal.last_index - self._core.progress(node_id)
            return behind <= BEHIND_ENTRIES_MAX and self._core.progress(node_id) >= self._core.journal.configuration[0]

        def settled() -> bool:
            return not self._core.leading or caught_up()

        if not await self._driver.until(settled, timeout_s=self._times.catch_up_timeout_s):
            raise errors.Unavailable(
                f"manager {node_id} at {addr} did not answer, or did not catch up within "
                f"{self._times.catch_up_timeout_s:g} s; check that it runs and that its port is reachable from here"
            )
        self._check_leading()

    async def _commit(self, members: Mapping[str, str]) -> None:
        """Proposes a configuration and waits until it is applied."""
        outcomes: list[core.Outcome] = []

        def done(outcome: core.Outcome, _: Any) -> None:
            outcomes.append(outcome)

        self._driver.change(members, done)
        if outcomes and outcomes[0] is core.Outcome.FAILED:
            self._check_leading()
            raise errors.FailedPrecondition("an earlier change of the managers is not committed yet; try again")
        if not await self._driver.until(lambda: bool(outcomes), timeout_s=self._times.change_timeout_s):
            raise errors.Unavailable("the change of the managers is not committed yet; look again later")
        if outcomes[0] is not core.Outcome.DONE:
            raise errors.Unavailable("this manager stopped leading; whether the managers were changed is unknown")

    def _check_leading(self) -> None:
        if not self._core.in_charge:
            raise errors.Unavailable("this manager stopped leading; ask the new leader")
