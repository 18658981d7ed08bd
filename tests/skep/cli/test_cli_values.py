"""Values as people type them."""

import contextlib

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.cli import text, values


@pytest.mark.parametrize(
    ("typed", "nanoseconds"),
    [("10s", 10**10), ("1m30s", 90 * 10**9), ("500ms", 5 * 10**8), ("1.5h", 5400 * 10**9), ("0", 0), ("2us", 2000),
     ("2µs", 2000), (".5s", 5 * 10**8), ("1h0m0s", 3600 * 10**9)],
)  # fmt: skip
def test_durations(typed: str, nanoseconds: int) -> None:
    assert values.duration_ns(typed) == nanoseconds


@pytest.mark.parametrize("typed", ["", "10", "-5s", "s", "10 s", "1d", "five", "1s1", "999999999999h", "1m-2s"])
def test_wrong_durations_show_a_right_one(typed: str) -> None:
    with pytest.raises(ValueError, match="10s"):
        values.duration_ns(typed)


@given(st.integers(0, 2**62))
def test_a_shown_duration_can_be_typed(nanoseconds: int) -> None:
    assert values.duration_ns(text.duration(nanoseconds)) == nanoseconds


@given(st.text(max_size=12))
def test_parsers_raise_nothing_but_value_errors(typed: str) -> None:
    for parse in (values.duration_ns, values.size_bytes, values.nano_cpus, values.count, values.whole, values.ratio):
        with contextlib.suppress(ValueError):
            assert parse(typed) is not None


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("512m", 512 << 20),
        ("1g", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("4096", 4096),
        ("64MB", 64 << 20),
        ("7b", 7),
        ("2 k", 2048),
    ],
)
def test_sizes(typed: str, expected: int) -> None:
    assert values.size_bytes(typed) == expected


@pytest.mark.parametrize("typed", ["", "m", "-1m", "1x", "1mm", "lots"])
def test_wrong_sizes_show_a_right_one(typed: str) -> None:
    with pytest.raises(ValueError, match="512m"):
        values.size_bytes(typed)


def test_cpus() -> None:
    assert [values.nano_cpus(typed) for typed in ("0.5", "2", ".25", "0")] == [5 * 10**8, 2 * 10**9, 25 * 10**7, 0]
    for typed in ("", "-1", "two", "nan", "inf", "0.0000000001"):
        with pytest.raises(ValueError, match=r"0\.5 or 2"):
            values.nano_cpus(typed)


def test_counts_and_ratios() -> None:
    assert values.count("3") == 3
    assert values.ratio("0.25") == 0.25
    for typed in ("-1", "3.5", "", "three", "٣", str(2**64)):
        with pytest.raises(ValueError):  # noqa: PT011
            values.count(typed)
    for typed in ("-0.1", "1.1", "nan", "x"):
        with pytest.raises(ValueError, match=r"0\.25"):
            values.ratio(typed)


def test_the_flag_is_named() -> None:
    option = click.Option(["--replicas"])
    with pytest.raises(click.BadParameter) as caught:
        values.COUNT.convert("-1", option, None)
    assert "--replicas" in caught.value.format_message()
