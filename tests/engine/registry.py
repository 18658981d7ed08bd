"""A real registry for the tests: password, a certificate of its own authority, an address that is not loopback.

Engines do not check certificates of registries on loopback; the engine's own bridge has an address that they do.
"""

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, PASSWORD = "bees", "honey"
HTPASSWD = "bees:$2b$05$abcdefghijklmnopqrstuua72UqXIK32CtpAE.WxMIzK71a407mZm\n"
START_S = 20.0
LOOK_S = 0.02


def missing() -> str:
    """What this machine lacks for a registry; empty when nothing."""
    return "" if shutil.which("docker-registry") else "docker-registry is not installed (Debian: docker-registry)"


class Authority:
    """Signs certificates; the engine under test is made to trust it, or not."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests of skep")])
        self._cert = self._builder(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        ).sign(self._key, hashes.SHA256())  # fmt: skip

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self._cert.public_bytes(serialization.Encoding.PEM)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )  # fmt: skip

    def issue(self, address: str) -> tuple[bytes, bytes]:
        """(certificate, key) for a server at this IP address, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        cert = self._builder(subject, key.public_key()).add_extension(names, critical=False)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cert.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), pem


class OwnRegistry:
    """One registry process. `start` returns when it answers."""

    def __init__(self, address: str, authority: Authority) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="skep-registry-"))
        self._authority = authority
        with socket.socket() as probe:
            probe.bind((address, 0))
            self.port = int(probe.getsockname()[1])
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """What stands before the first slash of an image's name."""
        return f"{self.address}:{self.port}"

    def start(self) -> None:
        """Raises RuntimeError with its log when it does not come up."""
        cert, key = self._authority.issue(self.address)
        for name, data in (("cert.pem", cert), ("key.pem", key), ("htpasswd", HTPASSWD.encode())):
            (self.directory / name).write_bytes(data)
        settings = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self.directory / "data")}},
            "http": {"addr": self.host, "tls": {
                "certificate": str(self.directory / "cert.pem"), "key": str(self.directory / "key.pem"),
            }},
            "auth": {"htpasswd": {"realm": "tests", "path": str(self.directory / "htpasswd")}},
        }  # fmt: skip
        (self.directory / "config.yml").write_text(json.dumps(settings))  # JSON is YAML
        log = self.directory / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(self.directory / "config.yml")], stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            )  # fmt: skip
        end = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"docker-registry did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(LOOK_S)

    def _answers(self) -> bool:
        context = ssl.create_default_context(cadata=self._authority.pem.decode())
        connection = http.client.HTTPSConnection(self.address, self.port, context=context, timeout=5)
        try:
            with contextlib.closing(connection):
                connection.request("GET", "/v2/")
                return connection.getresponse().status == 401
        except OSError:
            return False

    def stop(self) -> None:
        """Ends it and removes its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
