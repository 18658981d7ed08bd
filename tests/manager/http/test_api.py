"""The API as its clients see it, without a socket: shapes, statuses, texts, headers, filters."""

import base64
import json
from typing import Any

import pytest

from manager.http import render
from manager.store import ops
from skep import jsonmap, pb, stamps
from tests.manager.http import rigs

HOST_PORT = {"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}


# -------------------------------------------------------------------- protocol


def test_ping_and_headers() -> None:
    async def work(rig: rigs.Rig) -> None:
        for method in ("GET", "HEAD"):
            answer = await rig.ask(method, "/_ping")
            assert (answer.status, answer.body) == (200, b"OK")
            assert answer.headers["Api-Version"] == "1.41"
            assert answer.headers["Ostype"] == "linux"
            assert answer.headers["Swarm"] == "active/manager"
        assert (await rig.ask("OPTIONS", "/anything")).status == 200

    rigs.run(work)


REFUSALS: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/nonsense", None, 404, "page not found"),
    ("PUT", "/services", None, 404, "page not found"),
    ("GET", "/v9.99/services", None, 400, "client version 9.99 is too new. Maximum supported API version is 1.41"),
    ("GET", "/v1.12/services", None, 400, "client version 1.12 is too old. Minimum supported API version is 1.24, "
     "please upgrade your client to a newer version"),
    ("GET", "/services/nope", None, 404, "service nope not found"),
    ("GET", "/tasks/nope", None, 404, "task nope not found"),
    ("GET", "/nodes/nope", None, 404, "node nope not found"),
    ("GET", "/nodes/self", None, 404, "node self not found"),
    ("GET", "/networks/nope?scope=swarm", None, 404, "network nope not found"),
    ("GET", "/secrets/nope", None, 404, "secret nope not found"),
    ("GET", "/images/a/b:c/json", None, 404, "No such image: a/b:c"),
    ("GET", "/containers/x/json", None, 404, "No such container: x"),
    ("DELETE", "/services/nope", None, 404, "service nope not found"),
    ("POST", "/services/create", {}, 400, "mismatched Runtime and *Spec fields"),
    ("POST", "/services/create", None, 400, "mismatched Runtime and *Spec fields"),
    ("POST", "/services/create", b"{", 400, "invalid JSON: "),
    ("POST", "/services/create", [], 400, "expected an object, got a list"),
    ("POST", "/services/create", rigs.spec(replicas=-1), 400,
     "Mode.Replicated.Replicas: expected a non-negative integer, got -1"),
    ("POST", "/services/create", rigs.spec("a b"), 400, "name must be valid as a DNS name component"),
    ("POST", "/services/create", rigs.spec(Placement={"Constraints": ["x"]}), 400,
     "constraint expected one operator from ==, !="),
    ("POST", "/services/create", {**rigs.spec(), "Mode": {"GlobalJob": {}}, "UpdateConfig": {"Parallelism": 2}}, 400,
     "Jobs may not have an update config"),
    ("POST", "/services/create", {**rigs.spec(), "EndpointSpec": {"Ports": [{"TargetPort": 80}]}}, 501,
     "this version of skep has no routing mesh"),
    ("POST", "/services/web/update", rigs.spec(), 400, "invalid service version '': "),
    ("POST", "/services/web/update?version=-1", rigs.spec(), 400, "invalid service version '-1': "),
    ("POST", "/services/web/update?version=1", rigs.spec(), 404, "service web not found"),
    ("POST", "/networks/create", {"Name": "n"}, 501, "this version of skep does not implement networks"),
    ("GET", '/services?filters={"foo":["a"]}', None, 400, "invalid filter 'foo'"),
    ("GET", '/services?filters={"name":"a"}', None, 400, "invalid filter 'name': expected a list of values"),
    ("GET", "/services?filters=x", None, 400, "invalid filter: not JSON"),
    ("GET", '/tasks?filters={"desired-state":["foo"]}', None, 400, "Invalid desired-state filter: 'foo'"),
    ("GET", '/tasks?filters={"service":["nope"]}', None, 404, "service nope not found"),
    ("POST", "/nodes/n1/update?version=1", {"Availability": "drain"}, 400, 'invalid Role: ""'),
    ("POST", "/nodes/n1/update?version=1", {"Availability": "sleep", "Role": "worker"}, 400,
     "Availability: expected one of active, pause, drain, got 'sleep'"),
    ("POST", "/nodes/n1/update?version=999", {"Availability": "drain", "Role": "worker"}, 500,
     "update out of sequence"),
    ("POST", "/swarm/init", {}, 503, "This node is already part of a swarm."),
    ("POST", "/swarm/leave", None, 503, "You are attempting to leave the swarm on a node that is participating as a "
     "manager. Removing the last manager erases all current state of the swarm. Use `--force`"),
    ("POST", "/swarm/unlock", {"UnlockKey": ""}, 409, "swarm is not locked"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "text"), REFUSALS, ids=[f"{r[0]} {r[1]} {r[4][:20]}" for r in REFUSALS]
)
def test_refusals(method: str, target: str, body: Any, status: int, text: str) -> None:
    async def work(rig: rigs.Rig) -> None:
        index = rig.manager.store.index
        found = await rig.refused(method, target, body)
        assert found[0] == status, found
        assert found[1].startswith(text), found
        assert rig.manager.store.index == index

    rigs.run(work)


