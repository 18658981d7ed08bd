"""The runtime for machines with a Docker Engine, or Podman's service, which speaks the same API."""

from agent.runtime.docker.driver import DockerRuntime

__all__ = ["DockerRuntime"]
