"""A Docker Engine of our own: its data, socket, bridge, control groups and containers are all in one throw-away place.

Nothing of the machine's engine, if it has one, is touched: no iptables rule, no default path, no shared containerd.
`stop` removes every trace, also after a crash of the engine.
"""

import contextlib
import http.client
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.parse
from typing import Any

BUSYBOX_IMAGE = "skep/busybox:1"
START_S, STOP_S = 40.0, 20.0
LOOK_S = 0.02
SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"
# Nobody asks a registry on the Internet: a refusal comes at once and everywhere. Bridges of the tests are reached.
NO_INTERNET = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "10.0.0.0/8"}
CGROUPS = pathlib.Path("/sys/fs/cgroup")


class Absent(Exception):
    """There can be no engine of our own here; the text says what is missing."""


def missing() -> str:
    """What this machine lacks for an engine of our own; empty when nothing."""
    if os.geteuid() != 0:
        return "starting a Docker Engine needs root"
    if shutil.which("dockerd", path=SEARCH_PATH) is None:
        return "dockerd is not installed (Debian: docker.io)"
    return ""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__("engine", timeout=60)
        self._path = path

    def connect(self) -> None:  # type: ignore[explicit-override]
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(engine: pathlib.Path, method: str, path: str, body: Any = None) -> Any:
    """One request to an engine: JSON, or a tar archive when `body` is bytes. Raises RuntimeError with its words."""
    raw = isinstance(body, bytes)
    kind = "application/x-tar" if raw else "application/json"
    with contextlib.closing(UnixConnection(engine)) as connection:
        connection.request(
            method, path, body=body if raw or body is None else json.dumps(body), headers={"Content-Type": kind}
        )
        response = connection.getresponse()
        data = response.read()
    if response.status >= 400:
        raise RuntimeError(f"{method} {path}: {response.status} {data.decode(errors='replace')}")
    return json.loads(data) if data.strip().startswith((b"{", b"[")) and b"\n{" not in data.strip() else data


def answers(engine: pathlib.Path) -> bool:
    """Whether an engine does at this socket."""
    try:
        call(engine, "GET", "/_ping")
    except (OSError, RuntimeError, http.client.HTTPException):
        return False
    return True


def until_it_answers(process: subprocess.Popen[bytes], engine: pathlib.Path, *, log: pathlib.Path) -> None:
    """Returns when the engine that the process is answers. RuntimeError with the end of its log when it does not."""
    end = time.monotonic() + START_S
    while not answers(engine):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{log.stem} did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(LOOK_S)


def unmount(directory: pathlib.Path) -> None:
    """Whatever is mounted below the directory."""
    mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    ours = [line.split()[4] for line in mounts if line.split()[4].startswith(f"{directory}/")]
    for target in reversed(ours):
        subprocess.run(["umount", "-l", target], capture_output=True, check=False)


