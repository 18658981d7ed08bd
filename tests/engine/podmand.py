"""Podman's API service in place of a Docker Engine, with its storage, sockets and network in a throw-away place.

The same calls as `dockerd.OwnDockerd`. Containers have no daemon above them, so whatever happens to the service they
live on. Published ports need iptables, which Podman changes while containers run: use a network namespace
(`unshare -n`) on a machine that matters.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Any

from tests.engine import dockerd

STOP_S = 20.0
LOOK_S = 0.02
PROCESSES = 32768


def missing() -> str:
    """What this machine lacks; empty when nothing."""
    if os.geteuid() != 0:
        return "Podman as the tests use it needs root"
    absent = [name for name in ("podman", "runc", "conmon") if shutil.which(name, path=dockerd.SEARCH_PATH) is None]
    return f"{', '.join(absent)} not installed (Debian: podman runc)" if absent else ""


class OwnPodman:
    """The service. `start` and `stop` may be called in turns; `kill` is a crash."""

    def __init__(self) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="skep-podman-"))
        self.socket = self.directory / "podman.sock"
        self.log = self.directory / "podman.log"
        self.trusted = self.directory / "trusted.pem"
        self._name = f"skp{os.getpid() % 100000:x}"
        self._process: subprocess.Popen[bytes] | None = None
        third = os.getpid() % 254 + 1
        self.address = f"10.232.{third}.1"
        self.bridge = self._name
        # Podman's own defaults are higher than what a process without CAP_SYS_RESOURCE may give away; and it lowers
        # its own number of processes to this one.
        files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        (self.directory / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = ["nofile={files}:{most}", "nproc={PROCESSES}:{PROCESSES}"]\n'
        )
        networks = self.directory / "networks"
        networks.mkdir()
        (networks / "87-podman.conflist").write_text(json.dumps({
            "cniVersion": "0.4.0",
            "name": "podman",
            "plugins": [
                {
                    "type": "bridge", "bridge": self._name, "isGateway": True, "ipMasq": False, "hairpinMode": True,
                    "ipam": {"type": "host-local", "ranges": [[{"subnet": f"10.232.{third}.0/24"}]],
                             "routes": [{"dst": "0.0.0.0/0"}], "dataDir": str(self.directory / "ipam")},
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }))  # fmt: skip

    def _command(self, *arguments: str) -> list[str]:
        return [
            "podman", "--root", str(self.directory / "root"), "--runroot", str(self.directory / "run"),
            "--tmpdir", str(self.directory / "tmp"), "--cgroup-manager", "cgroupfs", "--events-backend", "file",
            "--runtime", shutil.which("runc", path=dockerd.SEARCH_PATH) or "runc",
            "--network-config-dir", str(self.directory / "networks"), *arguments,
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **dockerd.NO_INTERNET,
            "PATH": dockerd.SEARCH_PATH,
            "SSL_CERT_FILE": str(self.trusted),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
        }

    def start(self) -> None:
        """Returns when the service answers. Raises Absent, or RuntimeError with the end of its log."""
        if missing():
            raise dockerd.Absent(missing())
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("system", "service", "--time", "0", f"unix://{self.socket}"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True,
            )  # fmt: skip
        dockerd.until_it_answers(self._process, self.socket, log=self.log)

    def kill(self) -> None:
        """The service crashes; containers live on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def shut_down(self) -> None:
        """The service ends as for an upgrade; containers live on."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """The service hangs: it accepts connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        status = pathlib.Path(f"/proc/{self._process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(LOOK_S)

    def resume(self) -> None:
        """It goes on where it stood."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """See `dockerd.call`."""
        return dockerd.call(self.socket, method, path, body)

    def stop(self) -> None:
        """Removes containers, service, mounts, bridge and files, whatever state they are in."""
        self.resume()
        self.kill()
        subprocess.run(self._command("rm", "--all", "--force", "--time", "0"), capture_output=True, check=False,
                       env=self._environment(), timeout=120)  # fmt: skip
        dockerd.unmount(self.directory)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False,
                       env={"PATH": dockerd.SEARCH_PATH})  # fmt: skip
        shutil.rmtree(self.directory, ignore_errors=True)
