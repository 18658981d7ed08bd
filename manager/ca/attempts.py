"""How often a host may show a wrong join token. Pure: the caller passes the time."""

BURST = 10  # wrong tokens at once, for a person who pastes the wrong line a few times
REFILL_S = 6.0  # one more attempt each
HOSTS_MAX = 4096  # hosts remembered; the one that was quiet longest is forgotten first


class AttemptLimit:
    """A bucket of failures per host. Successes cost nothing."""

    def __init__(self, *, burst: int = BURST, refill_s: float = REFILL_S, hosts_max: int = HOSTS_MAX) -> None:
        self._burst = burst
        self._refill_s = refill_s
        self._hosts_max = hosts_max
        self._failures: dict[str, tuple[float, float]] = {}  # host -> (failures that still count, as of when)

    def wait_s(self, host: str, *, now: float) -> float:
        """How long `host` must wait before it may try again; 0 when it may now."""
        excess = self._counting(host, now) - (self._burst - 1)
        return max(0.0, excess * self._refill_s)

    def failed(self, host: str, *, now: float) -> None:
        """Counts a wrong token shown by `host`."""
        count = self._counting(host, now) + 1
        self._failures.pop(host, None)
        if len(self._failures) >= self._hosts_max:
            del self._failures[next(iter(self._failures))]
        self._failures[host] = (count, now)

    def _counting(self, host: str, now: float) -> float:
        count, since = self._failures.get(host, (0.0, now))
        return max(0.0, count - (now - since) / self._refill_s)
