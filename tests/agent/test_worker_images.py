"""Which images the runtime is told to keep: those of the tasks here, and those that their rollback would need."""

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from agent import worker
from agent.tasks import revisions
from manager.store import ops
from skep import pb
from tests import virtual_time
from tests.agent import joined

until = virtual_time.until


def revision(number: int, *, service: str = "s1", secret: str = "") -> pb.Revision:
    made = joined.revision(f"{service}.{number}", image=f"{service}:{number}")
    made.service_id, made.number = service, number
    if secret:
        made.spec.task.container.secrets.add(secret_id=secret, secret_name="word").file.name = "word"
    return made


def task(number: int, *, service: str = "s1") -> pb.Task:
    made = joined.task(f"{service}t{number}", "n1", revision_id=f"{service}.{number}")
    made.service_id = service
    return made


class Tidied:
    """Notes what the runtime is asked to keep."""

    def __init__(self, agent: joined.Agent) -> None:
        self.rounds: list[list[str]] = []
        agent.runtime.tidy = self._tidy  # type: ignore[method-assign]

    async def _tidy(self, needed: Collection[str]) -> None:
        self.rounds.append(sorted(needed))

    async def next(self) -> list[str]:
        """The answer of a look that begins from now on."""
        count = len(self.rounds)
        await until(lambda: len(self.rounds) > count, within_s=2 * worker.TIDY_S, every_s=1)
        return self.rounds[-1]


async def replace(cluster: joined.Cluster, old: pb.Task, new: pb.Task) -> None:
    """An update whose history is so short that the old task goes when the new one comes."""
    await cluster.create(new)
    await until(lambda: cluster.state(new.id) == joined.RUN)
    await cluster.committer.commit([ops.delete(cluster.task(old.id))])


def test_the_image_of_the_revision_before_is_kept_for_a_rollback() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            tidied = Tidied(agent)
            other = revision(1, service="s2")
            await cluster.create(revision(1), revision(2), revision(3), other, task(1), task(1, service="s2"))
            await until(lambda: cluster.state("s1t1") == joined.RUN and cluster.state("s2t1") == joined.RUN)
            assert await tidied.next() == ["s1:1", "s2:1"]
            await replace(cluster, task(1), task(2))
            assert await tidied.next() == ["s1:1", "s1:2", "s2:1"]
            await replace(cluster, task(2), task(3))
            assert await tidied.next() == ["s1:2", "s1:3", "s2:1"]  # not those before
            await agent.stop()
            await agent.start()
            assert await tidied.next() == ["s1:2", "s1:3", "s2:1"]  # an agent that starts again knows it too
            await cluster.committer.commit([ops.delete(cluster.task("s1t3"))])
            assert await tidied.next() == ["s2:1"]  # nothing of the service is here any more
            assert sorted(agent.record.revisions()) == ["s2.1"]

    virtual_time.run(main)


def test_a_secret_that_only_the_revision_before_names_is_not_kept() -> None:
    async def main() -> None:
        async with joined.joined("n1") as (_, cluster, (agent,)):
            secret = pb.Secret(id="x", spec=pb.SecretSpec(name="word", data=b"hush"))
            await cluster.create(secret, revision(1, secret="x"), revision(2), task(1))
            await until(lambda: cluster.state("s1t1") == joined.RUN)
            assert agent.worker._payloads._secrets.keys() == {"x"}
            await replace(cluster, task(1), task(2))
            await until(lambda: "s1t1" not in agent.worker.statuses())
            assert agent.worker._payloads._secrets == {}
            assert sorted(agent.record.revisions()) == ["s1.1", "s1.2"]

    virtual_time.run(main)


@given(
    numbers=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sets(st.integers(1, 6), min_size=1)),
    used=st.sets(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 6))),
)
def test_what_is_used_and_the_last_two_of_each_service_with_tasks_are_kept(
    numbers: dict[str, set[int]], used: set[tuple[str, int]]
) -> None:
    known = {
        each.id: each for service, mine in numbers.items() for each in (revision(n, service=service) for n in mine)
    }
    wanted = {f"{service}.{number}" for service, number in used}
    kept = set(revisions.kept(known, used=wanted))
    assert kept <= known.keys()
    assert wanted & known.keys() <= kept
    here = {service for service, number in used if f"{service}.{number}" in known}
    for service, mine in numbers.items():
        last = {f"{service}.{number}" for number in sorted(mine)[-2:]}
        extra = {each for each in kept - wanted if known[each].service_id == service}
        assert (extra == last - wanted) if service in here else not extra