def test_other_content_types_are_refused() -> None:
    async def work(rig: rigs.Rig) -> None:
        answer = await rig.ask("POST", "/services/create", rigs.spec(), content_type="text/plain")
        assert answer.status == 400
        assert b"unsupported Content-Type header (text/plain): must be 'application/json'" in answer.body
        answer = await rig.ask("POST", "/services/create", rigs.spec(), content_type="application/json; charset=utf-8")
        assert answer.status == 201

    rigs.run(work)


def test_an_unexpected_error_is_500_and_names_no_details() -> None:
    async def work(rig: rigs.Rig) -> None:
        rig.manager.standing = None  # type: ignore[assignment]
        status, message = await rig.refused("GET", "/nodes/n1")
        assert (status, message) == (500, "internal error (AttributeError); the log says more")

    rigs.run(work)


# -------------------------------------------------------------------- outside a cluster, and on workers


def test_a_machine_in_no_cluster() -> None:
    async def work(rig: rigs.Rig) -> None:
        for target in ("/services", "/nodes", "/tasks", "/swarm", "/skep/v1/leader"):
            status, message = await rig.refused("GET", target)
            assert status == 503
            assert message.startswith('This node is not a swarm manager. Use "docker swarm init" or')
        info = await rig.get("/info")
        assert info["Swarm"]["LocalNodeState"] == "inactive"
        assert info["Swarm"]["ControlAvailable"] is False
        assert (await rig.refused("POST", "/swarm/leave"))[1] == "This node is not part of a swarm"
        rig.machine.state = "active"
        status, message = await rig.refused("GET", "/services")
        assert status == 503
        assert message.startswith("This node is not a swarm manager. Worker nodes can't be used")
        rig.machine.state = "pending"
        assert (await rig.refused("GET", "/services"))[1].endswith("has trouble connecting to the cluster.")

    rigs.run(work, found=False)


def test_init_and_join() -> None:
    async def work(rig: rigs.Rig) -> None:
        for body, text in (
            ({"RemoteAddrs": []}, "at least 1 RemoteAddr is required to join"),
            ({"RemoteAddrs": ["a:1"]}, "JoinToken: a join token is required"),
            ({"RemoteAddrs": "a", "JoinToken": "t"}, "RemoteAddrs: expected a list"),
            ({"RemoteAddrs": ["a"], "JoinToken": "t", "ListenAddr": "1.2.3.4:99999"}, "ListenAddr: invalid port"),
            ({"RemoteAddrs": ["a"], "JoinToken": "t", "Availability": "x"}, 'invalid Availability: "x"'),
        ):
            status, message = await rig.refused("POST", "/swarm/join", body)
            assert status == 400
            assert message.startswith(text)
        answer = await rig.ask(
            "POST", "/swarm/join", {"RemoteAddrs": ["h:1"], "JoinToken": "t", "ListenAddr": "[::]:2377"}
        )
        assert (answer.status, answer.body) == (200, b"")
        assert rig.machine.joins[0].listen_addr == "[::]:2377"
        assert (await rig.refused("POST", "/swarm/init", {"AutoLockManagers": True}))[0] == 501
        answer = await rig.ask(
            "POST",
            "/swarm/init",
            {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "eth0", "Availability": "drain", "DefaultAddrPool": [],
             "Spec": {"Orchestration": {"TaskHistoryRetentionLimit": 3}, "Labels": None}},
        )  # fmt: skip
        assert json.loads(answer.body) == rig.manager.node_id
        (init,) = rig.machine.inits
        assert init.availability == pb.NODE_AVAILABILITY_DRAIN
        assert init.spec.orchestration.task_history_retention_limit == 3
        assert init.spec.name == "default"
        assert init.spec.dispatcher.heartbeat_period == 5_000_000_000
        assert (await rig.ask("POST", "/swarm/leave?force=True")).status == 200
        assert rig.machine.leaves == [True]

    rigs.run(work, found=False)


