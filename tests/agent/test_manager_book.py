"""Where the managers are, on disk."""

import pathlib

import pytest

from agent import backoff, managers
from skep import ids


def test_what_was_heard_outlives_the_process_and_the_seeds(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "managers.json"
    book = managers.ManagerBook(path, seeds=["a:1", "", "a:1", "b:1"])
    assert book.addresses() == ["a:1", "b:1"]
    book.replace(["c:1", "d:1"])
    book.replace([])  # would cut the agent off
    assert managers.ManagerBook(path, seeds=["a:1"]).addresses() == ["c:1", "d:1"]
    assert [each.name for each in tmp_path.iterdir()] == ["managers.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"managers": 3}', '{"managers": []}'])
def test_an_unreadable_file_is_as_good_as_none(tmp_path: pathlib.Path, content: str) -> None:
    path = tmp_path / "managers.json"
    path.write_text(content)
    assert managers.ManagerBook(path, seeds=["a:1"]).addresses() == ["a:1"]


def test_pauses_grow_to_a_limit_and_start_over() -> None:
    pauses = backoff.Backoff(first_s=0.1, max_s=8.0, rng=ids.seeded_rng(1), floor=1.0)
    assert [round(pauses.next_s(), 3) for _ in range(8)] == [0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 8.0, 8.0]
    pauses.reset()
    assert round(pauses.next_s(), 3) == 0.1


def test_seeds_that_the_managers_confirm_are_there_after_a_restart(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "managers.json"
    managers.ManagerBook(path, seeds=["a:1", "b:1"]).replace(["a:1", "b:1"])
    assert managers.ManagerBook(path, seeds=["elsewhere:1"]).addresses() == ["a:1", "b:1"]
