"""What no runtime of this version can honour: refused in words, so that no wish of a user is silently dropped. Pure."""

from agent.runtime import base
from skep import pb


def unsupported(workload: base.Workload) -> list[str]:
    """Names of the fields that are set and that no runtime honours yet."""
    spec, container = workload.spec, workload.container
    found = {
        "networks": bool(spec.task.networks or spec.networks),
        "runtime": spec.task.runtime not in {"", "container"},
        "isolation": container.isolation not in {"", "default"},
        "generic resource limits": bool(spec.task.resources.limits.generic),
        "ports published in ingress mode (use mode=host)": any(
            port.publish_mode == pb.PUBLISH_MODE_INGRESS for port in spec.endpoint.ports
        ),
    }
    return [name for name, is_set in found.items() if is_set]


def check(workload: base.Workload, *, runtime: str, also: list[str] | None = None) -> None:
    """Raises TaskFatal that names every field this runtime cannot honour; `also` are the runtime's own."""
    found = unsupported(workload) + (also or [])
    if found:
        raise base.TaskFatal(f"the {runtime} runtime cannot honour: {', '.join(found)}")
    if not workload.spec.task.HasField("container"):
        raise base.TaskFatal("the service has no container specification")


def host_ports(workload: base.Workload) -> list[pb.PortConfig]:
    """Ports that are published on the machine itself, in the order of the specification."""
    return [port for port in workload.spec.endpoint.ports if port.publish_mode == pb.PUBLISH_MODE_HOST]
