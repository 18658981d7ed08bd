"""What users ask for: the services of a simulation and their specifications, drawn from the seed."""

import dataclasses
import json
import random
from typing import Any

from skep import policies, stamps

GOOD = ("app:1", "app:2", "app:3")
BAD = ("missing:1", "crashing:1", "slow:1", "ending:1")
HARMLESS = ("missing:1", "slow:1")  # what a good update cannot be brought down by
ENDING = "ending:1"

ZONES = ("a", "b")
HUNGRY_BYTES = 2 << 30
MAX_PER_NODE = 2
HOST_PORT = 8080
LEASE_S = 4


@dataclasses.dataclass(frozen=True)
class Character:
    """What stays the same of a service through all its specifications."""

    mode: str = "Replicated"
    start_first: bool = False
    choosy: bool = False  # constraints, spread, memory, so many a node
    host_port: bool = False
    at_most_once: bool = False


SERVICES = {
    "svc-a": Character(),
    "svc-b": Character(start_first=True),
    "svc-c": Character(choosy=True),
    "svc-d": Character(mode="Global", start_first=True),
    "svc-e": Character(mode="ReplicatedJob"),
    "svc-f": Character(mode="GlobalJob"),
    "svc-g": Character(host_port=True),
    "svc-h": Character(at_most_once=True),
    "svc-i": Character(start_first=True, choosy=True),
}


def comes_true(name: str, spec: dict[str, Any]) -> bool:
    """Whether nothing in a specification keeps it from coming true, as nothing does in one that is drawn as good."""
    template, kind = spec["TaskTemplate"], SERVICES[name]
    restart = template.get("RestartPolicy", {})
    return (
        template["ContainerSpec"]["Image"] in (ENDING, *GOOD)[0 if kind.mode.endswith("Job") else 1 :]
        and (kind.mode.endswith("Job") or restart.get("Condition", "any") == "any")
        and not restart.get("MaxAttempts")
        and not template.get("Placement", {}).get("Constraints")
        and (not (kind.choosy or kind.host_port) or spec["Mode"]["Replicated"]["Replicas"] <= 1)
    )


class Wishes:
    """Draws specifications."""

    def __init__(self, rng: random.Random, *, calm: bool) -> None:
        """`calm`: nothing that is asked for brings a service down by itself."""
        self._rng = rng
        self._calm = calm
        self._bad = rng.choice((0.0, 0.1, 0.4))
        count = rng.randrange(3, 6)
        self.names = sorted(rng.sample(list(SERVICES), count))

    def spec(self, name: str, *, good: bool = False) -> dict[str, Any]:
        """A specification; with `good` one that comes true when nothing is broken."""
        rng, kind = self._rng, SERVICES[name]
        bad = HARMLESS if self._calm else BAD
        image = rng.choice(bad) if not good and rng.random() < self._bad else rng.choice(GOOD)
        condition = "any" if good or self._calm else rng.choice(("any", "any", "any", "on-failure", "none"))
        restart: dict[str, Any] = {"Condition": condition, "Delay": _ns(rng.choice((0.0, 0.5, 2.0)))}
        if not good and not self._calm and rng.random() < 0.3:
            restart["MaxAttempts"] = rng.randrange(1, 3)
        template: dict[str, Any] = {
            "ContainerSpec": {"Image": image, "StopGracePeriod": _ns(rng.choice((0.5, 2.0, 5.0)))},
            "RestartPolicy": restart, "ForceUpdate": rng.randrange(1000),
        }  # fmt: skip
        spec: dict[str, Any] = {"Name": name, "Labels": self._labels(kind), "TaskTemplate": template}
        if kind.mode.endswith("Job"):
            template["ContainerSpec"]["Image"] = ENDING
            restart["Condition"] = "on-failure"
            restart.pop("MaxAttempts", None)
            replicated = {"MaxConcurrent": rng.randrange(1, 3), "TotalCompletions": 3}
            spec["Mode"] = {kind.mode: replicated if kind.mode == "ReplicatedJob" else {}}
            return spec
        if kind.choosy:
            template |= self._choosy(good=good)
        if kind.host_port:
            port = {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": HOST_PORT, "PublishMode": "host"}
            spec["EndpointSpec"] = {"Ports": [port]}
        spec["UpdateConfig"] = self._update(kind, good=good)
        spec["RollbackConfig"] = self._update(kind, good=good, backward=True)
        spec["Mode"] = {"Global": {}} if kind.mode == "Global" else {"Replicated": {"Replicas": self._replicas(name)}}
        if good and (kind.choosy or kind.host_port):
            spec["Mode"] = {"Replicated": {"Replicas": 1}}
        return spec

    def scaled(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """The same with another number of replicas."""
        copy: dict[str, Any] = json.loads(json.dumps(spec))
        if "Replicated" in copy["Mode"]:
            copy["Mode"]["Replicated"]["Replicas"] = self._replicas(name)
        return copy

    def node(self, spec: dict[str, Any]) -> dict[str, Any]:
        """A node's specification with another availability or another label."""
        copy: dict[str, Any] = json.loads(json.dumps(spec))
        if not self._calm and self._rng.random() < 0.3:
            copy["Labels"]["zone"] = self._rng.choice(ZONES)
        else:
            wishes = ("active", "active", "active", "drain", "drain", "pause")
            copy["Availability"] = self._rng.choice(wishes)
        return copy

    def _labels(self, kind: Character) -> dict[str, str]:
        labels: dict[str, str] = {}
        if kind.at_most_once:
            labels[policies.AT_MOST_ONCE] = f"{LEASE_S}s"
        elif not self._calm and self._rng.random() < 0.2:
            labels[policies.REPLACE_AFTER] = f"{self._rng.randrange(1, 8)}s"
        return labels

    def _choosy(self, *, good: bool) -> dict[str, Any]:
        rng = self._rng
        placement: dict[str, Any] = {"MaxReplicas": MAX_PER_NODE}
        if rng.random() < 0.5:
            placement["Preferences"] = [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}]
        if not good and not self._calm and rng.random() < 0.5:
            placement["Constraints"] = [f"node.labels.zone{rng.choice(('==', '!='))}{rng.choice(ZONES)}"]
        reservations = {"MemoryBytes": rng.choice((0, 1 << 30, HUNGRY_BYTES))}
        return {"Placement": placement, "Resources": {"Reservations": reservations}}

    def _update(self, kind: Character, *, good: bool, backward: bool = False) -> dict[str, Any]:
        rng = self._rng
        actions = ("continue", "pause") if backward else ("continue", "pause", "rollback")
        return {
            "Parallelism": rng.randrange(3), "Delay": _ns(rng.choice((0.0, 0.0, 1.0))),
            "Monitor": _ns(rng.choice((0.5, 2.0))),
            "FailureAction": "continue" if good else rng.choice(actions),
            "Order": "start-first" if kind.start_first else "stop-first",
        }  # fmt: skip

    def _replicas(self, name: str) -> int:
        if SERVICES[name].at_most_once:
            return self._rng.choice((1, 1, 2))
        return self._rng.choice((0, 1, 1, 2, 2, 3, 4, 6))


def _ns(seconds: float) -> int:
    return stamps.to_nanos(seconds)
