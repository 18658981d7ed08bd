"""A machine with its API, and what tests ask of it."""

import asyncio
import json
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from manager.http import api, messages
from tests.manager.http import fake_machine


def spec(name: str = "web", *, replicas: int = 2, **task: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {"Image": "nginx"}, **task},
        "Mode": {"Replicated": {"Replicas": replicas}},
    }


class Rig:
    """One machine and its API."""

    def __init__(self, *, seed: int = 1) -> None:
        self.machine = fake_machine.FakeMachine(seed=seed)
        self.api = api.Api(self.machine, leader_patience_s=0.2)

    @property
    def manager(self) -> fake_machine.FakeManager:
        assert self.machine.manager is not None
        return self.machine.manager

    async def ask(self, method: str, target: str, body: Any = None, **headers: str) -> fake_machine.Answer:
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.api.handle(messages.Request(method=method, target=target, headers=named, body=raw))
        return await fake_machine.read(response)

    async def get(self, target: str, **query: Any) -> Any:
        """The JSON of an answer that must be 200."""
        encoded = {key: value if isinstance(value, str) else json.dumps(value) for key, value in query.items()}
        answer = await self.ask("GET", target + ("?" + urllib.parse.urlencode(encoded) if encoded else ""))
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    async def create(self, body: dict[str, Any]) -> str:
        answer = await self.ask("POST", "/services/create", body)
        assert answer.status == 201, answer.body
        return str(json.loads(answer.body)["ID"])

    async def refused(self, method: str, target: str, body: Any = None) -> tuple[int, str]:
        answer = await self.ask(method, target, body)
        assert answer.status >= 400
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status, str(json.loads(answer.body)["message"])


def run(work: Callable[[Rig], Awaitable[None]], *, found: bool = True) -> None:
    async def main() -> None:
        rig = Rig()
        if found:
            await rig.machine.found()
        await work(rig)
        if rig.machine.manager is not None:
            rig.manager.store.verify()

    asyncio.run(main())
