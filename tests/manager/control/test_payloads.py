"""Secrets and configs: what may be made of them, and who keeps them from being removed."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from manager.control import control, lookup, payloads, services
from manager.store import views
from skep import errors, pb
from tests.manager.http import fake_machine

Refused = tuple[payloads.Spec, type[errors.SkepError], str]


class Rig:
    def __init__(self, machine: fake_machine.FakeMachine) -> None:
        assert machine.manager is not None
        self.manager = machine.manager
        self.control = control.Control(
            state=self.manager.store, committer=self.manager.committer, time=machine.clock, rng=machine.rng
        )

    @property
    def view(self) -> views.View:
        return self.manager.store.view()


def with_rig(work: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        machine = fake_machine.FakeMachine()
        await machine.found()
        rig = Rig(machine)
        await work(rig)
        rig.manager.store.verify()

    asyncio.run(main())


def secret(name: str = "sec1", data: bytes = b"hush", **fields: object) -> pb.SecretSpec:
    return pb.SecretSpec(name=name, data=data, **fields)  # type: ignore[arg-type]


def reference(object_id: str, name: str = "sec1", target: str = "password") -> pb.SecretReference:
    return pb.SecretReference(secret_id=object_id, secret_name=name, file=pb.FileTarget(name=target, mode=0o444))


def service(name: str, *secrets: pb.SecretReference) -> pb.ServiceSpec:
    spec = pb.ServiceSpec(name=name)
    spec.task.container.image = "nginx"
    spec.task.container.secrets.extend(secrets)
    spec.mode.replicated.replicas = 1
    return spec


BAD_NAME = "invalid name, only 64"
SIZE = "data must be larger than 0 and less than"
REFUSED: list[Refused] = [
    (secret(""), errors.Invalid, "name must be provided"),
    (secret("a b"), errors.Invalid, BAD_NAME),
    (secret("-a"), errors.Invalid, BAD_NAME),
    (secret("a" * 65), errors.Invalid, BAD_NAME),
    (secret(data=b""), errors.Invalid, f"secret {SIZE} 512000 bytes"),
    (secret(data=b"x" * 512_000), errors.Invalid, f"secret {SIZE} 512000 bytes"),
    (secret(templating=pb.Driver(name="jinja")), errors.Invalid, "unrecognized template type 'jinja'"),
    (secret(driver=pb.Driver(name="vault")), errors.Unimplemented, "no drivers for secrets"),
    (secret(labels={"a": "x" * 70_000}), errors.Invalid, "the secret's labels have 70001 bytes"),
    (pb.ConfigSpec(name="c", data=b"x" * 1_024_000), errors.Invalid, f"config {SIZE} 1024000 bytes"),
]


@pytest.mark.parametrize(("spec", "kind", "text"), REFUSED, ids=[text for _, _, text in REFUSED])
def test_what_is_refused(spec: payloads.Spec, kind: type[errors.SkepError], text: str) -> None:
    with pytest.raises(kind, match=text):
        payloads.check("secret" if isinstance(spec, pb.SecretSpec) else "config", spec)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 64])
def test_names_may_hold_dots(name: str) -> None:
    payloads.check("secret", secret(name, b"x" * 511_999))


def test_a_name_is_unique_without_regard_to_case_and_within_its_kind() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_payload("secret", secret())
        with pytest.raises(errors.AlreadyExists, match="secret SEC1 already exists"):
            await rig.control.create_payload("secret", secret("SEC1"))
        await rig.control.create_payload("config", pb.ConfigSpec(name="sec1", data=b"x"))

    with_rig(work)


def test_only_labels_change() -> None:
    async def work(rig: Rig) -> None:
        object_id = await rig.control.create_payload("secret", secret())
        version = lookup.secret(rig.view, "sec1").version.index
        for changed in (secret("other"), secret(data=b"new"), secret(templating=pb.Driver(name="golang"))):
            with pytest.raises(errors.Invalid, match="only updates to Labels are allowed"):
                await rig.control.update_payload("secret", "sec1", changed, version=version)
        with pytest.raises(errors.Conflict, match="update out of sequence"):
            await rig.control.update_payload("secret", "sec1", secret(), version=version + 1)
        bare = secret(data=b"", labels={"team": "bees"})
        await rig.control.update_payload("secret", object_id[:8], bare, version=version)
        row = lookup.secret(rig.view, object_id)
        assert (dict(row.spec.labels), row.spec.data) == ({"team": "bees"}, b"hush")

    with_rig(work)


def test_it_stays_while_a_service_asks_for_it() -> None:
    async def work(rig: Rig) -> None:
        object_id = await rig.control.create_payload("secret", secret())
        await rig.control.create_service(service("web", reference(object_id)))
        with pytest.raises(errors.Invalid, match=r"^secret 'sec1' is in use by the following service: web$"):
            await rig.control.remove_payload("secret", "sec1")
        await rig.control.create_service(service("api", reference(object_id)))
        with pytest.raises(errors.Invalid, match=r"in use by the following services: api, web$"):
            await rig.control.remove_payload("secret", "sec1")
        await rig.control.remove_service("api")
        version = lookup.service(rig.view, "web").version.index
        await rig.control.update_service("web", services.Update(spec=service("web"), version=version))
        await rig.control.remove_payload("secret", "sec1")  # the previous revision does not hold it
        version = lookup.service(rig.view, "web").version.index
        with pytest.raises(errors.Invalid, match="secret not found: sec1"):
            await rig.control.rollback_service("web", version=version)

    with_rig(work)


def test_references_must_be_to_what_there_is() -> None:
    async def work(rig: Rig) -> None:
        object_id = await rig.control.create_payload("secret", secret())
        for wrong, text in (
            (reference("", "sec1"), "malformed secret reference$"),
            (pb.SecretReference(secret_id=object_id, secret_name="sec1"), "no target provided"),
            (reference(object_id, target=""), "invalid target file name provided"),
            (reference(object_id, target="../x"), "invalid target file name provided"),
            (reference(object_id, "other"), "secret not found: other"),
            (reference("nope"), "secret not found: sec1"),
        ):
            with pytest.raises(errors.Invalid, match=text):
                await rig.control.create_service(service("web", wrong))
        twice = (reference("x", "a", "t"), reference("y", "b", "t"))
        with pytest.raises(errors.Invalid, match="'a' and 'b' have a conflicting target: 't'"):
            await rig.control.create_service(service("web", *twice))
        both = (reference("x", "a", "1"), reference("y", "b", "2"))
        with pytest.raises(errors.Invalid, match="secrets not found: a, b"):
            await rig.control.create_service(service("web", *both))
        again = (reference(object_id, target="one"), reference(object_id, target="two"))
        await rig.control.create_service(service("web", *again))

    with_rig(work)
