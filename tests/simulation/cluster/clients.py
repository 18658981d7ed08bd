"""Users: create, scale, update, roll back and remove services, drain nodes, read; and remember what they were told."""

import asyncio
import dataclasses
import json
import math
import random
from typing import Any

from manager.control import control
from manager.http import messages
from tests.simulation import shadow
from tests.simulation.cluster import linearizable, machine, timing, wishes

ANSWER_WITHIN_S = 60.0  # virtual; nobody hangs, whatever happens
REMOVE_NODE = 0.3
REBALANCE = 0.05  # of what users do
QUIET = 0.9  # of what users would do to a service that must never run twice: it takes many seconds for that to matter
DONE = (200, 201)


@dataclasses.dataclass(frozen=True)
class Seen:
    """An object as it was read."""

    value: str  # of the label that tells versions apart
    version: int
    spec: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: status 0 when the daemon was killed meanwhile."""

    status: int
    body: Any

    @property
    def unknown(self) -> bool:
        """Whether a change may or may not have been made."""
        return self.status == 0 or (self.status == 500 and control.UNKNOWN in self.body["message"])


class Clients:
    """All users and the histories of all objects."""

    def __init__(self, site: machine.Site, rng: random.Random) -> None:
        self._site = site
        self.wishes = wishes.Wishes(rng, calm=site.calm)
        self._rng = rng
        self.histories: dict[str, list[linearizable.Operation[linearizable.Event]]] = {}
        self.running = True
        self.answers: dict[int, int] = {}
        self._values = 0
        # Where nothing goes wrong users take their time: most of what is promised needs a service that runs in full.
        self._pause_s = rng.choice((1.0, 3.0, 6.0) if site.calm else (0.4, 1.0, 2.0))

    # ---------------------------------------------------------------- requests

    async def ask(self, method: str, target: str, body: Any = None) -> Answer | None:
        """One request to some manager's daemon; None when none of them runs."""
        able = [each for each in self._site.machines.values() if each.manages and each.daemon is not None]
        if not able:
            return None
        chosen = able[self._rng.randrange(len(able))]
        encoded = b"" if body is None else json.dumps(body).encode()
        request = messages.Request(method=method, target=target, body=encoded)
        assert chosen.daemon is not None
        asking = chosen.daemon.spawn(chosen.api.handle(request))
        await asyncio.wait([asking], timeout=ANSWER_WITHIN_S)
        shadow.require(asking.done(), f"{method} {target} was not answered by {chosen.name} in {ANSWER_WITHIN_S} s")
        if asking.cancelled():
            self.answers[0] = self.answers.get(0, 0) + 1
            return Answer(0, None)
        response = asking.result()
        self.answers[response.status] = self.answers.get(response.status, 0) + 1
        self._site.checker.trace.update(f"{method} {target} {response.status}".encode() + response.body)
        # 503 says "not done, try again"; 500 that nobody knows. A crash in a handler must not hide behind the latter.
        decoded = json.loads(response.body) if response.body else None
        if response.status == 500 and decoded is not None:
            shadow.require("internal error" not in decoded["message"], f"{method} {target}: {decoded}")
        return Answer(response.status, decoded)

    def fell_back(self, name: str, value: str) -> None:
        """A service has gone back to an earlier specification by itself, just now."""
        now = timing.loop().true_time()  # a manager tells, and its clock may be wrong
        event = linearizable.Event("fell", value)
        self.histories.setdefault(name, []).append(linearizable.Operation(now, now, event))

    def _note(self, key: str, called_at: float, event: linearizable.Event, *, unknown: bool = False) -> None:
        answered_at = math.inf if unknown else asyncio.get_running_loop().time()
        self.histories.setdefault(key, []).append(linearizable.Operation(called_at, answered_at, event))

    def _value(self) -> str:
        self._values += 1
        return str(self._values)

    # ---------------------------------------------------------------- what users do

    async def run(self) -> None:
        """One user."""
        while self.running:
            await asyncio.sleep(self._rng.uniform(0, 2 * self._pause_s))
            if self._rng.random() < 0.25:
                await self._nodes()
            elif self._rng.random() < REBALANCE:
                await self._rebalance()
            else:
                await self._services()

    async def _services(self) -> None:
        name = self._rng.choice(self.wishes.names)
        seen = await self.read(name)
        quiet = wishes.SERVICES[name].at_most_once
        if seen is None:
            if self._rng.random() < 0.7:
                await self.create(name, self.wishes.spec(name, good=quiet))
            return
        if quiet and self._rng.random() < QUIET:
            return
        action = self._rng.random()
        if action < 0.45:
            await self.change(name, seen, self.wishes.spec(name))
        elif action < 0.6:
            await self.change(name, seen, self.wishes.scaled(name, seen.spec))
        elif action < 0.75:
            await self.roll_back(name, seen)
        elif action < 0.85:
            await self.remove(name)

    async def _nodes(self) -> None:
        nodes = list(self._site.machines)
        name = nodes[self._rng.randrange(len(nodes))]
        seen = await self.read(name, kind="nodes")
        if seen is not None and self._rng.random() < 0.7:
            await self.change(name, seen, self.wishes.node(seen.spec), kind="nodes")
        elif seen is not None and self._may_go(name) and self._rng.random() < REMOVE_NODE:
            await self.remove(name, kind="nodes")

    async def _rebalance(self) -> None:
        """Has tasks moved so that all nodes have about as much to do, or no longer."""
        target = self._rng.choice(("/skep/v1/rebalance", "/skep/v1/rebalance", "/skep/v1/rebalance/cancel"))
        answer = await self.ask("POST", target, {})
        if answer is not None and not answer.unknown and answer.status not in DONE:
            said = f"unexpected answer {answer.status} {answer.body} to {target}"
            shadow.require(answer.status in {400, 409, 503}, said)

    def _may_go(self, name: str) -> bool:
        return not self._site.calm and name not in self._site.managers

    async def read(self, name: str, *, kind: str = "services") -> Seen | None:
        """The object as it is; None when it is not there, or not to be had."""
        called_at = asyncio.get_running_loop().time()
        answer = await self.ask("GET", f"/{kind}/{name}")
        if answer is None or answer.status not in {200, 404}:
            return None
        if answer.status == 404:
            self._note(name, called_at, linearizable.Event("missing"))
            return None
        spec = answer.body["Spec"]
        value = spec["Labels"]["v"]
        self._note(name, called_at, linearizable.Event("read", value))
        return Seen(value, answer.body["Version"]["Index"], spec)

    async def create(self, name: str, spec: dict[str, Any]) -> bool:
        """Creates a service; whether that is certain."""
        value = self._value()
        called_at = asyncio.get_running_loop().time()
        answer = await self.ask("POST", "/services/create", _labelled(spec, value))
        if answer is None:
            return False
        if answer.status in DONE or answer.unknown:
            self._note(name, called_at, linearizable.Event("create", value), unknown=answer.unknown)
        elif answer.status == 409:
            self._note(name, called_at, linearizable.Event("exists"))
        else:
            _require_known(answer, spec)
        return answer.status in DONE

    async def change(self, name: str, seen: Seen, spec: dict[str, Any], *, kind: str = "services") -> bool:
        """Changes an object based on what was read; whether that is certain."""
        value = self._value()
        target = f"/{kind}/{name}/update?version={seen.version}"
        return await self._changing(
            name, linearizable.Event("change", value, seen.value), target, _labelled(spec, value)
        )

    async def roll_back(self, name: str, seen: Seen) -> bool:
        """Goes back to the previous specification."""
        target = f"/services/{name}/update?version={seen.version}&rollback=previous"
        return await self._changing(name, linearizable.Event("back", expected=seen.value), target, seen.spec)

    async def _changing(self, name: str, event: linearizable.Event, target: str, body: dict[str, Any]) -> bool:
        called_at = asyncio.get_running_loop().time()
        answer = await self.ask("POST", target, body)
        if answer is None:
            return False
        if answer.status in DONE or answer.unknown:
            self._note(name, called_at, event, unknown=answer.unknown)
        elif answer.status == 404:
            self._note(name, called_at, linearizable.Event("missing"))
        else:
            _require_known(answer, body)
        return answer.status in DONE

    async def remove(self, name: str, *, kind: str = "services") -> None:
        """Removes a service, or a node whatever its state."""
        called_at = asyncio.get_running_loop().time()
        answer = await self.ask("DELETE", f"/{kind}/{name}{'?force=1' if kind == 'nodes' else ''}")
        if answer is None:
            return
        if answer.status in DONE or answer.unknown:
            self._note(name, called_at, linearizable.Event("remove"), unknown=answer.unknown)
        elif answer.status == 404:
            self._note(name, called_at, linearizable.Event("missing"))
        else:
            _require_known(answer, name)


def _require_known(answer: Answer, asked: Any) -> None:
    """Refusals that users of this simulation expect: a conflict, a missing predecessor, no leader."""
    shadow.require(answer.status in {400, 500, 503}, f"unexpected answer {answer.status} {answer.body} to {asked}")
    text = answer.body["message"]
    expected = answer.status == 503 or "out of sequence" in text or "previous spec" in text
    shadow.require(expected, f"unexpected answer {answer.status} {text} to {asked}")


def _labelled(spec: dict[str, Any], value: str) -> dict[str, Any]:
    return {**spec, "Labels": {**spec.get("Labels", {}), "v": value}}
