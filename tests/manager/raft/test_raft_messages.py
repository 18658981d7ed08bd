"""Messages on the wire, snapshots' bodies, and the limits on what waits."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.raft import config, messages, proposals, snapshot, transfers
from manager.store import commit
from skep import errors, pb

TAKEN = snapshot.Snapshot(index=9, term=2, members={"a": "h:1"}, members_index=4, blocks=3, digest=7)
MESSAGES: list[messages.Message] = [
    {
        "type": "append_entries", "term": 3, "commit_index": 2, "round": 5, "prevLogIdx": 7, "prevLogTerm": 1,
        "entries": [(b"\x00a", 8, 3), (b"", 9, 3)],
    },
    {
        "type": "next_node_idx", "term": 3, "next_node_idx": 8, "round": 5, "reset": True, "success": False,
        "snapshot": (9, 2),
    },
    {
        "type": "next_node_idx", "term": 3, "next_node_idx": 8, "round": 5, "reset": False, "success": True,
        "snapshot": None,
    },
    {"type": "response_vote", "term": 3},
    {"type": "timeout_now", "term": 3},
    {
        "type": "pre_vote_reply", "term": 3, "granted": True, "current_term": 2,
        "configuration": (4, {"a": "h:1", "b": "h:2"}),
    },
    {"type": "pre_vote_reply", "term": 3, "granted": False, "current_term": 2, "configuration": None},
    {"type": "configuration", "term": 3, "configuration": (4, {"a": "h:1"})},
    {
        "type": "install_snapshot", "term": 3, "commit_index": 2, "round": 5, "snapshot": TAKEN, "number": 1,
        "data": b"x",
    },
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: str(message["type"]))
def test_a_message_arrives_as_it_was_sent(message: messages.Message) -> None:
    frame = pb.RaftFrame.FromString(messages.encode(message).SerializeToString())
    assert messages.decode(frame) == message


@pytest.mark.parametrize("kind", ["request_vote", "pre_vote"])
def test_requests_for_votes_arrive_as_they_were_sent(kind: str) -> None:
    message = {
        "type": kind, "term": 3, "last_log_index": 8, "last_log_term": 2, "forced": kind == "request_vote",
        "configuration_index": 0,
    }  # fmt: skip
    assert messages.decode(messages.encode(message)) == message


def test_frames_that_say_nothing_sensible_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        messages.decode(pb.RaftFrame(kind=77))  # type: ignore[arg-type]
    gap = pb.RaftFrame(kind=pb.RAFT_FRAME_KIND_APPEND, prev_index=3, entries=[pb.RaftEntry(index=5)])
    with pytest.raises(ValueError, match="gaps"):
        messages.decode(gap)


@given(st.lists(st.binary(max_size=400)), st.integers(1, 700))
def test_a_body_may_be_cut_anywhere(names: list[bytes], step: int) -> None:
    records = [pb.SnapshotRecord(object=pb.Object(task=pb.Task(id=name.hex()))) for name in names]
    body = b"".join(snapshot.encode(records))
    parts = [body[at : at + step] for at in range(0, len(body), step)]
    assert list(snapshot.decode(parts)) == records
    if body:
        with pytest.raises(ValueError, match="middle"):
            list(snapshot.decode([body[:-1]]))


def test_blocks_have_one_size() -> None:
    size = config.SNAPSHOT_BLOCK_BYTES
    blocks = snapshot.reblock([b"a" * (size - 1), b"b" * (size + 5)])
    assert [len(block) for block in blocks] == [size, size, 4]
    assert list(snapshot.reblock([])) == []


def test_too_much_is_refused_and_everybody_gets_an_answer() -> None:
    async def main() -> None:
        waiting = proposals.Proposals()
        with pytest.raises(errors.Invalid, match="1048576"):
            await waiting.add(b"x" * (config.TRANSACTION_BYTES_MAX + 1))
        futures = [waiting.add(b"x" * config.TRANSACTION_BYTES_MAX) for _ in range(32)]
        with pytest.raises(commit.NotProposed, match="waiting"):
            await waiting.add(b"x")
        assert waiting.rejected == 1
        taken = waiting.next_batch()
        assert taken is not None
        assert len(taken[1]) == 1  # a batch is no larger than one large transaction
        proposals.settle(taken[1], 7, [None])
        waiting.fail_all("over")
        assert await futures[0] == 7
        for future in futures[1:]:
            with pytest.raises(commit.NotProposed, match="over"):
                await future

    asyncio.run(main())


def test_the_window_counts_what_is_under_way() -> None:
    window = transfers.Window()
    window.sent(5, 100)
    window.sent(9, 50)
    window.acknowledged(7)
    assert window.size_bytes == 50
    window.acknowledged(9)
    assert window.size_bytes == 0
