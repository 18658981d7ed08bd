"""docs/container-spec.md has a row for every field that a user can set, and claims nothing that is not tested."""

import pathlib
import re
from collections.abc import Iterator

from google.protobuf import descriptor

from skep import pb
from tests.agent.runtime import container_rows as rows

DOCUMENT = pathlib.Path(__file__).resolve().parents[3] / "docs" / "container-spec.md"
# Documented as a whole: what managers use, what is refused, and what has one meaning however it is filled.
WHOLE = {
    "Networks", "Placement.Preferences", "RestartPolicy", "Resources.Reservations", "Resources.Limits.GenericResources",
    "ContainerSpec.Secrets", "ContainerSpec.Configs", "ContainerSpec.Privileges.CredentialSpec",
    "ContainerSpec.Privileges.SELinuxContext", "ContainerSpec.Privileges.Seccomp", "ContainerSpec.Privileges.AppArmor",
}  # fmt: skip


def leaves(kind: descriptor.Descriptor, prefix: str = "") -> Iterator[str]:
    for field in kind.fields:
        path = prefix + field.json_name
        nested = field.message_type
        if nested is None or nested.GetOptions().map_entry or path in WHOLE:
            yield path
        else:
            yield from leaves(nested, path + ".")


def table() -> dict[str, tuple[str, str]]:
    found = re.findall(r"^\| `([\w.]+)` \| (.+) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len({name for name, _, _ in found}) == len(found), "a field has two rows"
    return {name: (docker, process) for name, docker, process in found}


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    assert set(table()) == {*leaves(pb.TaskSpec.DESCRIPTOR), "EndpointSpec.Ports"}


def test_every_row_says_what_becomes_of_the_field() -> None:
    verdicts = ("honoured", "translated", "refused", "managers", "as docker", "likewise")
    assert [name for name, cells in table().items() if not all(cell.startswith(verdicts) for cell in cells)] == []


def test_every_honoured_field_is_tested_on_an_engine() -> None:
    claimed = {name for name, (docker, _) in table().items() if docker.startswith(("honoured", "translated"))}
    assert claimed - rows.covered() == set()
