"""The fields of docs/container-spec.md that the docker runtime honours, each with what shows it on an engine."""

import dataclasses
from collections.abc import Callable
from typing import Any

from skep import pb

IMAGE = "skep/busybox:1"  # what the engine tests make
C, R, L = "ContainerSpec.", "Resources.", "LogDriver."
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """Fields (as the table names them), how to set them, what the container prints and what the engine shows."""

    fields: tuple[str, ...]
    spec: pb.ContainerSpec
    script: str = "echo up"  # empty: the specification has its own command
    says: str = "up"  # all that is printed, stripped
    shows: Callable[[Json], object] = lambda _: None  # from the inspected container
    expected: tuple[object, ...] = (None,)  # any of these
    resources: pb.ResourceRequirements = dataclasses.field(default_factory=pb.ResourceRequirements)
    log_driver: pb.Driver | None = None
    since: tuple[int, int] = (1, 40)  # Engine API; an older engine must be refused by name
    refusal: str = ""
    runtime: str = ""
    runs: bool = True  # False: the engine of a test may lack the privileges itself; what it was told is looked at

    @property
    def name(self) -> str:
        """For the test's name."""
        return self.fields[0]


def row(
    fields: tuple[str, ...], spec: Json | None = None, script: str = "echo up", says: str = "up", **more: Any
) -> Row:
    """A row with the test's own image unless the specification names one."""
    made = pb.ContainerSpec(image=IMAGE, **(spec or {}))
    made.stop_grace_period = made.stop_grace_period or 1_000_000_000
    return Row(fields=fields, spec=made, script=script, says=says, **more)


def _c(*names: str) -> tuple[str, ...]:
    return tuple(C + name for name in names)


def _mount(*names: str) -> tuple[str, ...]:
    return tuple(f"{C}Mounts.{name}" for name in names)


