"""What every command shares: which skepd to talk to, the clock, and where output goes."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from skep import clock

if TYPE_CHECKING:
    from skep import client

PROGRAM = "skep"
HOST_VARIABLE = "SKEP_HOST"
HOST_DEFAULT = "unix:///run/skep/docker.sock"  # the same as client.DEFAULT_HOST, which is not imported for --help


def _sleep(seconds: float) -> None:
    from skep import client

    client.sleep(seconds)


@dataclasses.dataclass
class App:
    """The state of one run of the command. Tests pass their own clock, pause and terminal answer."""

    host: str = HOST_DEFAULT
    wall: clock.Clock = dataclasses.field(default_factory=clock.SystemClock)
    pause: Callable[[float], None] = _sleep
    terminal: bool | None = None  # None: ask standard output
    stale: bool = False  # reads need no leader, and may be old

    _told_age: bool = dataclasses.field(default=False, repr=False)

    @functools.cached_property
    def client(self) -> "client.Client":
        """The connection to skepd, made when first needed."""
        from skep import client

        return client.Client(
            self.host,
            wall=self.wall,
            pause=self.pause,
            on_retry=self._tell,
            on_stale=self._tell_age if self.stale else None,
        )

    def close(self) -> None:
        """Drops the connection, if there is one."""
        if "client" in self.__dict__:
            self.client.close()

    @property
    def on_terminal(self) -> bool:
        """Whether a person watches standard output."""
        return sys.stdout.isatty() if self.terminal is None else self.terminal

    def say(self, line: str) -> None:
        """One line of result on standard output."""
        click.echo(line)

    def warn(self, line: str) -> None:
        """One line beside the result, on standard error."""
        click.echo(line, err=True)

    def _tell_age(self, how_old: str) -> None:
        if not self._told_age:
            self._told_age = True
            self.warn(f"skep: {how_old}")

    def _tell(self, problem: str) -> None:
        self.warn(f"skep: {problem}; trying again for a few seconds")


pass_app = click.make_pass_decorator(App, ensure=True)
