"""The user's credentials for an image's registry, as the X-Registry-Auth header. Never printed, never in an error."""

import base64
import json
import os
import pathlib
import subprocess
from typing import Any

from skep import errors

HUB = "https://index.docker.io/v1/"
HELPER_TIMEOUT_S = 30


def registry_of(image: str) -> str:
    """The registry's key in Docker's config.json: the first part of a name with a dot, a colon, or localhost."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else HUB


def auth_header(image: str, *, directory: pathlib.Path | None = None) -> dict[str, str]:
    """The header for `image` from ~/.docker/config.json (or DOCKER_CONFIG); empty when nothing is known.

    Raises Invalid when the file cannot be read.
    """
    home = directory or pathlib.Path(os.environ.get("DOCKER_CONFIG") or pathlib.Path.home() / ".docker")
    path = home / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise errors.Invalid(f"--with-registry-auth: {path} cannot be read as JSON") from None
    registry = registry_of(image)
    helper = (config.get("credHelpers") or {}).get(registry) or config.get("credsStore")
    found = _from_helper(helper, registry) if helper else _from_file(config, registry)
    if not found:
        return {}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(found).encode()).decode()}


def _from_file(config: dict[str, Any], registry: str) -> dict[str, str]:
    entry = (config.get("auths") or {}).get(registry) or {}
    if entry.get("identitytoken"):
        return {"identitytoken": entry["identitytoken"], "serveraddress": registry}
    try:
        name, _, word = base64.b64decode(entry.get("auth", "")).decode().partition(":")
    except ValueError:
        return {}
    return {"username": name, "password": word, "serveraddress": registry} if name else {}


def _from_helper(helper: str, registry: str) -> dict[str, str]:
    try:
        answer = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=registry.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT_S,
            check=True,
        )
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}  # helpers answer with an error when they know nothing of a registry
    if found.get("Username") == "<token>":
        return {"identitytoken": found.get("Secret", ""), "serveraddress": registry}
    return {"username": found.get("Username", ""), "password": found.get("Secret", ""), "serveraddress": registry}
