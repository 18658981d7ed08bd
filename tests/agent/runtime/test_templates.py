"""What placeholders become on a node, and what a node says about the resources it gave."""

import pytest

from agent.runtime import base, templates
from agent.runtime.docker import client
from agent.runtime.docker import spec as docker_spec
from skep import pb
from tests.agent.runtime import workloads


def made(*env: str) -> base.Workload:
    made = workloads.workload(container=pb.ContainerSpec(image="i", env=list(env), hostname="{{.Service.Name}}"))
    made.spec.labels["tier"] = "front"
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{.Node.Hostname}}", "host1"),
        ("{{.Service.Labels.tier}}", "front"),
        ('{{join "/" .Service.Name .Task.Slot}}', "web/1"),
    ],
)
def test_env(text: str, expected: str) -> None:
    assert templates.expand_env(made(f"A={text}")) == [f"A={expected}"]


def test_the_places_of_a_job_count_from_zero_and_a_global_task_has_its_node() -> None:
    work = made("SLOT={{.Task.Slot}}", "NAME={{.Task.Name}}")
    work.task.job_iteration.SetInParent()
    assert templates.expand_env(work) == ["SLOT=0", f"NAME=web.0.{work.task.id}"]
    work.task.ClearField("job_iteration")
    work.task.slot = 0
    assert templates.expand_env(work)[0] == f"SLOT={work.task.node_id}"


def test_resources_that_were_given_are_in_the_environment() -> None:
    work = made("A=1")
    for name in ("uuid1", "uuid2"):
        work.task.assigned_generic.add().named.CopyFrom(pb.GenericResource.Named(kind="gpu", value=name))
    work.task.assigned_generic.add().discrete.CopyFrom(pb.GenericResource.Discrete(kind="SSD", value=3))
    expected = ["A=1", "DOCKER_RESOURCE_GPU=uuid1,uuid2", "DOCKER_RESOURCE_SSD=3"]
    assert templates.expand_env(work) == expected
    api: client.Version = (1, 47)
    body = docker_spec.create_body(work, node_id="n", api=api)
    assert (body["Env"], body["Hostname"]) == (expected, "web")
