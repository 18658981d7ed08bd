"""How long to wait before trying again: longer each time, and never in step with everybody else."""

from skep import ids


class Backoff:
    """A growing pause with jitter. Not shared between things that are retried independently."""

    def __init__(self, *, first_s: float, max_s: float, rng: ids.Rng, floor: float = 0.0) -> None:
        """Pauses are drawn between `floor` (a fraction) of the present bound and the bound itself."""
        self._first_s = first_s
        self._max_s = max_s
        self._floor = floor
        self._rng = rng
        self._bound_s = 0.0

    def next_s(self) -> float:
        """The next pause, in seconds."""
        self._bound_s = min(self._first_s + 2 * self._bound_s, self._max_s)
        return self._rng.uniform(self._floor * self._bound_s, self._bound_s)

    def reset(self) -> None:
        """It worked: the next pause is a short one again."""
        self._bound_s = 0.0
