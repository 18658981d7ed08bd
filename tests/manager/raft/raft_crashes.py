"""Managers as processes that are killed at random moments under load: nothing acknowledged is lost, all end up equal.

`python -m tests.manager.raft.raft_crashes ROUNDS [SEED [power]]`, or `make crash ROUNDS=200 POWER=power`. In a round
some of three members are killed with SIGKILL, the leader as often as not, some once more while they start; then all
come back. With `power` everything that was not synced is lost with them (see lossy_disk). Snapshots are so frequent
that some crashes hit one being made, stored, sent or taken over.
"""

import asyncio
import itertools
import pathlib
import random
import sys
import tempfile

import grpc

from tests.manager.raft import raft_member, raft_processes

WRITERS = 8
WRITE_TIMEOUT_S = 3.0
RETRY_S = 0.02
PAYLOAD_BYTES_MAX = 1000
UNDER_LOAD_S = 0.5  # up to that long before a kill, and while somebody is dead
VICTIMS = (1, 1, 1, 2, 3)  # at once; one of these
DIES_AGAIN = 0.25  # how often one is killed once more while it starts


class Crashes:
    """Writers, kills and checks on one group."""

    def __init__(self, group: raft_processes.Group, rng: random.Random) -> None:
        self.acknowledged: list[str] = []
        self.unknown = 0
        self.kills = 0
        self._group = group
        self._rng = rng
        self._numbers = itertools.count()
        self._leader = group.members[0]  # whoever took the last write

    async def write(self) -> None:
        """One writer: a new task each time, never the same twice."""
        while True:
            name = f"w{next(self._numbers):07d}"
            op = raft_member.task(name, "x" * self._rng.randrange(PAYLOAD_BYTES_MAX))
            member = self._leader
            try:
                await member.commit(raft_processes.transaction(op), timeout_s=WRITE_TIMEOUT_S)
            except grpc.RpcError:
                self.unknown += 1
                self._leader = self._rng.choice(self._group.members)
                await asyncio.sleep(RETRY_S)
            else:
                self._leader = member
                self.acknowledged.append(name)

    async def round(self) -> None:
        """Kills, brings back, and waits until the group works again."""
        rng, members = self._rng, self._group.members
        await asyncio.sleep(rng.uniform(0, UNDER_LOAD_S))
        first = self._leader if rng.random() < 0.5 else rng.choice(members)
        others = [member for member in members if member is not first]
        victims = [first, *rng.sample(others, rng.choice(VICTIMS) - 1)]
        await asyncio.gather(*(self._kill(victim) for victim in victims))
        await asyncio.sleep(rng.uniform(0, UNDER_LOAD_S))
        for victim in victims:
            await victim.start()
            if rng.random() < DIES_AGAIN:
                await asyncio.sleep(rng.uniform(0, 3 * UNDER_LOAD_S))
                await self._kill(victim)
                await victim.start()
        before = len(self.acknowledged)

        async def working() -> bool:
            assert all(member.alive for member in members), "a member has ended by itself; see its log"
            answers = [await member.ask("status", timeout_s=5.0) for member in members]
            return any(answer["leads"] for answer in answers) and len(self.acknowledged) > before

        await raft_processes.until("the group works again", working)

    async def _kill(self, member: raft_processes.Member) -> None:
        await member.kill()
        self.kills += 1

    async def check(self, since: int) -> None:
        """Without writers: everybody has what was acknowledged from number `since` on, and all states are equal."""
        names, members = self.acknowledged[since:], self._group.members
        answers: list[raft_member.Answer] = []

        async def still() -> bool:
            answers[:] = [await member.ask("missing", names=names) for member in members]
            return len({answer["applied"] for answer in answers}) == 1

        await self._group.leader()
        await raft_processes.until("all members are at the same index", still)
        for member, answer in zip(members, answers, strict=True):
            assert not answer["missing"], f"{member.name} has lost acknowledged writes: {answer['missing'][:5]}"
        assert len({answer["digest"] for answer in answers}) == 1, "states differ at the same index"


def check_sealed(root: pathlib.Path, name: str) -> None:
    """What was written cannot be read on the disk: the crashes went over the log as it is in life."""
    stored = [path for path in root.glob("*/*") if path.name.startswith(("log-", "snapshot-"))]
    assert stored
    for path in stored:
        content = path.read_bytes()
        assert name.encode() not in content, f"{path} is not sealed"
        assert b"x" * 100 not in content, f"{path} is not sealed"


async def crash(root: pathlib.Path, *, rounds: int, seed: int, power: bool) -> Crashes:
    """So many rounds; AssertionError at the first thing that must not be."""
    times = {"snapshot_entries": 150, "keep_entries": 30}
    async with raft_processes.running(root, 3, lossy=power, **times) as group:
        crashes = Crashes(group, random.Random(seed))
        checked = 0
        try:
            for number in range(rounds):
                writers = [asyncio.create_task(crashes.write()) for _ in range(WRITERS)]
                try:
                    await crashes.round()
                finally:
                    for writer in writers:
                        writer.cancel()
                    ended = await asyncio.gather(*writers, return_exceptions=True)
                assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
                await crashes.check(checked)
                checked = len(crashes.acknowledged)
                print(f"round {number + 1}: {checked} writes acknowledged, {crashes.kills} kills", flush=True)
            await crashes.check(0)
            check_sealed(root, crashes.acknowledged[-1])
        except BaseException:
            for log in sorted(root.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
            raise
    return crashes


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 200
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().randrange(1_000_000)
    power = "power" in arguments
    print(f"rounds: {rounds}, seed: {seed}, {'loss of power' if power else 'SIGKILL'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="skep-crashes-") as directory:
        crashes = asyncio.run(crash(pathlib.Path(directory), rounds=rounds, seed=seed, power=power))
    print(f"raft.crash_rounds: {rounds} rounds")
    print(f"raft.crash_kills: {crashes.kills} kills")
    print(f"raft.crash_acknowledged: {len(crashes.acknowledged)} writes, of them lost: 0")


if __name__ == "__main__":
    main(sys.argv[1:])
