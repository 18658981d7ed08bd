"""Reading a task's output files: the right lines, and neither memory nor the event loop for what nobody takes."""

import asyncio
import contextlib
import os
import pathlib
import random
import threading
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import logs as agent_logs
from agent.runtime import base
from agent.runtime.process import logs
from skep import pb, stamps
from tests.agent.runtime import workloads

MIB = 1 << 20
BEGAN = 1_700_000_000.0
LINE = b"%.6f o " % BEGAN + b"x" * 80 + b"\n"
MEMORY_MAX = 24 * MIB  # what reading a log of 64 MiB may cost; the log itself as entries is some 400 MiB
STALL_MAX_S = 0.15  # of the event loop's own processor time, whatever else the machine does


class Machine:
    """Watches this process: how much memory it has at most, how long its loop works on one thing, what it all took."""

    def __init__(self) -> None:
        self.memory = 0
        self.stall_s = 0.0
        self.cpu_s = 0.0
        self._before = _rss()

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        over = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(over,))
        sampler.start()
        began = time.process_time()
        ticker = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            await asyncio.sleep(0)  # a stall that is not over yet counts too
            ticker.cancel()
            self.cpu_s = time.process_time() - began
            over.set()
            sampler.join()

    def _sample(self, over: threading.Event) -> None:
        while not over.wait(0.005):
            self.memory = max(self.memory, _rss() - self._before)

    async def _tick(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            self.stall_s = max(self.stall_s, time.thread_time() - last)
            last = time.thread_time()


def _rss() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def big_log(directory: pathlib.Path, *, files: int = 4, file_bytes: int = 16 * MIB) -> int:
    """Rotated output of `files` times `file_bytes`; returns how many lines that are."""
    lines = file_bytes // len(LINE)
    for number in range(files):
        (directory / f"log.{number}").write_bytes(LINE * lines)
    return lines * files


async def read(directory: pathlib.Path, options: base.LogOptions, *, ended: bool = True) -> list[pb.LogEntry]:
    return [entry async for entry in logs.read(directory, options, ended=lambda: ended)]


def test_a_tail_of_a_big_log_costs_neither_memory_nor_time(tmp_path: pathlib.Path) -> None:
    big_log(tmp_path)

    async def main() -> None:
        machine = Machine()
        async with machine.watched():
            assert len(await read(tmp_path, base.LogOptions(tail=20))) == 20
        assert machine.cpu_s < 0.3
        assert machine.memory < MEMORY_MAX
        assert machine.stall_s < STALL_MAX_S

    asyncio.run(main())


def test_a_big_log_is_read_whole_and_piece_by_piece(tmp_path: pathlib.Path) -> None:
    lines = big_log(tmp_path, file_bytes=4 * MIB)

    async def main() -> None:
        machine = Machine()
        count = 0
        async with machine.watched():
            async for _ in logs.read(tmp_path, base.LogOptions(), ended=lambda: True):
                count += 1
            assert not await read(tmp_path, base.LogOptions(stdout=False))
            assert not await read(tmp_path, base.LogOptions(since=BEGAN + 1, tail=5))
        assert count == lines
        assert machine.memory < MEMORY_MAX
        assert machine.stall_s < STALL_MAX_S

    asyncio.run(main())


def test_readers_that_take_nothing_cost_little_memory(tmp_path: pathlib.Path) -> None:
    """Through the server that answers managers: each has credit for one chunk and gives no more."""
    big_log(tmp_path)
    readers = 32

    async def main() -> None:
        sent: list[pb.LogChunk] = []

        async def send(message: pb.AgentMessage) -> None:
            sent.append(message.log)

        async def chunks() -> int:
            return len(sent)

        server = agent_logs.LogServer(
            read=lambda _, options: logs.read(tmp_path, options, ended=lambda: False), send=send
        )
        machine = Machine()
        async with machine.watched():
            for number in range(readers):
                await server.start(pb.LogRequest(id=number + 1, follow=True, stdout=True, tail=-1, credit=1))
            await workloads.until(chunks, lambda count: count >= readers, what="a chunk for each")
            for _ in range(50):  # time in which a reader would go on if it did
                await asyncio.sleep(0.005)
                assert len(sent) == readers
        assert machine.memory < readers * MIB // 2
        assert machine.stall_s < STALL_MAX_S
        await server.close()

    asyncio.run(main())


def test_output_faster_than_it_is_taken_does_not_stall_the_loop(tmp_path: pathlib.Path) -> None:
    (tmp_path / "log.0").write_bytes(LINE)
    lines = 12 * MIB // len(LINE)

    async def main() -> None:
        machine = Machine()
        over = False
        reading = logs.read(tmp_path, base.LogOptions(follow=True), ended=lambda: over)
        await anext(reading)
        async with machine.watched():
            with (tmp_path / "log.0").open("ab") as file:
                await asyncio.to_thread(file.write, LINE * lines)
            over = True
            count = 0
            async for _ in reading:
                count += 1
        assert count == lines
        assert machine.stall_s < STALL_MAX_S

    asyncio.run(main())


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHUNK_BYTES", 50)
    monkeypatch.setattr(logs, "SCAN_BYTES", 120)


@pytest.mark.usefixtures("_small_pieces")
@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(st.tuples(st.sampled_from("oeOE"), st.integers(0, 90), st.integers(0, 3)), max_size=40),
    files=st.integers(1, 4),
    tail=st.integers(-1, 12),
    since=st.integers(0, 3),
    stdout=st.booleans(),
    stderr=st.booleans(),
    damage=st.booleans(),
)
def test_pieces_make_up_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[str, int, int]],
    files: int,
    tail: int,
    since: int,
    stdout: bool,
    stderr: bool,
    damage: bool,
) -> None:
    """Whatever the sizes, across files: what the options ask for, in order, and of that the last ones."""
    directory = tmp_path_factory.mktemp("task")
    lines = [
        b"%.6f %s " % (BEGAN + later, kind.encode()) + b"%d" % number + b"." * length + b"\n"
        for number, (kind, length, later) in enumerate(records)
    ]
    expected = [
        line.rstrip(b"\n").split(b" ")[2] + (b"\n" if kind.islower() else b"")
        for line, (kind, _, later) in zip(lines, records, strict=True)
        if later >= since and (stdout if kind in "oO" else stderr)
    ]
    if tail >= 0:
        expected = expected[len(expected) - min(tail, len(expected)) :]
    each = -(-len(lines) // files) or 1
    parts = [lines[at : at + each] for at in range(0, len(lines), each)] or [[]]
    for number, part in enumerate(reversed(parts)):
        (directory / f"log.{number}").write_bytes(b"".join(part) + (b"1700000000.5 o half a rec" if damage else b""))
    options = base.LogOptions(tail=tail, since=BEGAN + since, stdout=stdout, stderr=stderr)
    assert [entry.data for entry in asyncio.run(read(directory, options))] == expected


def test_a_rotation_half_way_hides_nothing(tmp_path: pathlib.Path) -> None:
    """Between its renames a number is missing."""
    for number in (0, 1, 3, 4):
        (tmp_path / f"log.{number}").write_bytes(b"%.6f o file %d\n" % (BEGAN, number))

    async def main() -> None:
        whole = [b"file 4\n", b"file 3\n", b"file 1\n", b"file 0\n"]
        assert [entry.data for entry in await read(tmp_path, base.LogOptions())] == whole
        assert [entry.data for entry in await read(tmp_path, base.LogOptions(tail=3))] == whole[1:]

    asyncio.run(main())


def rotate(directory: pathlib.Path, files: int) -> None:
    for number in range(files - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            (directory / f"log.{number - 1}").rename(directory / f"log.{number}")


def test_nothing_is_skipped_or_told_twice_while_files_are_rotated(tmp_path: pathlib.Path) -> None:
    """A writer that rotates as fast as it can, but drops nothing."""
    files, of_each = 200, 5

    def write() -> None:
        rng = random.Random(1)
        for number in range(files):
            if number:
                rotate(tmp_path, files)
            with (tmp_path / "log.0").open("ab", buffering=0) as file:
                for line in range(of_each):
                    file.write(b"%.6f o %d\n" % (BEGAN, number * of_each + line))
                    if rng.random() < 0.2:
                        time.sleep(0.001)

    async def main() -> None:
        writing = asyncio.create_task(asyncio.to_thread(write))
        followed = logs.read(tmp_path, base.LogOptions(follow=True), ended=writing.done)
        assert [int(entry.data) async for entry in followed] == list(range(files * of_each))

    asyncio.run(main())


def test_what_is_there_is_read_to_its_end_though_more_is_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "log.0").write_bytes(LINE * 5000)

    async def main() -> None:
        for tail, expected in ((-1, 5000), (3000, 3000)):
            count = 0
            (tmp_path / "log.0").write_bytes(LINE * 5000)
            async for _ in logs.read(tmp_path, base.LogOptions(tail=tail), ended=lambda: False):
                count += 1
                with (tmp_path / "log.0").open("ab") as file:
                    file.write(LINE * 2)  # faster than it is read
            assert count == expected

    asyncio.run(main())


def test_a_reader_that_goes_leaves_no_file_open(tmp_path: pathlib.Path) -> None:
    big_log(tmp_path, files=2, file_bytes=2 * MIB)

    def held() -> int:
        return sum(str(tmp_path) in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                   if os.path.exists(f"/proc/self/fd/{fd}"))  # fmt: skip

    async def main() -> None:
        async def take() -> None:
            while True:
                await read(tmp_path, base.LogOptions(since=BEGAN + 1))

        for number in range(30):
            taking = asyncio.create_task(take())
            await asyncio.sleep(0.002 * (number % 7))
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

        async def still() -> int:
            return held()

        await workloads.until(still, lambda count: count == 0, what="the files' end")

    asyncio.run(main())


@pytest.mark.parametrize("record", [b"", b"x", b"nan o a", b"inf o a", b"1e300 o a", b"-5 o a", b"1 x a", b"\xff o a"])
def test_damaged_records_are_left_out(tmp_path: pathlib.Path, record: bytes) -> None:
    (tmp_path / "log.0").write_bytes(record + b"\n" + b"%.6f e whole \n" % BEGAN)
    found = asyncio.run(read(tmp_path, base.LogOptions()))
    assert [(stamps.seconds(entry.timestamp), entry.stream, entry.data) for entry in found] == [
        (BEGAN, pb.LOG_STREAM_STDERR, b"whole \n")
    ]