def busybox_layer(*, mark: str = "") -> bytes:
    """A root file system with nothing but a static busybox and its applets; `mark` makes it another one."""
    binary = shutil.which("busybox", path="/bin:/usr/bin")
    if binary is None:
        raise Absent("busybox is not installed (Debian: busybox-static)")
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "tmp", "proc", "sys", "dev", "etc", "root"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(os.path.realpath(binary), "bin/busybox")
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for name, text in (
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
            ("etc/group", "root:x:0:\nextra:x:77:\nnogroup:x:65534:\n"),
            ("etc/mark", mark),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def import_busybox(engine: pathlib.Path, *, image: str = BUSYBOX_IMAGE, mark: str = "") -> None:
    """Makes `skep/busybox:1`, or another image, without any registry."""
    repository, tag = image.rsplit(":", 1)
    if "." not in repository.partition("/")[0]:
        repository = f"docker.io/{repository}"  # Docker's short name; Podman's would be localhost/..
    query = urllib.parse.urlencode(
        [("fromSrc", "-"), ("repo", repository), ("tag", tag), ("changes", "ENV PATH=/bin"), ("changes", 'CMD ["sh"]')]
    )
    call(engine, "POST", f"/images/create?{query}", busybox_layer(mark=mark))
    try:
        call(engine, "GET", f"/images/{image}/json")
    except RuntimeError:  # Podman does not mind the tag
        call(engine, "POST", f"/images/{repository}:latest/tag?repo={repository}&tag={tag}")


class OwnDockerd:
    """The engine. `start` and `stop` may be called in turns; `kill` is a crash."""

    def __init__(self, directory: pathlib.Path | None = None, *, live_restore: bool = True) -> None:
        """Without `live_restore` its containers end with it; Docker's swarm mode wants it so."""
        self._live_restore = live_restore
        # Not below pytest's directories: a socket's path may have 107 characters.
        self.directory = directory or pathlib.Path(tempfile.mkdtemp(prefix="skep-engine-"))
        self.socket = self.directory / "docker.sock"
        self.log = self.directory / "dockerd.log"
        self.bridge = ""  # empty: containers have no network and no ports
        self.address = ""  # of the bridge
        self.trusted = self.directory / "trusted.pem"  # authorities of registries; read at the first need only
        self._name = f"skt{os.getpid() % 100000:x}{int(time.monotonic() * 1000) % 4096:03x}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the engine answers. Raises Absent, or RuntimeError with the end of its log."""
        if missing():
            raise Absent(missing())
        if not self.bridge:
            self.bridge = self._make_bridge()
        (self.directory / "docker.pid").unlink(missing_ok=True)  # left by a crash, it would be believed
        (self.directory / "daemon.json").write_text("{}")  # not the machine's configuration
        dockerd = shutil.which("dockerd", path=SEARCH_PATH)
        assert dockerd is not None
        command = [
            dockerd, "--config-file", self.directory / "daemon.json", "--data-root", self.directory / "data",
            "--exec-root", self.directory / "exec", "--pidfile", self.directory / "docker.pid",
            "--host", f"unix://{self.socket}", "--bridge", self.bridge or "none", "--cgroup-parent", f"/{self._name}",
            "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false",
            f"--live-restore={str(self._live_restore).lower()}", "--shutdown-timeout", "5", "--log-level", "warn",
            "--raw-logs",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **NO_INTERNET, "PATH": SEARCH_PATH, "SSL_CERT_FILE": str(self.trusted)},
                start_new_session=True,
            )  # fmt: skip
        until_it_answers(self._process, self.socket, log=self.log)

    def kill(self) -> None:
        """The engine crashes; its containers live on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._end_containerd()

    def _end_containerd(self) -> None:
        """It dies with its dockerd, but may stay a zombie for long: then the next dockerd believes its pid file."""
        note = self.directory / "exec" / "containerd" / "containerd.pid"
        try:
            status = pathlib.Path("/proc") / note.read_text().strip() / "stat"
        except OSError:
            return
        end = time.monotonic() + STOP_S
        while time.monotonic() < end:
            try:
                state = status.read_text().rpartition(")")[2].split()[0]
            except OSError:
                break
            if state in {"Z", "X"}:
                break
            time.sleep(LOOK_S)
        note.unlink(missing_ok=True)

    def shut_down(self) -> None:
        """The engine ends as for an upgrade; with live-restore its containers live on."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(STOP_S)
        self._process = None
        self._end_containerd()

    def pause(self) -> None:
        """The engine hangs: it accepts connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        status = pathlib.Path(f"/proc/{self._process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(LOOK_S)

    def resume(self) -> None:
        """It goes on where it stood."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """See the function `call`."""
        return call(self.socket, method, path, body)

    def stop(self) -> None:
        """Removes containers, engine, mounts, control groups, bridge and files, whatever state they are in."""
        try:
            if self._process is not None:
                self.resume()
                self._remove_containers()
                self._process.terminate()
                try:
                    self._process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    self.kill()
        finally:
            self._process = None
            self._kill_remains()
            unmount(self.directory)
            self._remove_cgroups()
            if self.bridge:
                subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)
            shutil.rmtree(self.directory, ignore_errors=True)

    def _make_bridge(self) -> str:
        """A bridge with a free subnet of its own; ports are published by the engine's proxy, without iptables."""
        routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=False, env={"PATH": SEARCH_PATH})
        for third in range(1, 255):
            prefix = f"10.231.{(os.getpid() + third) % 254 + 1}"
            if routes.returncode == 0 and f"{prefix}.0/" not in routes.stdout:
                break
        else:
            return ""
        for command in (
            ["ip", "link", "add", self._name, "type", "bridge"],
            ["ip", "address", "add", f"{prefix}.1/24", "dev", self._name],
            ["ip", "link", "set", self._name, "up"],
        ):
            done = subprocess.run(command, capture_output=True, check=False, env={"PATH": SEARCH_PATH})
            if done.returncode != 0:
                return ""
        self.address = f"{prefix}.1"
        return self._name

    def _remove_containers(self) -> None:
        try:
            for container in self.call("GET", "/containers/json?all=1"):
                self.call("DELETE", f"/containers/{container['Id']}?force=1&v=1")
        except (OSError, RuntimeError, http.client.HTTPException):
            return  # the processes are found below

    def _kill_remains(self) -> None:
        """containerd and shims carry our directory in their command lines, containers are in our control groups."""
        mark = str(self.directory).encode()
        end = time.monotonic() + STOP_S
        while time.monotonic() < end:
            found = [pid for pid in self._container_pids() if pid != os.getpid()]
            for entry in pathlib.Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    if entry.name.isdigit() and int(entry.name) != os.getpid():
                        command = (entry / "cmdline").read_bytes()
                        if mark in command and b"containerd" in command.split(b"\0")[0]:
                            found.append(int(entry.name))
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(LOOK_S)

    def _groups(self) -> list[pathlib.Path]:
        roots = [CGROUPS / self._name, *(tree / self._name for tree in CGROUPS.iterdir() if tree.is_dir())]
        return [path for path in roots if path.is_dir()] if CGROUPS.is_dir() else []

    def _container_pids(self) -> list[int]:
        pids: set[int] = set()
        for root in self._groups():
            for procs in root.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    pids.update(int(line) for line in procs.read_text().split())
        return sorted(pids)

    def _remove_cgroups(self) -> None:
        for root in self._groups():
            for path in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()
