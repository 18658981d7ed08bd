"""What a node tells about itself, and when something of it is a reason to give it no more tasks."""

import asyncio

import pytest

from agent import facts
from agent.runtime import memory
from skep import errors, ids, pb
from tests import virtual_time

GB = 1000**3
DISK = facts.Space(100 * GB, 50 * GB)
MEMORY = facts.Space(8 * GB, 4 * GB)


class Runtime(memory.MemoryRuntime):
    """One with a disk, that can go away."""

    def __init__(self) -> None:
        super().__init__(node_id="n1", clock=virtual_time.LoopClock(), rng=ids.seeded_rng(1))
        self.trouble: Exception | None = None
        self.silent = False
        self.images = 0

    async def describe(self) -> pb.NodeDescription:  # type: ignore[explicit-override]
        if self.silent:
            await asyncio.Event().wait()
        if self.trouble is not None:
            raise self.trouble
        made = await super().describe()
        made.disk.CopyFrom(pb.DiskUsage(path="/var/lib/docker", image_bytes=self.images))
        return made


class Bench:
    """Facts of a machine whose figures tests set."""

    def __init__(self) -> None:
        self.runtime = Runtime()
        self.disk: facts.Space | OSError = DISK
        self.memory: facts.Space | None = MEMORY
        self.ports = [22, 80]
        machine = facts.Machine(disk=self._disk, memory=lambda: self.memory, ports=lambda: self.ports)
        self.facts = facts.Facts(runtime=self.runtime, machine=machine)

    def _disk(self, path: str) -> facts.Space:
        assert path == "/var/lib/docker"
        if isinstance(self.disk, OSError):
            raise self.disk
        return self.disk

    async def kinds(self) -> list[str]:
        return [each.kind for each in (await self.facts.describe()).conditions]


def test_a_machine_that_is_well() -> None:
    async def main() -> None:
        found = await Bench().facts.describe()
        assert list(found.conditions) == []
        assert found.disk == pb.DiskUsage(path="/var/lib/docker", total_bytes=100 * GB, free_bytes=50 * GB)
        assert list(found.host_ports) == [22, 80]

    asyncio.run(main())


def test_conditions_begin_below_a_line_and_end_well_above_it() -> None:
    async def main() -> None:
        bench = Bench()
        line = facts.DISK_BYTES
        for free, expected in ((line + 1, []), (line - 1, ["disk"]), (line * 1.2, ["disk"]), (line * 1.3, [])):
            bench.disk = facts.Space(100 * GB, int(free))
            assert await bench.kinds() == expected
        bench.memory = facts.Space(8 * GB, facts.MEMORY_BYTES - 1)
        bench.disk = facts.Space(10 * GB, GB - 1)
        found = await bench.facts.describe()
        assert [(each.kind, each.summary) for each in found.conditions] == [
            ("disk", "low on disk"), ("memory", "low on memory"),
        ]  # fmt: skip
        assert found.conditions[0].message == "1.0 GB of 10 GB are free on the disk of /var/lib/docker"
        assert found.conditions[1].message == "268 MB of 8000 MB memory are available"

    asyncio.run(main())


def test_small_movements_change_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        bench.runtime.images = 10 * GB
        first = await bench.facts.describe()
        bench.disk, bench.runtime.images = facts.Space(100 * GB, 49 * GB), 11 * GB
        assert await bench.facts.describe() == first
        bench.disk, bench.runtime.images = facts.Space(100 * GB, 47 * GB), 14 * GB
        moved = await bench.facts.describe()
        assert (moved.disk.free_bytes, moved.disk.image_bytes) == (47 * GB, 14 * GB)
        bench.disk = facts.Space(100 * GB, GB)
        low = await bench.facts.describe()
        bench.disk = facts.Space(100 * GB, GB - 300_000_000)
        assert await bench.facts.describe() == low, "the words stay as well"

    asyncio.run(main())


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_an_engine_that_does_not_answer_is_a_condition(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        bench = Bench()
        known = await bench.facts.describe()
        if how == "refuses":
            bench.runtime.trouble = errors.Unavailable("cannot connect to the container engine at /run/x: refused")
        else:
            bench.runtime.silent = True
            monkeypatch.setattr(facts, "DESCRIBE_TIMEOUT_S", 0.05)
        found = await bench.facts.describe()
        (wrong,) = found.conditions
        assert (wrong.kind, wrong.summary) == ("engine", "without container engine")
        assert wrong.message == (
            "cannot connect to the container engine at /run/x: refused"
            if how == "refuses"
            else "no answer within 0.05 s"
        )
        assert found.resources == known.resources
        bench.runtime.trouble, bench.runtime.silent = None, False
        monkeypatch.undo()
        assert await bench.facts.describe() == known

    asyncio.run(main())


def test_a_runtime_that_never_answered_describes_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        bench.runtime.trouble = errors.Unavailable("not there")
        with pytest.raises(errors.Unavailable, match="not there"):
            await bench.facts.describe()

    asyncio.run(main())


def test_what_is_known_outlives_the_agent() -> None:
    async def main() -> None:
        bench, kept = Bench(), list[pb.NodeDescription]()
        machine = facts.Machine(disk=bench._disk, memory=lambda: bench.memory, ports=lambda: bench.ports)
        first = facts.Facts(runtime=bench.runtime, machine=machine, remember=kept.append)
        known = await first.describe()
        await first.describe()
        assert kept == [known], "written once for each difference"
        bench.runtime.trouble = errors.Unavailable("not there")
        again = facts.Facts(runtime=bench.runtime, machine=machine, known=kept[-1], remember=kept.append)
        found = await again.describe()
        assert [(each.kind, each.message) for each in found.conditions] == [("engine", "not there")]
        assert found == again.without_engine("not there")
        del found.conditions[:]
        assert found == known
        assert kept == [known], "what an engine did not say is not remembered"
        assert facts.Facts(runtime=bench.runtime).without_engine("not there") is None

    asyncio.run(main())


def test_what_cannot_be_measured_is_no_condition() -> None:
    async def main() -> None:
        bench = Bench()
        bench.disk, bench.memory = OSError("no such directory"), None
        found = await bench.facts.describe()
        assert (list(found.conditions), found.disk.total_bytes) == ([], 0)

    asyncio.run(main())


def test_this_machine_can_be_measured() -> None:
    space, room = facts.memory_space(), facts.disk_space("/")
    assert space is not None
    assert 0 < space.free < space.total
    assert 0 <= room.free < room.total