# -------------------------------------------------------------------- swarm, info, nodes


def test_swarm_shows_tokens_and_never_keys() -> None:
    async def work(rig: rigs.Rig) -> None:
        swarm = await rig.get("/v1.41/swarm")
        assert set(swarm["JoinTokens"]) == {"Worker", "Manager"}
        assert swarm["TLSInfo"]["TrustRoot"].startswith("-----BEGIN CERTIFICATE-----")
        base64.b64decode(swarm["TLSInfo"]["CertIssuerSubject"], validate=True)
        assert (swarm["DefaultAddrPool"], swarm["SubnetSize"], swarm["DataPathPort"]) == (["10.0.0.0/8"], 24, 4789)
        assert swarm["Spec"]["Orchestration"] == {"TaskHistoryRetentionLimit": 5}
        assert "PRIVATE KEY" not in json.dumps(swarm)
        info = await rig.get("/info")
        assert "JoinTokens" not in info["Swarm"]["Cluster"]
        assert (info["Swarm"]["Nodes"], info["Swarm"]["Managers"]) == (3, 1)
        assert info["Swarm"]["NodeID"] == rig.manager.node_id
        assert (info["NCPU"], info["Name"]) == (4, "n0")
        version = await rig.get("/version")
        assert version["ApiVersion"] == "1.41"
        assert version["Components"][0]["Name"] == "Engine"
        target = f"/swarm/update?version={swarm['Version']['Index']}&rotateWorkerToken=true&rotateManagerToken=False"
        assert (await rig.ask("POST", target, swarm["Spec"])).status == 200
        rotated = await rig.get("/swarm")
        assert rotated["JoinTokens"]["Worker"] != swarm["JoinTokens"]["Worker"]
        assert rotated["JoinTokens"]["Manager"] == swarm["JoinTokens"]["Manager"]
        assert (await rig.refused("POST", target, swarm["Spec"]))[1] == "update out of sequence"

    rigs.run(work)


def test_what_is_wrong_with_a_node_is_shown() -> None:
    row = pb.Node(id="n1", status=pb.NodeStatus(state=pb.NODE_STATE_READY))
    row.description.disk.CopyFrom(pb.DiskUsage(path="/var/lib/docker", total_bytes=100, free_bytes=4))
    row.description.host_ports.extend([22, 80])
    assert render.node(row, {})["Description"]["Conditions"] == []
    row.description.conditions.add(kind="disk", summary="low on disk", message="4 of 100")
    shown = render.node(row, {})
    assert shown["Description"]["Conditions"] == [{"Kind": "disk", "Summary": "low on disk", "Message": "4 of 100"}]
    assert shown["Description"]["Disk"] == {"Path": "/var/lib/docker", "TotalBytes": 100, "FreeBytes": 4}
    assert shown["Description"]["HostPorts"] == [22, 80]
    assert shown["Status"] == {"State": "ready", "Message": "low on disk: 4 of 100"}
    row.description.conditions.add(kind="engine", summary="without container engine", message="it hangs")
    assert render.node(row, {})["Status"]["State"] == "disconnected"


def test_nodes() -> None:
    async def work(rig: rigs.Rig) -> None:
        nodes = {node["Description"]["Hostname"]: node for node in await rig.get("/nodes")}
        assert nodes["n0"]["ManagerStatus"] == {"Leader": True, "Reachability": "reachable", "Addr": "127.0.0.1:2377"}
        assert "ManagerStatus" not in nodes["n1"]
        assert nodes["n1"]["Spec"] == {"Labels": {}, "Role": "worker", "Availability": "active"}
        assert nodes["n1"]["Status"] == {"State": "ready", "Addr": "127.0.0.1"}
        version = nodes["n1"]["Version"]["Index"]
        wished = {"Availability": "drain", "Role": "worker", "Labels": {"disk": "ssd"}}
        assert (await rig.ask("POST", f"/nodes/n1/update?version={version}", wished)).status == 200
        assert (await rig.get("/nodes/n1"))["Spec"] == wished
        for wanted, found in (
            ({"name": ["n"]}, 3),
            ({"name": {"n1": True, "n2": True}}, 2),
            ({"role": ["manager"]}, 1),
            ({"node.label": ["disk"]}, 1),
            ({"node.label": ["disk=hdd"]}, 0),
            ({"id": [nodes["n2"]["ID"][:12]]}, 1),
            ({"membership": ["accepted"], "name": ["n0"]}, 1),
        ):
            assert len(await rig.get("/nodes", filters=wanted)) == found, wanted
        assert (await rig.ask("DELETE", "/nodes/n1?force=1")).status == 200
        assert (await rig.refused("GET", "/nodes/n1"))[0] == 404
        leader = await rig.get("/skep/v1/leader")
        assert leader == {"NodeID": rig.manager.node_id, "Addr": "127.0.0.1:2377"}

    rigs.run(work)


