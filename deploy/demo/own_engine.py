"""Finds the engine that the demo uses: the one that runs, or for DEMO_RUNTIME=docker one of its own."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

import image

DEFAULT_SOCKET = "/var/run/docker.sock"


def answering() -> str | None:
    """The socket of the engine that runs on this machine, if one answers."""
    host = os.environ.get("DOCKER_HOST", f"unix://{DEFAULT_SOCKET}")
    if not host.startswith("unix://"):
        return None  # the demo kills containers' host side from here; an engine elsewhere is no use
    path = host.removeprefix("unix://")
    with contextlib.suppress(OSError):
        status, _ = image.call(path, "GET", "/_ping")
        if status == 200:  # noqa: PLR2004
            return path
    return None


@contextlib.contextmanager
def available(wish: str) -> Iterator[str | None]:
    """The engine's socket for the wished runtime ("auto", "docker", "process"); None means the process runtime.

    With "docker", root and Debian's dockerd installed but not running, starts one of the demo's own and stops it again.
    Raises RuntimeError when containers were asked for and cannot be had.
    """
    running = answering() if wish != "process" else None
    if running or wish != "docker":
        yield running
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise RuntimeError(
            "no Docker engine answers: start one (systemctl start docker), or install one (apt-get install docker.io) "
            "and run as root, or use DEMO_RUNTIME=process"
        )
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    from tests.engine import dockerd

    with tempfile.TemporaryDirectory(prefix="skep-demo-engine-") as directory:
        engine = dockerd.OwnDockerd(pathlib.Path(directory))
        engine.start()
        try:
            yield str(engine.socket)
        finally:
            engine.stop()