def _volume_mount() -> pb.Mount:
    options = pb.Mount.VolumeOptions(
        no_copy=True,
        labels={"owner": "{{.Service.Name}}"},
        driver_config=pb.Driver(name="local", options={"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}),
    )
    return pb.Mount(type=pb.MOUNT_TYPE_VOLUME, target="/{{.Service.Name}}", volume_options=options)


def _bind_mount(**options: Any) -> pb.Mount:
    return pb.Mount(
        type=pb.MOUNT_TYPE_BIND, source="/usr/share", target="/given", read_only=True,
        bind_options=pb.Mount.BindOptions(**options),
    )  # fmt: skip


def _bound(container: Json) -> object:
    """The options of its first mount; Podman tells them as text."""
    host_config = container["HostConfig"]
    return host_config["Mounts"][0]["BindOptions"] if "Mounts" in host_config else host_config["Binds"]


HEALTH = pb.HealthConfig(
    test=["CMD", "true"], interval=3_000_000_000, timeout=2_000_000_000, retries=4, start_period=5_000_000_000
)
HEALTH_JSON = {
    "Test": ["CMD", "true"], "Interval": 3_000_000_000, "Timeout": 2_000_000_000, "Retries": 4,
    "StartPeriod": 5_000_000_000,
}  # fmt: skip
DNS = pb.DNSConfig(nameservers=["10.1.2.3"], search=["bees.test"], options=["ndots:2"])
ALLOW_ALL = b'{"defaultAction":"SCMP_ACT_ALLOW"}'
MIB = 1 << 20

# What the kernel was told, by version 1 or 2 of the control groups, and whether it has us make 60 processes.
LIMITS_SCRIPT = r"""
cd /sys/fs/cgroup
cut -d' ' -f1 cpu.max 2>/dev/null || cat cpu/cpu.cfs_quota_us
cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes
cat pids.max 2>/dev/null || cat pids/pids.max
made=$( (i=0; while [ $i -lt 60 ]; do sleep 5 >/dev/null & i=$((i+1)); echo; done) 2>/dev/null | wc -l)
test $made -gt 40 && test $made -lt 50 && echo as many as 50 allow
"""

ROWS = (
    row(("Runtime",), runtime="container"),
    row(_c("Image")),
    row(_c("Labels"), {"labels": {"team": "bees"}}, shows=lambda c: c["Config"]["Labels"]["team"], expected=("bees",)),
    row(_c("Command", "Args"), {"command": ["echo", "entry"], "args": ["point"]}, "", "entry point"),
    row(_c("Hostname"), {"hostname": "{{.Service.Name}}-{{.Task.Slot}}"}, "hostname", "web-1"),
    row(_c("Env"), {"env": ["WHO={{.Task.Slot}}=x"]}, "echo $WHO", "1=x"),
    row(_c("Dir"), {"dir": "/tmp"}, "pwd", "/tmp"),
    row(_c("User", "Groups"), {"user": "nobody", "groups": ["77"]}, "id -u; id -G | grep -o 77", "65534\n77"),
    row(_c("TTY"), {"tty": True}, "test -t 1 && echo terminal", "terminal"),
    row(_c("OpenStdin"), {"open_stdin": True}, shows=lambda c: c["Config"]["OpenStdin"], expected=(True,)),
    row(_c("ReadOnly"), {"read_only": True}, "touch /x 2>/dev/null || echo refused", "refused"),
    row(_c("Init"), {"init": True}, "test $$ != 1 && echo child", "child"),
    row(
        _c("StopSignal"), {"stop_signal": "SIGINT"},
        shows=lambda c: c["Config"]["StopSignal"], expected=("SIGINT", "2"),
    ),
    row(
        _c("StopGracePeriod"), {"stop_grace_period": 2_500_000_000},
        shows=lambda c: c["Config"]["StopTimeout"], expected=(3,),
    ),
    row(
        _c(*(f"Healthcheck.{name}" for name in HEALTH_JSON)), {"healthcheck": HEALTH},
        shows=lambda c: {name: c["Config"]["Healthcheck"][name] for name in HEALTH_JSON}, expected=(HEALTH_JSON,),
    ),
    row(
        _c("Healthcheck.StartInterval"), {"healthcheck": pb.HealthConfig(test=["CMD", "true"], start_interval=10**9)},
        shows=lambda c: c["Config"]["Healthcheck"]["StartInterval"], expected=(10**9,),
        since=(1, 44), refusal="health check start interval",
    ),
    row(
        _mount("Type", "Source", "Target", "ReadOnly", "BindOptions.Propagation", "BindOptions.NonRecursive"),
        {"mounts": [_bind_mount(propagation="private", non_recursive=True)]},  # rprivate is what engines do unasked
        "ls /given >/dev/null && touch /given/x 2>/dev/null || echo refused", "refused",
        shows=_bound,
        expected=({"Propagation": "private", "NonRecursive": True}, ["/usr/share:/given:ro,private,bind"]),
    ),
    row(
        _mount("BindOptions.CreateMountpoint"), {"mounts": [_bind_mount(create_mountpoint=True)]},
        shows=lambda c: c["HostConfig"]["Mounts"][0]["BindOptions"], expected=({"CreateMountpoint": True},),
        since=(1, 42), refusal="bind create mountpoint",
    ),
    row(
        _mount(
            "VolumeOptions.NoCopy", "VolumeOptions.Labels", "VolumeOptions.DriverConfig.Name",
            "VolumeOptions.DriverConfig.Options",
        ),
        {"mounts": [_volume_mount()]}, "grep -o ' /web tmpfs' /proc/mounts", "/web tmpfs",
        shows=lambda c: c["HostConfig"]["Mounts"][0]["VolumeOptions"],
        expected=({
            "NoCopy": True, "Labels": {"owner": "web"},
            "DriverConfig": {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}},
        },),
    ),
    row(
        _mount("TmpfsOptions.SizeBytes", "TmpfsOptions.Mode"),
        {"mounts": [pb.Mount(type=pb.MOUNT_TYPE_TMPFS, target="/t",
                             tmpfs_options=pb.Mount.TmpfsOptions(size_bytes=MIB, mode=0o1770))]},
        "stat -c %a /t; grep ' /t ' /proc/mounts | grep -o size=1024k", "1770\nsize=1024k",
    ),
    row(_c("Hosts"), {"hosts": ["10.1.1.1 far"]}, "grep far /etc/hosts | cut -c1-8", "10.1.1.1"),
    row(
        _c("DNSConfig.Nameservers", "DNSConfig.Search", "DNSConfig.Options"), {"dns_config": DNS},
        "grep -oE '10.1.2.3|bees.test|ndots:2' /etc/resolv.conf | sort", "10.1.2.3\nbees.test\nndots:2",
    ),
    row(
        _c("Sysctls"), {"sysctls": {"net.ipv4.ip_default_ttl": "33"}}, "cat /proc/sys/net/ipv4/ip_default_ttl", "33"
    ),
    row(
        _c("CapabilityAdd", "CapabilityDrop"), {"capability_add": ["NET_ADMIN"], "capability_drop": ["ALL"]},
        "grep CapEff /proc/self/status | cut -f2", "0000000000001000",
    ),
    row(
        _c("Ulimits.Name", "Ulimits.Hard", "Ulimits.Soft"), {"ulimits": [pb.Ulimit(name="nofile", soft=77, hard=99)]},
        "ulimit -Sn; ulimit -Hn", "77\n99",
    ),
    row(_c("OomScoreAdj"), {"oom_score_adj": 500}, "cat /proc/self/oom_score_adj", "500"),
    row(_c("Isolation"), {"isolation": "default"}),
    row(
        _c("Privileges.SELinuxContext"),
        {"privileges": pb.Privileges(selinux_context=pb.Privileges.SELinuxContext(disable=True))},
        shows=lambda c: "label=disable" in c["HostConfig"]["SecurityOpt"], expected=(True,),
    ),
    row(
        _c("Privileges.Seccomp"), {"privileges": pb.Privileges(seccomp=pb.Privileges.Seccomp(mode="unconfined"))},
        "grep Seccomp: /proc/self/status | cut -f2", "0",
    ),
    row(
        _c("Privileges.Seccomp"),
        {"privileges": pb.Privileges(seccomp=pb.Privileges.Seccomp(mode="custom", profile=ALLOW_ALL))},
        shows=lambda c: any("SCMP_ACT_ALLOW" in each for each in c["HostConfig"]["SecurityOpt"]), expected=(True,),
    ),
    row(
        _c("Privileges.AppArmor"), {"privileges": pb.Privileges(apparmor=pb.Privileges.AppArmor(mode="disabled"))},
        shows=lambda c: "apparmor=unconfined" in c["HostConfig"]["SecurityOpt"], expected=(True,),
    ),
    row(
        _c("Privileges.NoNewPrivileges"), {"privileges": pb.Privileges(no_new_privileges=True)},
        "grep NoNewPrivs /proc/self/status | cut -f2", "1",
    ),
    row(_c("ShmSize"), {"shm_size_bytes": MIB}, "grep ' /dev/shm ' /proc/mounts | grep -o size=1024k", "size=1024k"),
    row(
        _c("Devices"), {"devices": ["/dev/null:/dev/nothing:rw"]}, "test -c /dev/nothing && echo device", "device",
        shows=lambda c: c["HostConfig"]["Devices"][0]["CgroupPermissions"], expected=("rw", ""),  # Podman does not tell
    ),
    row(_c("Privileged"), {"privileged": True}, shows=lambda c: c["HostConfig"]["Privileged"], expected=(True,),
        runs=False),
    row(
        tuple(f"{R}Limits.{name}" for name in ("NanoCPUs", "MemoryBytes", "Pids")), None, LIMITS_SCRIPT,
        f"50000\n{64 * MIB}\n50\nas many as 50 allow",
        resources=pb.ResourceRequirements(limits=pb.Resources(nano_cpus=500_000_000, memory_bytes=64 * MIB, pids=50)),
        shows=lambda c: [c["HostConfig"][name] for name in ("NanoCpus", "Memory", "PidsLimit")],
        expected=([500_000_000, 64 * MIB, 50],),
    ),
    row(
        (R + "SwapBytes",),
        resources=pb.ResourceRequirements(limits=pb.Resources(memory_bytes=64 * MIB), swap_bytes=MIB),
        shows=lambda c: c["HostConfig"]["MemorySwap"], expected=(65 * MIB, -1),  # -1: a kernel that cannot limit it
    ),
    row(
        (R + "MemorySwappiness",),
        resources=pb.ResourceRequirements(limits=pb.Resources(memory_bytes=64 * MIB), memory_swappiness=7),
        shows=lambda c: c["HostConfig"]["MemorySwappiness"], expected=(7, None, -1),  # version 2 has no such thing
    ),
    row(
        (L + "Name", L + "Options"), log_driver=pb.Driver(name="json-file", options={"max-size": "1m"}),
        shows=lambda c: c["HostConfig"]["LogConfig"], expected=({"Type": "json-file", "Config": {"max-size": "1m"}},),
    ),
)  # fmt: skip

# Fields whose tests stand in modules of their own.
ELSEWHERE = {
    C + "Secrets": "test_engine_files",
    C + "Configs": "test_engine_files",
    C + "registryAuth": "test_engine_registry",
    C + "Mounts.VolumeOptions.Subpath": "test_engine_rows",
    "EndpointSpec.Ports": "test_engine_runtime",
    "Placement.Platforms.OS": "test_engine_rows",
    "Placement.Platforms.Architecture": "test_engine_rows",
}


def covered() -> set[str]:
    """Every field that has a test on an engine."""
    return {name for each in ROWS for name in each.fields} | set(ELSEWHERE)
