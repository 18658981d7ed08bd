"""Builds the demo's container image out of this machine's own Python: nothing is downloaded.

The image holds the interpreter, the shared libraries it links, the standard library (without tests and tools) and
`web.py`. It is streamed to the engine's import call as a tar archive.
"""

import http
import http.client
import io
import json
import pathlib
import re
import socket
import subprocess
import sys
import sysconfig
import tarfile
import urllib.parse
from collections.abc import Iterator

SKIP = {"test", "tests", "__pycache__", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo", "site-packages",
        "dist-packages", "pydoc_data", "distutils"}  # fmt: skip


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the engine's unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(engine: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request to the engine; returns status and body."""
    connection = UnixConnection(engine)
    try:
        headers = {"Content-Type": "application/x-tar"} if body is not None else {}
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def shared_libraries(binary: pathlib.Path) -> set[str]:
    """Paths of the libraries that the dynamic linker loads for `binary`."""
    listing = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(/\S+)", listing))


def files() -> Iterator[tuple[str, pathlib.Path]]:
    """(path in the image, path here) of everything the interpreter needs."""
    interpreter = pathlib.Path(sys.executable).resolve()
    stdlib = pathlib.Path(sysconfig.get_path("stdlib")).resolve()
    extensions: list[pathlib.Path] = []
    yield str(interpreter), interpreter
    for path in sorted(stdlib.rglob("*")):
        if path.is_file() and not SKIP.intersection(path.relative_to(stdlib).parts[:-1]):
            if path.suffix == ".a" or "config-" in str(path.relative_to(stdlib)):
                continue
            if path.suffix == ".so":
                extensions.append(path)
            yield str(path), path
    libraries = set()
    for binary in [interpreter, *extensions]:
        libraries |= shared_libraries(binary)
    for library in sorted(libraries):
        if pathlib.Path(library).exists():
            yield library, pathlib.Path(library).resolve()
    yield "/web.py", pathlib.Path(__file__).with_name("web.py")


def archive() -> bytes:
    """The image's only layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for target, source in files():
            tar.add(source, arcname=target.lstrip("/"), recursive=False)
    return buffer.getvalue()


def build(engine: str, repository: str, tags: list[str]) -> None:
    """Imports the image as `repository:tag` for each tag. Raises RuntimeError when the engine refuses."""
    changes = [
        f"CMD {json.dumps([str(pathlib.Path(sys.executable).resolve()), '-I', '/web.py'])}",
        "ENV PYTHONHOME=" + str(pathlib.Path(sys.base_prefix).resolve()),
    ]
    layer = archive()
    for tag in tags:
        query = urllib.parse.urlencode(
            [("fromSrc", "-"), ("repo", repository), ("tag", tag)]
            + [("changes", change) for change in [*changes, f"ENV APP_VERSION={tag}"]]
        )
        status, answer = call(engine, "POST", f"/images/create?{query}", layer)
        if status != http.HTTPStatus.OK or b'"error"' in answer:
            raise RuntimeError(f"the engine did not import {repository}:{tag}: {answer.decode(errors='replace')}")


def remove(engine: str, repository: str, tags: list[str]) -> None:
    """Removes what `build` made; silent when it is gone."""
    for tag in tags:
        call(engine, "DELETE", f"/images/{repository}:{tag}?force=1")
