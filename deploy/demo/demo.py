"""`make demo`: a whole cluster on this machine, shown deploying, healing, scaling, updating, draining and failing over.

Every step is checked against what the cluster says and, where there is something to ask, against the service itself.
Exit code 0 only if each step truly came about.
"""

import asyncio
import http
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import client_loop
import image
import own_engine
import screen

from skep import errors
from skep.cli import dev_cluster

STEP_TIMEOUT_S = 90.0
POLL_S = 0.1
REPOSITORY = "skep-demo"
WEB = str(pathlib.Path(__file__).with_name("web.py"))
PYTHON = str(pathlib.Path(sys.executable).resolve())  # in the image it lies where it lies here
ANSWERS = "import socket; socket.create_connection(('127.0.0.1', 80), 1).close()"
Tasks = list[dict[str, Any]]


class StepFailed(Exception):
    """A step did not come about."""


class Demo:
    """The story, step by step."""

    def __init__(self, cluster: dev_cluster.DevCluster, show: screen.Screen, *, runtime: str, engine: str) -> None:
        self.cluster = cluster
        self.show = show
        self.runtime = runtime
        self.engine = engine
        self.clock = asyncio.get_running_loop().time
        self.port = cluster.nodes[0]  # whom we ask; moved when we kill that one
        self.client = client_loop.ClientLoop(self.ports)

    # ---------------------------------------------------------------- asking

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request to the node we talk to; waits out an election."""
        deadline = self.clock() + STEP_TIMEOUT_S
        while True:
            try:
                return await self.cluster.call(self.port, method, path, body)
            except errors.Unavailable:
                if self.clock() > deadline:
                    raise
                await asyncio.sleep(POLL_S)

    async def tasks(self) -> Tasks:
        """All tasks of the service."""
        tasks: Tasks = await self.call("GET", "/tasks")
        return tasks

    async def running(self) -> Tasks:
        """Tasks that run and shall run."""
        return [t for t in await self.tasks() if t["Status"]["State"] == "running" and t["DesiredState"] == "running"]

    async def ports(self) -> list[int]:
        """Published ports of the running replicas."""
        return [
            int(port["PublishedPort"])
            for task in await self.running()
            for port in task["Status"].get("PortStatus", {}).get("Ports") or []
        ]

    async def until(self, what: str, condition: Callable[[Tasks], Awaitable[bool] | bool]) -> None:
        """Redraws until `condition` holds. Raises StepFailed with `what` after the deadline."""
        deadline = self.clock() + STEP_TIMEOUT_S
        while True:
            tasks = await self.tasks()
            self.show.tasks(await self.call("GET", "/nodes"), tasks)
            holds = condition(tasks)
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            if self.clock() > deadline:
                raise StepFailed(what)
            await asyncio.sleep(POLL_S)

    async def until_replicas(self, count: int, *, image_tag: str | None = None) -> None:
        """Waits until exactly `count` replicas run, each answering on its port."""

        async def there(tasks: Tasks) -> bool:
            wanted = [t for t in tasks if t["DesiredState"] in {"running", "ready"}]
            up = [t for t in wanted if t["Status"]["State"] == "running" and t["DesiredState"] == "running"]
            if len(up) != count or len(wanted) != count:
                return False
            if image_tag is not None and any(self._version(t) != image_tag for t in up):
                return False
            ports = await self.ports()
            if len(ports) != count:
                return False
            for port in ports:
                try:
                    version = await client_loop.ask(port)
                except (OSError, TimeoutError):
                    return False
                if image_tag is not None and version != image_tag:
                    return False
            return True

        await self.until(f"{count} replicas answering", there)

    @staticmethod
    def _version(task: dict[str, Any]) -> str:
        env = dict(line.split("=", 1) for line in task["Spec"]["ContainerSpec"].get("Env") or [])
        return env.get("APP_VERSION", "1")

    # ---------------------------------------------------------------- changing

    def spec(self, *, replicas: int, version: str) -> dict[str, Any]:
        """The service as the API takes it."""
        container: dict[str, Any] = {"Image": f"{REPOSITORY}:{version}", "Env": [f"APP_VERSION={version}"]}
        test = ["CMD", PYTHON, "-I", "-c", ANSWERS]
        if self.runtime == "process":
            container.update(Image="python", Command=[sys.executable, WEB])
            test = ["HTTP", "/", "80"]
        # RUNNING means answering: without a check a start-first update ends old replicas while new ones still start.
        container["Healthcheck"] = {
            "Test": test, "Interval": 300_000_000, "Timeout": 2_000_000_000, "Retries": 10,
        }  # fmt: skip
        container["StopGracePeriod"] = 5_000_000_000
        return {
            "Name": "web",
            "TaskTemplate": {"ContainerSpec": container, "RestartPolicy": {"Condition": "any", "Delay": 500_000_000}},
            "Mode": {"Replicated": {"Replicas": replicas}},
            "UpdateConfig": {"Parallelism": 2, "Order": "start-first", "Monitor": 1_000_000_000,
                             "FailureAction": "rollback"},
            "EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishMode": "host"}]},
        }  # fmt: skip

    async def update(self, spec: dict[str, Any]) -> None:
        """Replaces the service's specification."""
        service = await self.call("GET", "/services/web")
        await self.call("POST", f"/services/web/update?version={service['Version']['Index']}", spec)

    # ---------------------------------------------------------------- the story

    async def deploy(self) -> None:
        """Three managers, one service."""
        self.show.title("Deploy a replicated HTTP service: 4 replicas")
        await self.call("POST", "/services/create", self.spec(replicas=4, version="1"))
        await self.until_replicas(4)
        self.show.passed(f"4/4 replicas run and answer on ports {await self.ports()}")

    async def heal(self) -> None:
        """A replica killed from outside is replaced."""
        victim = (await self.running())[0]
        self.show.title(f"Kill replica web.{victim['Slot']} from outside")
        status = victim["Status"]["ContainerStatus"]
        if self.runtime == "docker":
            code, answer = await asyncio.to_thread(
                image.call, self.engine, "POST", f"/containers/{status['ContainerID']}/kill"
            )
            if code != http.HTTPStatus.NO_CONTENT:
                raise StepFailed(f"docker kill: {answer!r}")
        else:
            os.kill(int(status["PID"]), signal.SIGKILL)

        def noticed(tasks: Tasks) -> bool:
            return any(t["ID"] == victim["ID"] and t["Status"]["State"] == "failed" for t in tasks)

        await self.until("the death noticed", noticed)
        await self.until_replicas(4)
        self.show.passed("it was seen to fail and replaced: 4/4 again")

    async def scale(self) -> None:
        """More replicas."""
        self.show.title("Scale to 6 replicas")
        await self.update(self.spec(replicas=6, version="1"))
        await self.until_replicas(6)
        self.show.passed("6/6 replicas run and answer")

    async def roll(self) -> None:
        """A new version while a client keeps asking."""
        self.show.title("Rolling update to version 2, start-first, two at a time, while a client keeps asking")
        await self.client.start()
        await self.update(self.spec(replicas=6, version="2"))
        await self.until_replicas(6, image_tag="2")

        async def completed(_: Tasks) -> bool:
            service = await self.call("GET", "/services/web")
            state = service.get("UpdateStatus", {}).get("State")
            if state in {"paused", "rollback_started", "rollback_paused", "rollback_completed"}:
                raise StepFailed(f"the update ended as {state}: {service['UpdateStatus'].get('Message')}")
            return bool(state == "completed")

        await self.until("update completed", completed)
        count = await self.client.stop()
        self.show.say(f"requests: {count}")
        if count.failed or not count.versions["1"] or not count.versions["2"]:
            raise StepFailed(f"the client saw failures, or only one version: {count}")
        self.show.passed("every request was answered, first by version 1, then by version 2")

    async def drain(self) -> None:
        """A machine is taken out for maintenance."""
        nodes = await self.call("GET", "/nodes")
        node = next(n for n in nodes if not n.get("ManagerStatus", {}).get("Leader"))
        name = node["Description"]["Hostname"]
        self.show.title(f"Drain {name}: its tasks move away")
        await self.set_availability(node["ID"], "drain")

        async def moved(tasks: Tasks) -> bool:
            there = [t for t in tasks if t.get("NodeID") == node["ID"] and t["Status"]["State"] == "running"]
            return not there

        await self.until("node emptied", moved)
        await self.until_replicas(6, image_tag="2")
        self.show.passed(f"{name} is empty, 6/6 replicas run elsewhere")
        await self.set_availability(node["ID"], "active")

    async def set_availability(self, node_id: str, availability: str) -> None:
        """As `skep node update --availability` does."""
        node = await self.call("GET", f"/nodes/{node_id}")
        await self.call(
            "POST", f"/nodes/{node_id}/update?version={node['Version']['Index']}",
            {**node["Spec"], "Availability": availability},
        )  # fmt: skip

    async def fail_over(self) -> None:
        """The leader dies without a word."""
        nodes = await self.call("GET", "/nodes")
        leader = next(n for n in nodes if n.get("ManagerStatus", {}).get("Leader"))
        name = leader["Description"]["Hostname"]
        before = {t["ID"] for t in await self.running()}
        self.show.title(f"SIGKILL the leader, {name}")
        pid = self.cluster.pid(name)
        if pid is None:
            raise StepFailed(f"skepd of {name} does not run")
        self.port = next(node for node in self.cluster.nodes if node.name != name)
        began = self.clock()
        os.kill(pid, signal.SIGKILL)
        while True:
            nodes = await self.call("GET", "/nodes")
            leaders = [n for n in nodes if n.get("ManagerStatus", {}).get("Leader") and n["ID"] != leader["ID"]]
            if leaders:
                break
            if self.clock() - began > STEP_TIMEOUT_S:
                raise StepFailed("no new leader")
            await asyncio.sleep(POLL_S)
        self.show.say(f"new leader after {self.clock() - began:.2f} s: {leaders[0]['Description']['Hostname']}")
        await self.update(self.spec(replicas=7, version="2"))
        self.show.say(f"a further change (7 replicas) accepted {self.clock() - began:.2f} s after the kill")
        await self.until_replicas(7, image_tag="2")
        survivors = before & {t["ID"] for t in await self.running()}
        self.show.passed(f"7/7 run; {len(survivors)} of {len(before)} replicas lived through it untouched")

    async def clean_up(self) -> None:
        """Removes the service; nothing must be left."""
        self.show.title("Remove the service")
        await self.call("DELETE", "/services/web")
        await self.until("all tasks gone", lambda tasks: not tasks)
        self.show.passed("no task is left")


