"""Operating systems and architectures under one spelling: machines say x86_64 where images say amd64. Pure."""

from skep import pb

Platform = tuple[str, str]  # operating system, architecture

_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


def spelled(value: pb.Platform) -> Platform:
    """Operating system and architecture, as images have them."""
    return value.os, _ARCHITECTURE.get(value.architecture, value.architecture)
