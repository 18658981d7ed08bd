"""Words and tables for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.cli import tasks, text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (61, "About a minute"), (600, "10 minutes"),
     (3600, "About an hour"), (7200, "2 hours"), (47 * 3600, "47 hours"), (5 * 86400, "5 days"), (30 * 86400,
     "4 weeks"),
     (90 * 86400, "3 months"), (800 * 86400, "2 years")],
)  # fmt: skip
def test_spans_are_dockers_words(seconds: float, words: str) -> None:
    assert text.span(seconds) == words


def test_times_that_were_never_set_show_nothing() -> None:
    assert text.ago("0001-01-01T00:00:00Z", now=5.0) == ""
    assert text.ago(None, now=5.0) == ""
    assert text.ago("1970-01-01T00:00:00.123456789Z", now=5.2) == "5 seconds ago"
    assert text.ago("1970-01-01T00:00:09Z", now=5.0) == "less than a second ago"  # clocks differ


@given(st.floats(0, 4e9))
def test_times_survive_being_written(seconds: float) -> None:
    assert text.seconds_of(text.rfc3339(seconds)) == pytest.approx(seconds, abs=1e-5)


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("nginx", "nginx"),
        ("nginx:1@sha256:ab", "nginx:1"),
        ("nginx@sha256:ab", "nginx@sha256:ab"),
        ("r:5000/a@sha256:b", "r:5000/a@sha256:b"),
    ],
)
def test_digests_are_hidden_where_a_tag_says_it(reference: str, shown: str) -> None:
    assert text.image(reference) == shown


def test_ports_are_joined_to_ranges() -> None:
    def port(published: int, target: int, **more: str) -> dict[str, object]:
        return {"PublishedPort": published, "TargetPort": target, "Protocol": "tcp", "PublishMode": "ingress", **more}

    assert text.ports([port(8080, 80)]) == "*:8080->80/tcp"
    assert text.ports([port(8000, 80), port(8001, 81), port(9000, 90)]) == "*:8000-8001->80-81/tcp, *:9000->90/tcp"
    assert text.ports([port(0, 80), port(1, 2, PublishMode="host")], mode="ingress") == ""


def test_names_sort_as_people_count() -> None:
    assert sorted(["web.10", "web.2", "api.1"], key=text.natural) == ["api.1", "web.2", "web.10"]


def test_tables_line_up_without_trailing_blanks() -> None:
    assert text.table(["ID", "NAME"], [["1", "a-long-name"], ["22", ""]]) == (
        "ID        NAME\n1         a-long-name\n22"
    )


@given(st.lists(st.lists(st.text(max_size=9), min_size=3, max_size=3), max_size=5))
def test_every_row_is_shown(rows: list[list[str]]) -> None:
    plain = [[cell.replace("\n", " ").replace("\r", " ") for cell in row] for row in rows]
    assert text.table(["A", "B", "C"], plain).count("\n") >= len(rows)


def test_sizes_and_cpus() -> None:
    assert [text.size(each) for each in (0, 512, 512 << 20, 3 << 29)] == ["0B", "512B", "512MiB", "1.5GiB"]
    assert [text.cpus(each) for each in (5 * 10**8, 2 * 10**9, 0)] == ["0.5", "2", "0"]
    assert text.shorten("abcdef", 4) == "abc…"


def test_the_places_of_a_job_count_from_zero() -> None:
    names = {"s": "batch"}
    assert tasks.name_of({"ServiceID": "s", "Slot": 0, "NodeID": "n1"}, names) == "batch.0"
    assert tasks.name_of({"ServiceID": "s", "NodeID": "n1"}, names) == "batch.n1"
    assert tasks.name_of({"ServiceID": "s"}, names) == "batch"
