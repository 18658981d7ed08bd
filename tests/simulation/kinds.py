"""The kinds of simulation behind one command: consensus alone, a whole cluster, and agents with bad engines."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from tests.simulation import engines, run
from tests.simulation.cluster import run as cluster_run

CONSENSUS = "consensus"
CLUSTER = "cluster"
ENGINES = "engines"


class Report(Protocol):
    """What every kind of run tells of itself."""

    @property
    def trace(self) -> str:
        """A digest over everything that happened: equal for equal seeds."""
        ...

    @property
    def virtual_s(self) -> float:
        """How long the run was in virtual time."""
        ...

    def summary(self) -> str:
        """The run in a line."""
        ...


Simulate = Callable[[int], Report]

KINDS: dict[str, Simulate] = {
    CONSENSUS: run.simulate,
    CLUSTER: cluster_run.simulate,
    ENGINES: engines.simulate,
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One seed of one kind."""

    kind: str
    seed: int

    def run(self) -> Report:
        """Simulates. Raises Violation when an invariant does not hold."""
        return KINDS[self.kind](self.seed)

    @property
    def replay(self) -> str:
        """The command that does it again."""
        return f"make simulate SEED={self.seed} KIND={self.kind}"


# Seeds that have found something. They are run with every change; what they found has a test of its own as well, for a
# seed stands for another run as soon as the simulation draws one number more.
REGRESSIONS: tuple[Job, ...] = ()
