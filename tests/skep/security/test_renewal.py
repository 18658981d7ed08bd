"""When a certificate is renewed, and what happens when that fails. Time is the test's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import hypothesis
import pytest
from hypothesis import strategies

from skep import errors, ids, pb
from skep.security import enroll, keys, renewal, tls
from skep.security import identity as identities

NOW = 1_800_000_000.0
DAY_S = 86_400.0
ROOT = keys.new_root(now=NOW)


def make(*, now: float = NOW) -> identities.Identity:
    key_pem = keys.new_key()
    cert_pem = keys.sign_node(
        keys.new_csr(key_pem), root=ROOT, node_id="n1", cluster_id="c1", role=pb.NODE_ROLE_WORKER, now=now
    )
    return keys.verified(key_pem=key_pem, cert_pem=cert_pem, root_pem=ROOT.cert_pem, now=now)


IDENTITY = make()


class Time:
    """A clock that is set by hand."""

    def __init__(self, at: float) -> None:
        self.at = at

    def now(self) -> float:
        return self.at


class Site:
    """A Renewer whose managers are functions instead of machines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], identities.Identity]) -> None:
        self.time = Time(NOW)
        self.identity = IDENTITY
        self.saved: list[identities.Identity] = []
        self.asked = 0
        self.progress = asyncio.Event()

        async def renew(*_args: object, **_options: object) -> enroll.Enrolled:
            self.asked += 1
            self.progress.set()
            return enroll.Enrolled(identity=answer(), managers=(), members={"m": "127.0.0.1:1"})

        monkeypatch.setattr(enroll, "renew", renew)
        self.renewer = renewal.Renewer(
            current=lambda: self.identity,
            save=self.save,
            managers=lambda: ["127.0.0.1:1", "127.0.0.1:2"],
            time=self.time,
            rng=ids.seeded_rng(1),
            dial=tls.dialler(lambda: self.identity),
        )

    def save(self, identity: identities.Identity) -> None:
        self.identity = identity
        self.saved.append(identity)
        self.progress.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.progress.clear()
                await self.progress.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The renewer's loop, for the duration."""
        task = asyncio.create_task(self.renewer.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@hypothesis.given(strategies.integers(min_value=0))
def test_between_half_and_four_fifths_of_the_lifetime(seed: int) -> None:
    info = keys.inspect(IDENTITY.cert_pem)
    share = (renewal.renew_at(IDENTITY.cert_pem, ids.seeded_rng(seed)) - info.not_before) / (
        info.not_after - info.not_before
    )
    assert 0.5 <= share <= 0.8


def test_it_waits_until_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "LOOK_AGAIN_S", 0.001)
    fresh = make(now=NOW + 80 * DAY_S)

    async def main() -> None:
        site = Site(monkeypatch, lambda: fresh)
        async with site.running():
            for _ in range(20):
                await asyncio.sleep(0.002)
            assert site.asked == 0
            site.time.at = NOW + 80 * DAY_S  # the clock was set, or the machine slept
            await site.until(lambda: site.saved == [fresh])
            assert site.asked == 1

    asyncio.run(main())


def test_a_change_of_role_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        fresh = make()
        site = Site(monkeypatch, lambda: fresh)
        async with site.running():
            site.renewer.trigger()
            await site.until(lambda: site.saved == [fresh])

    asyncio.run(main())


def test_all_managers_are_tried_and_failures_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "BACKOFF_S_MIN", 0.0)
    fresh = make()

    async def main() -> None:
        def answer() -> identities.Identity:
            if site.asked < 4:  # both managers, twice
                raise errors.Unavailable("no leader")
            return fresh

        site = Site(monkeypatch, answer)
        async with site.running():
            site.renewer.trigger()
            await site.until(lambda: site.saved == [fresh])
            assert site.asked == 4

    asyncio.run(main())


def test_an_expired_certificate_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        site = Site(monkeypatch, make)
        site.time.at = NOW + 91 * DAY_S
        with pytest.raises(errors.Denied, match="Swarm certificates have expired"):
            await site.renewer.renew()
        assert site.asked == 0

    asyncio.run(main())
