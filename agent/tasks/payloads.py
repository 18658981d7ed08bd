"""Secrets and configs that the managers sent this node: in memory only, for as long as a task's revision names them.

Makes the files of a task from them. Must never write one, log one, or put a payload in an error text.
"""

from collections.abc import Iterable

from agent.runtime import base, templates
from skep import pb

SECRETS_DIR = "/run/secrets/"
GOLANG = "golang"


class Payloads:
    """What this node was given."""

    def __init__(self) -> None:
        self._secrets: dict[str, pb.SecretSpec] = {}
        self._configs: dict[str, pb.ConfigSpec] = {}
        self._complete = False

    def take(self, assignments: pb.Assignments) -> None:
        """Remembers what came along; after a full set, what is missing is known to be missing."""
        self._secrets.update({each.id: each.spec for each in assignments.secrets})
        self._configs.update({each.id: each.spec for each in assignments.configs})
        self._complete = self._complete or assignments.full

    def keep(self, revisions: Iterable[pb.Revision]) -> None:
        """Forgets whatever none of these revisions names."""
        named: dict[str, None] = {}
        for revision in revisions:
            container = revision.spec.task.container
            named.update(dict.fromkeys(each.secret_id for each in container.secrets))
            named.update(dict.fromkeys(each.config_id for each in container.configs))
        self._secrets = {key: spec for key, spec in self._secrets.items() if key in named}
        self._configs = {key: spec for key, spec in self._configs.items() if key in named}

    def files(self, workload: base.Workload) -> tuple[base.File, ...]:
        """The files that the task's container is to find, each reference its own.

        Raises TaskTemporary while the managers have not sent everything, and TaskFatal when one does not exist or its
        template cannot be filled in.
        """
        container = workload.container
        if not container.secrets and not container.configs:
            return ()
        self._check(container)
        made = [
            _file("secret", self._secrets[each.secret_id], each.file, SECRETS_DIR) for each in container.secrets
        ] + [_file("config", self._configs[each.config_id], each.file, "/") for each in container.configs]
        sources = [
            *(self._secrets[each.secret_id].templating.name for each in container.secrets),
            *(self._configs[each.config_id].templating.name for each in container.configs),
        ]
        plain = {(each.kind, each.target): each.data for each in made}
        return tuple(
            templates.expand_file(each, workload, targets=plain) if template == GOLANG else each
            for each, template in zip(made, sources, strict=True)
        )

    def _check(self, container: pb.ContainerSpec) -> None:
        missing = [f"secret {each.secret_name}" for each in container.secrets if each.secret_id not in self._secrets]
        missing += [f"config {each.config_name}" for each in container.configs if each.config_id not in self._configs]
        if missing and not self._complete:
            raise base.TaskTemporary(f"waiting for the managers to send {', '.join(missing)}")
        if missing:
            raise base.TaskFatal(f"{', '.join(missing)} not found: it was removed from the cluster")


def _file(kind: str, spec: pb.SecretSpec | pb.ConfigSpec, target: pb.FileTarget, directory: str) -> base.File:
    name = target.name
    return base.File(
        kind=kind,
        target=name,
        path=name if name.startswith("/") else directory + name,
        data=spec.data,
        uid=int(target.uid or 0),
        gid=int(target.gid or 0),
        mode=target.mode,
    )