# -------------------------------------------------------------------- services and tasks


def test_a_service_from_creation_to_removal() -> None:
    async def work(rig: rigs.Rig) -> None:
        body = {**rigs.spec(), "EndpointSpec": {"Ports": [HOST_PORT]}}
        service_id = await rig.create(body)
        shown = await rig.get(f"/services/{service_id}")
        port = {"Protocol": "tcp", **HOST_PORT}
        assert shown["Endpoint"] == {"Spec": {"Mode": "vip", "Ports": [port]}, "Ports": [port]}
        assert shown["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}
        assert shown["Spec"]["Labels"] == {}
        for absent in ("ServiceStatus", "PreviousSpec", "UpdateStatus"):
            assert absent not in shown
        assert "UpdateConfig" not in shown["Spec"]
        assert (await rig.get("/services/web", insertDefaults="True"))["Spec"]["UpdateConfig"]["Parallelism"] == 1
        await rig.machine.settle()
        (listed,) = await rig.get("/services", status="true")
        assert listed["ServiceStatus"] == {"RunningTasks": 2, "DesiredTasks": 2, "CompletedTasks": 0}
        version = listed["Version"]["Index"]
        changed = rigs.spec()
        changed["TaskTemplate"]["ContainerSpec"]["Image"] = "nginx:2"
        answer = await rig.ask("POST", f"/services/web/update?version={version}&rollback=none", changed)
        assert json.loads(answer.body) == {"Warnings": None}
        shown = await rig.get("/services/web")
        assert shown["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "nginx"
        assert shown["UpdateStatus"]["State"] == "updating"
        assert shown["UpdateStatus"]["Message"] == "update in progress"
        assert shown["Endpoint"] == {"Spec": {}}
        answer = await rig.ask("POST", f"/services/web/update?version={shown['Version']['Index']}&rollback=previous")
        assert answer.status == 200
        shown = await rig.get("/services/web")
        assert shown["UpdateStatus"]["Message"] == "manually requested rollback"
        assert shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "nginx"
        revisions = await rig.get("/skep/v1/services/web/revisions")
        assert [(r["Number"], r["Current"], r["Previous"]) for r in revisions] == [(1, True, False), (2, False, True)]
        answer = await rig.ask("DELETE", "/services/web")
        assert (answer.status, answer.body) == (200, b"")
        assert await rig.get("/services") == []

    rigs.run(work)


def test_modes_are_spelled_out_and_names_invented() -> None:
    async def work(rig: rigs.Rig) -> None:
        service_id = await rig.create({"TaskTemplate": {"ContainerSpec": {"Image": "nginx"}}, "Future": 1})
        shown = await rig.get(f"/services/{service_id}")
        assert shown["Spec"]["Mode"] == {"Replicated": {"Replicas": 1}}
        assert shown["Spec"]["Name"]

    rigs.run(work)


def test_the_registry_password_never_comes_back() -> None:
    async def work(rig: rigs.Rig) -> None:
        answer = await rig.ask("POST", "/services/create", rigs.spec(), x_registry_auth="c2VjcmV0")
        assert answer.status == 201
        await rig.machine.settle()
        for target in ("/services", "/tasks", "/skep/v1/services/web/revisions"):
            assert "c2VjcmV0" not in json.dumps(await rig.get(target))

    rigs.run(work)


def test_service_filters() -> None:
    async def work(rig: rigs.Rig) -> None:
        labelled = {**rigs.spec("api"), "Labels": {"tier": "back", "x": ""}}
        service_id = await rig.create(labelled)
        await rig.create(rigs.spec("apiary"))
        await rig.create(rigs.spec("web"))
        for wanted, found in (
            ({}, 3),
            ({"name": ["api"]}, 2),
            ({"name": {"api": True, "w": True}}, 3),
            ({"name": {"api": False}}, 3),
            ({"id": [service_id[:10]]}, 1),
            ({"label": ["tier"]}, 1),
            ({"label": ["tier=back", "x"]}, 1),
            ({"label": ["tier=front"]}, 0),
            ({"mode": ["replicated"]}, 3),
            ({"mode": ["global"]}, 0),
            ({"mode": ["nonsense"]}, 0),
            ({"name": ["api"], "label": ["tier"]}, 1),
        ):
            assert len(await rig.get("/services", filters=wanted)) == found, wanted

    rigs.run(work)


def test_a_crash_loop_shows_as_such() -> None:
    """While the next attempt waits, its agent says "prepared" and the one before says what it died of, once."""

    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec(replicas=1))
        await rig.machine.settle()
        shown: list[str | None] = []
        for failures in range(4):
            stored = next(iter(rig.manager.store.view().tasks))
            waiting = pb.Task()
            waiting.CopyFrom(stored)
            waiting.id, waiting.failures = f"t{failures}", failures
            waiting.status.state, waiting.desired_state = pb.TASK_STATE_READY, pb.TASK_STATE_READY
            waiting.not_before.CopyFrom(stamps.stamp(rig.machine.clock.now() + 40.0))
            await rig.manager.committer.commit([ops.create(waiting)])
            shown.append((await rig.get(f"/tasks/t{failures}"))["Status"].get("Err"))
        assert shown == [None, None] + [f"failed {n} times in a row, starts again in 40 s" for n in (2, 3)]

    rigs.run(work)


def test_tasks() -> None:
    async def work(rig: rigs.Rig) -> None:
        service_id = await rig.create({**rigs.spec(replicas=3), "Labels": {"com.docker.stack.namespace": "st"}})
        await rig.create(rigs.spec("other", replicas=1))
        await rig.machine.settle()
        tasks = await rig.get("/tasks", filters={"service": {"web": True}})
        assert sorted(task["Slot"] for task in tasks) == [1, 2, 3]
        task = tasks[0]
        assert task["Spec"]["ContainerSpec"]["Image"] == "nginx"
        assert (task["ServiceID"], task["DesiredState"], task["Labels"]) == (service_id, "running", {})
        assert task["Status"]["State"] == "running"
        assert task["Status"]["PortStatus"] == {}
        assert task["Status"]["ContainerStatus"] == {"ContainerID": "c" + task["ID"], "ExitCode": 0}
        jsonmap.parse_time(task["CreatedAt"])
        assert await rig.get(f"/tasks/{task['ID'][:12]}") == task
        assert await rig.get(f"/tasks/web.{task['Slot']}.{task['ID']}") == task
        node = next(n for n in await rig.get("/nodes") if n["ID"] == task["NodeID"])["Description"]["Hostname"]
        here = sum(t["NodeID"] == task["NodeID"] for t in await rig.get("/tasks"))
        for wanted, found in (
            ({"node": [node]}, here),
            ({"desired-state": ["running"]}, 4),
            ({"desired-state": ["shutdown", "remove"]}, 0),
            ({"name": ["web.1"]}, 1),
            ({"label": ["com.docker.stack.namespace=st"]}, 3),
            ({"service": ["web"], "_up-to-date": ["true"]}, 3),
            ({"service": ["web"], "_up-to-date": {"true": True}, "id": [task["ID"]]}, 1),
        ):
            assert len(await rig.get("/tasks", filters=wanted)) == found, wanted

    rigs.run(work)


def test_up_to_date_means_what_the_service_asks_for_now() -> None:
    async def work(rig: rigs.Rig) -> None:
        await rig.create(rigs.spec())
        await rig.machine.settle()
        current = {"service": ["web"], "_up-to-date": ["true"], "desired-state": ["running"]}

        async def update(body: dict[str, Any]) -> None:
            version = (await rig.get("/services/web"))["Version"]["Index"]
            assert (await rig.ask("POST", f"/services/web/update?version={version}", body)).status == 200

        await update(rigs.spec(replicas=4))
        assert len(await rig.get("/tasks", filters=current)) == 2
        await update(rigs.spec(replicas=4, ForceUpdate=1))
        assert await rig.get("/tasks", filters=current) == []
        await rig.machine.settle()
        assert len(await rig.get("/tasks", filters=current)) == 4
        assert (await rig.get("/services/web"))["UpdateStatus"]["State"] == "completed"

    rigs.run(work)


def test_empty_lists_of_what_is_not_there() -> None:
    async def work(rig: rigs.Rig) -> None:
        for target in ("/containers/json", "/images/json", "/networks", "/secrets", "/configs", "/plugins"):
            assert await rig.get(target) == []
        assert await rig.get("/volumes") == {"Volumes": [], "Warnings": None}
        answer = await rig.ask("GET", "/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain")

    rigs.run(work)
