"""Frames of a command's connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep import errors, frames

FRAMES = st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=300)), max_size=10)


@given(FRAMES, st.integers(1, 50))
def test_frames_survive_any_cut(wanted: list[tuple[int, bytes]], step: int) -> None:
    raw = b"".join(frames.frame(kind, payload) for kind, payload in wanted)
    parser = frames.Parser()
    found = [each for start in range(0, len(raw), step) for each in parser.feed(raw[start : start + step])]
    assert found == wanted


def test_what_is_no_frame_is_refused() -> None:
    for raw in (b"hello, world", b"\1\0\0\0\xff\0\0\0"):
        with pytest.raises(errors.Invalid, match="not in frames"):
            frames.Parser().feed(raw)
    with pytest.raises(errors.Invalid):
        frames.size_of(b"\0")
    with pytest.raises(errors.Invalid):
        frames.exit_code(b"\0")


def test_numbers_in_frames() -> None:
    ((kind, payload),) = frames.Parser().feed(frames.resize(24, 1_000_000))
    assert (kind, frames.size_of(payload)) == (frames.RESIZE, (24, 65535))
    ((kind, payload),) = frames.Parser().feed(frames.exit_frame(-1))
    assert (kind, frames.exit_code(payload)) == (frames.EXIT, -1)
