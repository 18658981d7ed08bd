"""Renewing a node's certificate in time, and at once when its role has changed.

Owns when; how is `enroll.renew`. Wall-clock time decides, looked at again every few minutes, because a machine that
slept or whose clock was set wakes up at another time than it planned.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from skep import clock, errors, ids
from skep.security import enroll, keys, tls
from skep.security import identity as identities

log = structlog.get_logger(__name__)

EARLIEST = 0.5  # of the lifetime
LATEST = 0.8
LOOK_AGAIN_S = 300.0
BACKOFF_S_MIN = 5.0
BACKOFF_S_MAX = 3_600.0


def renew_at(cert_pem: bytes, rng: ids.Rng) -> float:
    """When to renew, in seconds since the epoch: at random between 50 and 80 % of the certificate's lifetime.

    Chance keeps a cluster whose machines joined together from renewing together.
    """
    info = keys.inspect(cert_pem)
    return info.not_before + (info.not_after - info.not_before) * rng.uniform(EARLIEST, LATEST)


class Renewer:
    """Keeps the node's identity fresh for as long as `run` runs.

    `save` gets each new identity and must have stored it before it returns; from then on `current` returns it.
    `managers` are cluster addresses to try in turn.
    """

    def __init__(
        self,
        *,
        current: tls.Current,
        save: Callable[[identities.Identity], None],
        managers: Callable[[], Sequence[str]],
        time: clock.Clock,
        rng: ids.Rng,
        dial: tls.Dial | None = None,
    ) -> None:
        self._current = current
        self._save = save
        self._managers = managers
        self._clock = time
        self._rng = rng
        self._dial = dial or tls.dialler(current)
        self._wanted = asyncio.Event()
        self.members: dict[str, str] = {}  # cluster address by node ID of the managers, as of the last renewal

    def trigger(self) -> None:
        """Asks for a renewal now: the node's role has changed."""
        self._wanted.set()

    async def run(self) -> None:
        """Renews whenever it is due, until cancelled. Failures are logged and tried again."""
        while True:
            await self._until(renew_at(self._current().cert_pem, self._rng))
            backoff_s = BACKOFF_S_MIN
            while True:
                self._wanted.clear()
                try:
                    await self.renew()
                except (errors.SkepError, OSError) as error:
                    log.warning("identity.renewal_failed", reason=str(error), retry_s=backoff_s)
                else:
                    break
                await self._until(self._clock.now() + backoff_s * self._rng.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)

    async def renew(self) -> identities.Identity:
        """Renews now, through the first manager that answers, and saves the result.

        Raises what the last manager said: Denied when this node is no longer in the cluster or its certificate has
        expired, Unavailable when none could be reached.
        """
        identity = self._current()
        if self._clock.now() > keys.inspect(identity.cert_pem).not_after:
            raise errors.Denied(keys.EXPIRED)
        failure: errors.SkepError = errors.Unavailable("no manager is known that could renew the certificate")
        for addr in self._managers():
            try:
                async with self._dial(addr) as channel:
                    renewed = await enroll.renew(identity, channel, time=self._clock)
            except errors.SkepError as error:
                failure = error
                continue
            fresh = renewed.identity
            self.members = renewed.members
            self._save(fresh)
            log.info("identity.renewed", node=fresh.node_id, role=keys.role_name(fresh.role))
            return fresh
        raise failure

    async def _until(self, moment: float) -> None:
        """Returns at `moment` by the wall clock, or as soon as a renewal is wanted."""
        while not self._wanted.is_set():
            remaining_s = moment - self._clock.now()
            if remaining_s <= 0:
                return
            try:
                async with asyncio.timeout(min(remaining_s, LOOK_AGAIN_S)):
                    await self._wanted.wait()
            except TimeoutError:
                continue
