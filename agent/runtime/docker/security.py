"""The part of the engine's create call that widens or narrows what a container may do. Pure."""

from collections.abc import Sequence
from typing import Any

from agent.runtime import base
from skep import pb

# A label of the node's engine or of its skepd (`--label`): the machine's operator allows what gives away the machine.
ALLOW, ALLOWED = "io.skep.privileged", "allow"


def unsupported(workload: base.Workload) -> list[str]:
    """What is asked for and neither this runtime has nor this node allows."""
    container = workload.container
    found: list[str] = []
    if container.privileges.HasField("credential_spec") and container.privileges.credential_spec.ByteSize():
        found.append("credential spec (Windows only)")
    if workload.node.description.engine.labels.get(ALLOW) != ALLOWED:
        asked = [
            name
            for name, is_set in (("privileged", container.privileged), ("devices", bool(container.devices)))
            if is_set
        ]
        found += [f"{name} (this node does not allow it: its label {ALLOW} is not {ALLOWED})" for name in asked]
    return found


def options(privileges: pb.Privileges) -> list[str]:
    """SecurityOpt. Raises TaskFatal for a mode that does not exist."""
    made = _selinux(privileges.selinux_context)
    match privileges.seccomp.mode:
        case "" | "default":
            pass
        case "unconfined":
            made.append("seccomp=unconfined")
        case "custom":
            made.append("seccomp=" + privileges.seccomp.profile.decode(errors="replace"))
        case other:
            raise base.TaskFatal(f"seccomp mode {other!r}: there are default, unconfined and custom")
    match privileges.apparmor.mode:
        case "" | "default":
            pass
        case "disabled":
            made.append("apparmor=unconfined")
        case other:
            raise base.TaskFatal(f"AppArmor mode {other!r}: there are default and disabled")
    if privileges.no_new_privileges:
        made.append("no-new-privileges=true")
    return made


def _selinux(context: pb.Privileges.SELinuxContext) -> list[str]:
    if context.disable:
        return ["label=disable"]
    parts = (("user", context.user), ("role", context.role), ("type", context.type), ("level", context.level))
    return [f"label={name}:{value}" for name, value in parts if value]


def devices(entries: Sequence[str]) -> list[dict[str, Any]]:
    """Devices of "/dev/a", "/dev/a:/dev/b" or "/dev/a:/dev/b:rwm". Raises TaskFatal."""
    made: list[dict[str, Any]] = []
    for entry in entries:
        host, _, rest = entry.partition(":")
        inside, _, may = rest.partition(":")
        if not host.startswith("/dev/") or (may and set(may) - set("rwm")):
            raise base.TaskFatal(f"device {entry!r}: write /dev/NAME, or /dev/NAME:/dev/INSIDE:rwm")
        made.append({"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": may or "rwm"})
    return made
