"""Every refusal that docs/container-spec.md promises, in its words, by both runtimes."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from agent.runtime import base
from agent.runtime.docker import spec as docker_spec
from agent.runtime.process import health
from agent.runtime.process import spec as process_spec
from skep import pb
from tests.agent.runtime import test_container_spec_table as document
from tests.agent.runtime import workloads

C, R = "ContainerSpec.", "Resources."
OLDEST = (1, 40)  # Engine API
Change = Callable[[pb.ServiceSpec], None]


def container(**fields: Any) -> Change:
    return lambda spec: spec.task.container.MergeFrom(pb.ContainerSpec(**fields))


def resources(**fields: Any) -> Change:
    return lambda spec: spec.task.resources.MergeFrom(pb.ResourceRequirements(**fields))


def limits(**fields: Any) -> Change:
    return resources(limits=pb.Resources(**fields))


def task(**fields: Any) -> Change:
    return lambda spec: spec.task.MergeFrom(pb.TaskSpec(**fields))


def privileges(**fields: Any) -> Change:
    return container(privileges=pb.Privileges(**fields))


def mount(**fields: Any) -> Change:
    return container(mounts=[pb.Mount(type=pb.MOUNT_TYPE_VOLUME, source="s", target="/t", **fields)])


def bind(**fields: Any) -> Change:
    return mount(bind_options=pb.Mount.BindOptions(**fields))


def volume(**fields: Any) -> Change:
    return mount(volume_options=pb.Mount.VolumeOptions(**fields))


def ingress(spec: pb.ServiceSpec) -> None:
    spec.endpoint.ports.add(target_port=80, publish_mode=pb.PUBLISH_MODE_INGRESS)


def files(kind: str) -> Change:
    """Not part of the specification that runtimes see: the worker gives the files along."""
    return lambda spec: spec.labels.update({"file": kind})


GENERIC = pb.GenericResource(discrete=pb.GenericResource.Discrete(kind="gpu", value=1))

# What makes somebody refuse the field. Most are refused however they are set.
SET: Mapping[str, Change] = {
    C + "Hostname": container(hostname="web"),
    C + "User": container(user="nobody"),
    C + "Groups": container(groups=["7"]),
    C + "TTY": container(tty=True),
    C + "OpenStdin": container(open_stdin=True),
    C + "ReadOnly": container(read_only=True),
    C + "Healthcheck.Test": container(healthcheck=pb.HealthConfig(test=["HTTP", "/", "80"])),
    C + "Healthcheck.StartInterval": container(healthcheck=pb.HealthConfig(test=["CMD", "x"], start_interval=10**9)),
    C + "Mounts.Type": mount(),
    C + "Mounts.Source": mount(),
    C + "Mounts.Target": mount(),
    C + "Mounts.ReadOnly": mount(read_only=True),
    C + "Mounts.BindOptions.Propagation": bind(propagation="rslave"),
    C + "Mounts.BindOptions.NonRecursive": bind(non_recursive=True),
    C + "Mounts.BindOptions.CreateMountpoint": bind(create_mountpoint=True),
    C + "Mounts.VolumeOptions.NoCopy": volume(no_copy=True),
    C + "Mounts.VolumeOptions.Labels": volume(labels={"a": "b"}),
    C + "Mounts.VolumeOptions.DriverConfig.Name": volume(driver_config=pb.Driver(name="local")),
    C + "Mounts.VolumeOptions.DriverConfig.Options": volume(driver_config=pb.Driver(options={"o": "x"})),
    C + "Mounts.VolumeOptions.Subpath": volume(subpath="x"),
    C + "Mounts.TmpfsOptions.SizeBytes": mount(tmpfs_options=pb.Mount.TmpfsOptions(size_bytes=1)),
    C + "Mounts.TmpfsOptions.Mode": mount(tmpfs_options=pb.Mount.TmpfsOptions(mode=0o700)),
    C + "Secrets": files("secret"),
    C + "Configs": files("config"),
    C + "Hosts": container(hosts=["10.1.1.1 far"]),
    C + "DNSConfig.Nameservers": container(dns_config=pb.DNSConfig(nameservers=["10.1.1.1"])),
    C + "DNSConfig.Search": container(dns_config=pb.DNSConfig(search=["a"])),
    C + "DNSConfig.Options": container(dns_config=pb.DNSConfig(options=["ndots:2"])),
    C + "Sysctls": container(sysctls={"a": "b"}),
    C + "CapabilityAdd": container(capability_add=["NET_ADMIN"]),
    C + "CapabilityDrop": container(capability_drop=["ALL"]),
    C + "Isolation": container(isolation="hyperv"),
    C + "Privileges.CredentialSpec": privileges(credential_spec=pb.Privileges.CredentialSpec(file="x")),
    C + "Privileges.SELinuxContext": privileges(selinux_context=pb.Privileges.SELinuxContext(disable=True)),
    C + "Privileges.Seccomp": privileges(seccomp=pb.Privileges.Seccomp(mode="unconfined")),
    C + "Privileges.AppArmor": privileges(apparmor=pb.Privileges.AppArmor(mode="disabled")),
    C + "Privileges.NoNewPrivileges": privileges(no_new_privileges=True),
    C + "ShmSize": container(shm_size_bytes=1),
    C + "Devices": container(devices=["/dev/null"]),
    C + "Privileged": container(privileged=True),
    R + "Limits.NanoCPUs": limits(nano_cpus=1),
    R + "Limits.MemoryBytes": limits(memory_bytes=1),
    R + "Limits.Pids": limits(pids=1),
    R + "Limits.GenericResources": limits(generic=[GENERIC]),
    R + "SwapBytes": resources(swap_bytes=1),
    R + "MemorySwappiness": resources(memory_swappiness=1),
    "Networks": task(networks=[pb.NetworkAttachmentConfig(target="n1")]),
    "LogDriver.Name": task(log_driver=pb.Driver(name="syslog")),
    "LogDriver.Options": task(log_driver=pb.Driver(options={"tag": "x"})),
    "Runtime": task(runtime="plugin"),
    "EndpointSpec.Ports": ingress,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Promise:
    """One cell of the table that refuses something."""

    field: str
    column: str
    words: str


def promises() -> list[Promise]:
    found: list[Promise] = []
    for field, (docker, process) in document.table().items():
        for column, cell in (("docker", docker), ("process", docker if process == "as docker" else process)):
            if "refused" in cell:
                quoted = re.search(r"refused: `([^`]+)`", cell)
                assert quoted, f"{field}: {cell!r} does not say in which words"
                found.append(Promise(field, column, quoted[1].partition("..")[0].strip()))
    return found


def refused_by(column: str, work: base.Workload) -> str:
    """The words of the runtime; empty when it would run the task. On a node without root, old and with no labels."""
    try:
        if column == "docker":
            docker_spec.create_body(work, node_id="n1", api=OLDEST)
        else:
            health.parse(work.container.healthcheck)
            process_spec.plan(work, ports=[], work_dir=pathlib.Path("/w"), euid=1000, controllers=())
            process_spec.file_names(work.files)
    except base.TaskFatal as error:
        return str(error)
    return ""


def plain() -> base.Workload:
    return workloads.workload("true", container=pb.ContainerSpec(image="web:1"))


@pytest.mark.parametrize("promise", promises(), ids=lambda each: f"{each.column}-{each.field}")
def test_what_is_refused_is_refused_in_the_words_of_the_document(promise: Promise) -> None:
    work = plain()
    assert refused_by(promise.column, work) == ""
    SET[promise.field](work.spec)
    kind = work.spec.labels.get("file")
    if kind:
        work = dataclasses.replace(work, files=(workloads.file("/etc/x", b"x", kind=kind),))
    assert promise.words in refused_by(promise.column, work)


def test_nothing_is_refused_that_the_document_does_not_mention() -> None:
    promised = {(each.field, each.column) for each in promises()}
    assert SET.keys() == {each.field for each in promises()}
    for field, change in SET.items():
        for column in ("docker", "process"):
            work = plain()
            change(work.spec)
            assert (field, column) in promised or refused_by(column, work) == ""


@pytest.mark.parametrize("column", ["docker", "process"])
def test_all_refused_fields_are_named_at_once(column: str) -> None:
    work = plain()
    for field in ("Networks", "Runtime", "EndpointSpec.Ports", C + "Isolation", R + "Limits.GenericResources"):
        SET[field](work.spec)
    assert refused_by(column, work) == (
        f"the {column} runtime cannot honour: networks, runtime, isolation, generic resource limits, "
        "ports published in ingress mode (use mode=host)"
    )
