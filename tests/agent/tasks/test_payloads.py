"""From the managers' secrets and configs to a task's files."""

import pytest

from agent.runtime import base
from agent.tasks import payloads
from skep import pb
from tests.agent.runtime import workloads


def sent(*objects: pb.Secret | pb.Config, full: bool = True) -> pb.Assignments:
    return pb.Assignments(
        full=full,
        secrets=[each for each in objects if isinstance(each, pb.Secret)],
        configs=[each for each in objects if isinstance(each, pb.Config)],
    )


def secret(object_id: str, data: bytes, **spec: object) -> pb.Secret:
    return pb.Secret(id=object_id, name=object_id, spec=pb.SecretSpec(name=object_id, data=data, **spec))  # type: ignore[arg-type]


def config(object_id: str, data: bytes, *, golang: bool = False) -> pb.Config:
    spec = pb.ConfigSpec(name=object_id, data=data, templating=pb.Driver(name="golang") if golang else None)
    return pb.Config(id=object_id, name=object_id, spec=spec)


def work(*references: tuple[str, str], env: tuple[str, ...] = ()) -> base.Workload:
    """References by object ("s1" is a secret, "c1" a config) and target."""
    container = pb.ContainerSpec(image="x", env=env)
    for name, target in references:
        file = pb.FileTarget(name=target, uid="5", gid="6", mode=0o400)
        if name.startswith("s"):
            container.secrets.add(secret_id=name, secret_name=name, file=file)
        else:
            container.configs.add(config_id=name, config_name=name, file=file)
    return workloads.workload("run", container=container)


def test_every_reference_is_a_file_of_its_own() -> None:
    held = payloads.Payloads()
    held.take(sent(secret("s1", b"hush"), config("c1", b"a=1")))
    made = held.files(work(("s1", "one"), ("s1", "/abs/two"), ("c1", "three"), ("c1", "/etc/four")))
    assert [(each.path, each.data) for each in made] == [
        ("/run/secrets/one", b"hush"), ("/abs/two", b"hush"), ("/three", b"a=1"), ("/etc/four", b"a=1"),
    ]  # fmt: skip
    assert {(each.uid, each.gid, each.mode) for each in made} == {(5, 6, 0o400)}
    assert held.files(work()) == ()


def test_before_the_full_set_a_task_waits_and_after_it_what_is_missing_is_gone() -> None:
    held = payloads.Payloads()
    with pytest.raises(base.TaskTemporary, match="waiting for the managers to send secret s1, config c1"):
        held.files(work(("s1", "one"), ("c1", "two")))
    held.take(sent(config("c1", b"x"), full=False))
    with pytest.raises(base.TaskTemporary, match=r"secret s1$"):
        held.files(work(("s1", "one"), ("c1", "two")))
    held.take(sent())
    with pytest.raises(base.TaskFatal, match="secret s1 not found: it was removed"):
        held.files(work(("s1", "one"), ("c1", "two")))


def test_nothing_is_kept_that_no_revision_names() -> None:
    held = payloads.Payloads()
    held.take(sent(secret("s1", b"hush"), config("c1", b"a=1")))
    revision = pb.Revision()
    revision.spec.task.container.CopyFrom(work(("c1", "x")).container)
    held.keep([revision])
    assert held.files(work(("c1", "x")))
    with pytest.raises(base.TaskFatal, match="secret s1 not found"):
        held.files(work(("s1", "x")))


def test_templates() -> None:
    held = payloads.Payloads()
    text = b'{{ .Service.Name }}/{{.Task.Slot}} {{ secret "password" }} {{ env "MODE" }}[{{ env "NONE" }}]'
    held.take(
        sent(
            secret("s1", b"hush"),
            config("c1", text, golang=True),
            config("c2", b"{{ .Service.Name }}"),
            config("c3", b"\xff{{ .Service.Name }}", golang=True),
            config("c4", b'{{ secret "nope" }}', golang=True),
            config("c5", b"{{ .Nope }}", golang=True),
        )
    )
    made = held.files(work(("s1", "password"), ("c1", "a"), ("c2", "b"), ("c3", "c"), env=("MODE=on-{{.Task.Slot}}",)))
    assert [each.data for each in made[1:]] == [
        b"web/1 hush on-1[]", b"{{ .Service.Name }}", b"\xff{{ .Service.Name }}",
    ]  # fmt: skip
    with pytest.raises(base.TaskFatal, match="expanding config a failed: secret target nope not found"):
        held.files(work(("c4", "a")))
    with pytest.raises(base.TaskFatal, match="is not known"):
        held.files(work(("c5", "a")))
