"""One core by itself, message by message: the test is its network, its disk and its clock."""

from collections.abc import Sequence
from typing import Any

from manager.raft import config, core, journal, messages, snapshot
from skep import ids

TIMES = config.RaftConfig()
ME = "a"


class NoMachine:
    """Remembers what was applied."""

    def __init__(self) -> None:
        self.applied: list[int] = []

    def apply(self, index: int, body: bytes) -> Any:
        self.applied.append(index)
        return index

    def receive(self, taken: snapshot.Snapshot, blocks: Sequence[bytes]) -> None:
        raise AssertionError("no snapshot was sent")

    def install(self, content: Any) -> None:
        raise AssertionError("no snapshot was sent")

    def discard(self, content: Any) -> None:
        raise AssertionError("no snapshot was sent")

    def take_snapshot(self, wanted: snapshot.Snapshot) -> None:
        raise AssertionError("none was asked for")


class Lone:
    """The core of member `a`; everybody else is reachable and says what the test says."""

    def __init__(self, others: str) -> None:
        members = {name: f"{name}:1" for name in (ME, *others)}
        self.now = 0.0
        self.machine = NoMachine()
        self.journal = journal.Journal(None, bootstrap=members)
        self.core = core.RaftCore(
            now=self.now, node_id=ME, journal=self.journal, machine=self.machine, rng=ids.seeded_rng(1), times=TIMES,
            open_snapshot=lambda _: None,  # type: ignore[arg-type,return-value]  # never called
        )  # fmt: skip
        for peer in others:
            self.core.link_up(self.now, peer)
        self.turn()

    def turn(self, pass_s: float = 0.0) -> list[tuple[str, messages.Message]]:
        """Time passes, the core ticks, everything is durable; what it sends."""
        self.now += pass_s
        self.core.tick(self.now)
        self.journal.written(self.journal.take())
        self.core.tick(self.now)
        return self.core.outbox.take()

    def give(self, peer: str, **message: Any) -> list[tuple[str, messages.Message]]:
        """A message from `peer`; what the core sends then."""
        self.core.receive(self.now, peer, message)
        return self.turn()

    def stand(self, *willing: str) -> None:
        """A pre-vote that these promise to support: a candidate afterwards."""
        self.turn(TIMES.election_max_s)
        for peer in willing:
            self.give(
                peer, type="pre_vote_reply", term=self.core.term + 1, current_term=self.core.term, granted=True,
                configuration=None,
            )  # fmt: skip

    def vote(self, peer: str, term: int | None = None) -> bool:
        """A vote; whether the core leads then."""
        self.give(peer, type="response_vote", term=self.core.term if term is None else term)
        return self.core.leading

    def lead(self, *willing: str) -> None:
        """Elected by these."""
        self.stand(*willing)
        assert any(self.vote(peer) for peer in willing)

    def acknowledge(self, peer: str, index: int, term: int | None = None) -> None:
        """`peer` says that it has the log up to `index`."""
        self.give(
            peer, type="next_node_idx", term=self.core.term if term is None else term, next_node_idx=index + 1,
            round=0, reset=False, success=True, snapshot=None,
        )  # fmt: skip