async def run(runtime: str, engine: str) -> None:
    """Starts a cluster, tells the story, and cleans up whatever happens."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="skep-demo-"))
    with screen.Screen() as show:
        nodes, _ = dev_cluster.DevCluster.layout(directory, managers=3, agents=0)
        cluster = dev_cluster.DevCluster(
            directory, nodes, runtime=runtime, docker_socket=engine or "/nonexistent", say=show.say
        )
        try:
            if runtime == "docker":
                show.title("Build the image out of this machine's own Python")
                await asyncio.to_thread(image.build, engine, REPOSITORY, ["1", "2"])
                show.passed(f"{REPOSITORY}:1 and {REPOSITORY}:2")
            show.title(f"Start three managers that also run tasks ({runtime} runtime)")
            await cluster.start(fresh=True, init={"Spec": {"Dispatcher": {"HeartbeatPeriod": 1_000_000_000}}})
            await cluster.ready()
            show.passed("3 nodes ready")
            demo = Demo(cluster, show, runtime=runtime, engine=engine)
            for step in (demo.deploy, demo.heal, demo.scale, demo.roll, demo.drain, demo.fail_over, demo.clean_up):
                await step()
        finally:
            await cluster.stop(keep=False)
            if runtime == "docker":
                await asyncio.to_thread(image.remove, engine, REPOSITORY, ["1", "2"])


def main() -> int:
    """Picks the runtime and runs the demo; 0 when every step came about."""
    wish = os.environ.get("DEMO_RUNTIME", "auto")
    if wish not in {"auto", "docker", "process"}:
        sys.stderr.write(f"DEMO_RUNTIME={wish}: take docker or process\n")
        return 1
    try:
        with own_engine.available(wish) as engine:
            asyncio.run(run("docker" if engine else "process", engine or ""))
    except (StepFailed, errors.SkepError, RuntimeError) as error:
        sys.stderr.write(f"\ndemo failed: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write("\ndemo succeeded: every step came about, and nothing is left behind\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
