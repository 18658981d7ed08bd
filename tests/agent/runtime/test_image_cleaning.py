"""Which images may go when the disk fills up."""

import pathlib

from hypothesis import given
from hypothesis import strategies as st

from agent.runtime.docker import cleaning, client
from tests import virtual_time

NAMES = st.sampled_from([f"i{number}" for number in range(8)])


@given(st.dictionaries(NAMES, st.floats(0, 9)), st.sets(NAMES), st.sets(NAMES))
def test_what_is_needed_or_in_use_stays_and_the_oldest_goes_first(
    pulled: dict[str, float], needed: set[str], containers: set[str]
) -> None:
    found = cleaning.candidates(pulled, needed=needed, containers=containers)
    assert set(found) == set(pulled) - needed - containers  # and nobody else's
    assert [pulled[each] for each in found] == sorted(pulled[each] for each in found)


def test_notes_outlive_the_agent_and_damage_forgets(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        notes = tmp_path / "deep" / "images.json"
        engine, clock = client.Client("/nonexistent"), virtual_time.LoopClock()
        first = cleaning.Cleaner(engine, clock=clock, notes=notes)
        first.wanted("theirs")
        assert not notes.exists()
        first.pulled("ours")
        assert cleaning.Cleaner(engine, clock=clock, notes=notes)._pulled.keys() == {"ours"}
        notes.write_text("[1")
        assert await cleaning.Cleaner(engine, clock=clock, notes=notes).tidy([]) == []

    virtual_time.run(main)


def test_an_image_is_the_same_under_its_full_name() -> None:
    """Podman shows the images of containers so."""
    pulled = {"bees/web:1": 1.0, "nginx": 2.0, "own:1": 3.0, "reg.example/web:1": 4.0}
    containers = ["docker.io/bees/web:1", "docker.io/library/nginx", "localhost/own:1"]
    assert cleaning.candidates(pulled, needed=[], containers=containers) == ["reg.example/web:1"]
