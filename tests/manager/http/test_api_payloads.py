"""Secrets and configs over the API, as Docker's clients see them."""

import base64
import json
from typing import Any

from tests.manager.http import rigs


def body(name: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"Name": name, "Data": base64.b64encode(data).decode(), "Labels": {"team": "bees"}, **more}


def test_secrets_are_never_given_out() -> None:
    async def work(rig: rigs.Rig) -> None:
        made = await rig.ask("POST", "/secrets/create", body("sec1", b"hush-hush"))
        assert made.status == 201
        object_id = json.loads(made.body)["ID"]
        shown = await rig.get(f"/secrets/{object_id}")
        assert shown["Spec"] == {"Name": "sec1", "Labels": {"team": "bees"}}
        assert {"ID", "Version", "CreatedAt", "UpdatedAt"} < shown.keys()
        assert [row["ID"] for row in await rig.get("/secrets", filters={"name": ["sec"]})] == [object_id]
        assert await rig.get("/secrets", filters={"label": ["team=wasps"]}) == []
        changed = {**shown["Spec"], "Labels": {"team": "wasps"}}
        answer = await rig.ask("POST", f"/secrets/sec1/update?version={shown['Version']['Index']}", changed)
        assert answer.status == 200
        assert (await rig.get("/secrets", filters={"label": ["team=wasps"]}))[0]["ID"] == object_id
        for target in ("/secrets", "/secrets/sec1"):
            listed = await rig.ask("GET", target)
            assert b"Data" not in listed.body
        assert (await rig.ask("DELETE", "/secrets/sec1")).status == 204
        assert await rig.refused("GET", "/secrets/sec1") == (404, "secret sec1 not found")

    rigs.run(work)


def test_configs_are_shown_in_full_and_named_twice_refused() -> None:
    async def work(rig: rigs.Rig) -> None:
        made = await rig.ask("POST", "/configs/create", body("cfg1", b"a=1", Templating={"Name": "golang"}))
        object_id = json.loads(made.body)["ID"]
        shown = await rig.get("/configs/cfg1")
        assert shown["Spec"]["Data"] == base64.b64encode(b"a=1").decode()
        assert shown["Spec"]["Templating"]["Name"] == "golang"
        assert await rig.refused("POST", "/configs/create", body("cfg1", b"x")) == (
            409,
            "name conflicts with an existing object: config cfg1 already exists",
        )
        assert await rig.refused("POST", "/configs/create", body("cfg2", b"")) == (
            400,
            "config data must be larger than 0 and less than 1024000 bytes",
        )
        reference = {"ConfigID": object_id, "ConfigName": "cfg1", "File": {"Name": "/etc/a", "UID": "0", "Mode": 292}}
        await rig.create(rigs.spec("web", ContainerSpec={"Image": "nginx", "Configs": [reference]}))
        assert await rig.refused("DELETE", "/configs/cfg1") == (
            400,
            "config 'cfg1' is in use by the following service: web",
        )
        assert (await rig.ask("DELETE", "/services/web")).status == 200
        assert (await rig.ask("DELETE", f"/configs/{object_id[:10]}")).status == 204

    rigs.run(work)
