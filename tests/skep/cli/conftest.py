"""One fake skepd a test."""

import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from tests.skep.cli import fake_skepd


@pytest.fixture
def skepd() -> Iterator[fake_skepd.FakeSkepd]:
    """A running fake. Its socket lives in a short path: those of unix sockets are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="skep-") as directory, fake_skepd.serve(pathlib.Path(directory)) as world:
        yield world
