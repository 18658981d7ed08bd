"""The runtime for machines without a container engine: a task is a supervised process group."""

from agent.runtime.process.driver import ProcessRuntime

__all__ = ["ProcessRuntime"]
