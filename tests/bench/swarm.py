"""The managers under the load of many agents: real skepd managers, agents over gRPC and mutual TLS, no containers.

Arguments: the parts to run, all but the variants if none are given (`python -m tests.bench swarm run-100 update`).
Agents get their certificates by the real join call. Beside each figure stands SwarmKit's on the same work (Go,
in-process agents with a no-op executor over gRPC and TLS, log on disk), measured before on a machine of the same kind:
as a ratio, its range in brackets. There the agents' work is in the managers' CPU seconds; here it is not, but it takes
the same cores.
"""

import asyncio
import http.client
import json
import socket
import statistics
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping

from tests.bench import _swarm

IDLE_SETTLE_S = 20.0
IDLE_S = 60.0
TASKS_PER_SERVICE = 1000  # of an idle cluster
PART_TIMEOUT_S = 1800.0
STORM_AGENTS = 1000
Range = tuple[float, float]


def say(figure: str, value: float, unit: str, *, swarmkit: Range | None = None) -> None:
    """One figure, and its ratio to SwarmKit's range."""
    print(f"{figure}: {value:.3f} {unit}", flush=True)
    if swarmkit is not None:  # of a rate the higher is the better, of everything else the lower
        low, high = swarmkit
        ratios = sorted([value / low, value / high])
        print(f"{figure}.vs_swarmkit: {ratios[0]:.2f}-{ratios[1]:.2f} times ({low}-{high} {unit})", flush=True)


class Meter:
    """What a piece of work took: wall time, CPU seconds, and how much memory processes have had at most so far."""

    def __init__(self, swarm: _swarm.Swarm) -> None:
        self._swarm = swarm
        self._began = time.monotonic()
        self._managers = swarm.managers()
        self._agents = swarm.agents()

    def wall_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def manager_cpu_s(self) -> float:
        """CPU seconds of all managers since the start."""
        return _cpu_s(self._managers, self._swarm.managers())

    def agents_cpu_s(self) -> float:
        """CPU seconds of all agents since the start; of those that are still there."""
        return _cpu_s(self._agents, self._swarm.agents())

    async def costs(self, name: str, *, agents: int, cpu: Range | None = None, memory: Range | None = None) -> None:
        """Says what managers, the leader among them, and each agent took; SwarmKit's are of all managers together."""
        managers = self._swarm.managers()
        say(f"{name}_cpu_s", _cpu_s(self._managers, managers), "s", swarmkit=cpu)
        say(f"{name}_memory_mb", sum(each.peak_mb for each in managers.values()), "MB", swarmkit=memory)
        crowds = self._swarm.agents()
        say(f"{name}_agents_cpu_s", _cpu_s(self._agents, crowds), "s")
        say(f"{name}_agent_memory_mb", sum(each.peak_mb for each in crowds.values()) / agents, "MB")
        if len(managers) > 1:  # else it is the only one
            leader = await self._swarm.leading()
            say(f"{name}_leader_cpu_s", _cpu_s(self._managers, {leader: managers[leader]}), "s")
            say(f"{name}_leader_memory_mb", managers[leader].peak_mb, "MB")


def _cpu_s(before: Mapping[int, _swarm.Usage], after: Mapping[int, _swarm.Usage]) -> float:
    return sum(each.cpu_s - (before[pid].cpu_s if pid in before else 0.0) for pid, each in after.items())


# ------------------------------------------------------------------ create -> all RUNNING


async def _run(swarm: _swarm.Swarm, agents: int, tasks: int, managers: int, **swarmkit: Range) -> None:
    name = f"swarm.run.{agents}x{tasks}.{managers}m"
    meter = Meter(swarm)
    await swarm.create("web", tasks)
    await swarm.running("web", tasks)
    say(f"{name}_s", meter.wall_s(), "s", swarmkit=swarmkit.get("wall"))
    await meter.costs(name, agents=agents, cpu=swarmkit.get("cpu"), memory=swarmkit.get("memory"))


async def run_100() -> None:
    """100 agents: 1,000 tasks, then 5,000, on one manager."""
    async with _swarm.Swarm.opened(managers=1, agents=100) as swarm:
        await _run(swarm, 100, 1000, 1, wall=(0.87, 1.18), cpu=(0.5, 0.8), memory=(112, 112))
        await swarm.remove("web")
        await _run(swarm, 100, 5000, 1, wall=(3.9, 4.4), cpu=(4.0, 4.4), memory=(242, 242))


async def run_100_3m() -> None:
    """100 agents and 1,000 tasks on three managers."""
    async with _swarm.Swarm.opened(managers=3, agents=100) as swarm:
        await _run(swarm, 100, 1000, 3, wall=(1.27, 1.49), cpu=(1.3, 1.6), memory=(277, 277))


async def run_1000() -> None:
    """1,000 agents and 10,000 tasks on one manager."""
    async with _swarm.Swarm.opened(managers=1, agents=1000) as swarm:
        await _run(swarm, 1000, 10_000, 1, wall=(17.7, 20.7), cpu=(17.8, 20.5), memory=(614, 614))


async def run_1000_3m() -> None:
    """1,000 agents and 10,000 tasks on three managers."""
    async with _swarm.Swarm.opened(managers=3, agents=1000) as swarm:
        await _run(swarm, 1000, 10_000, 3)


# ------------------------------------------------------------------ changes


async def _update(managers: int, swarmkit: Range, suffix: str) -> None:
    async with _swarm.Swarm.opened(managers=managers, agents=100) as swarm:
        await swarm.create("web", 1000)
        await swarm.running("web", 1000)
        meter = Meter(swarm)
        service = await swarm.service("web")
        wanted = _swarm.spec("web", replicas=1000, version=2, parallelism=100)
        await swarm.call("POST", f"/services/web/update?version={service['Version']['Index']}", wanted)

        async def completed() -> bool:
            found = await swarm.call("GET", "/services/web")
            return bool(found.get("UpdateStatus", {}).get("State") == "completed")

        await swarm.until(completed)
        say(f"swarm.update.1000{suffix}_s", meter.wall_s(), "s")
        await meter.costs(f"swarm.update.1000{suffix}", agents=100, cpu=swarmkit)


async def update() -> None:
    """Rolling update of 1,000 tasks with parallelism 100 on 100 agents, one manager."""
    await _update(1, (4.3, 9.5), "")


async def update_3m() -> None:
    """The same on three managers."""
    await _update(3, (25, 29), ".3m")


async def drain() -> None:
    """A node with 100 of 1,000 tasks is drained (10 agents): until all run elsewhere and it is empty."""
    async with _swarm.Swarm.opened(managers=1, agents=10) as swarm:
        await swarm.create("web", 1000)
        await swarm.running("web", 1000)
        nodes = await swarm.call("GET", "/nodes")
        emptied = next(node for node in nodes if node["Description"]["Hostname"] == "agent-3")
        meter = Meter(swarm)
        await swarm.drain(emptied)
        wanted = {"node": {emptied["ID"]: True}, "desired-state": {"running": True}}
        query = urllib.parse.urlencode({"filters": json.dumps(wanted)})

        async def left() -> bool:
            return not await swarm.call("GET", f"/tasks?{query}")

        await swarm.until(left)
        await swarm.running("web", 1000)
        say("swarm.drain.100_s", meter.wall_s(), "s", swarmkit=(0.44, 0.66))
        await meter.costs("swarm.drain.100", agents=10, cpu=(0.27, 0.43))


async def creates() -> None:
    """Service creates, one replica (and none), one after the other and 16 at once, on 10 agents."""
    async with _swarm.Swarm.opened(managers=1, agents=10) as swarm:
        await _creates(swarm, "", (316, 503), (851, 1504), replicas=1)
        await _creates(swarm, ".empty", (623, 1125), (1028, 1382), replicas=0)


async def creates_3m() -> None:
    """The same on three managers."""
    async with _swarm.Swarm.opened(managers=3, agents=10) as swarm:
        await _creates(swarm, ".3m", (64, 124), (256, 318), replicas=1)
        await _creates(swarm, ".3m.empty", (206, 396), (187, 447), replicas=0)


async def _creates(swarm: _swarm.Swarm, suffix: str, one: Range, many: Range, *, replicas: int) -> None:
    before = await swarm.tasks_on_agents()
    for at_once, range_ in ((1, one), (16, many)):
        meter = Meter(swarm)
        prefix = f"s{suffix.replace('.', '-')}-{at_once}"
        names = [f"{prefix}-{number}" for number in range(100 if at_once == 1 else 320)]
        path = str(swarm.home.socket)
        shares = [names[start::at_once] for start in range(at_once)]
        times = await asyncio.gather(
            *(asyncio.to_thread(_create_all, path, share, replicas=replicas) for share in shares)
        )
        figure = f"swarm.creates_per_s{suffix}.{at_once}"
        say(figure, len(names) / meter.wall_s(), "/s", swarmkit=range_)
        say(f"{figure}.p50_ms", statistics.median(each for share in times for each in share) * 1e3, "ms")
        before += len(names) * replicas
        await swarm.on_agents(before)
        say(f"{figure}.cpu_ms_each", meter.manager_cpu_s() / len(names) * 1e3, "ms")
        await meter.costs(figure, agents=10)


def _create_all(path: str, names: list[str], *, replicas: int) -> list[float]:
    """Creates services over one connection; how long each took."""
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(path)
    times: list[float] = []
    for name in names:
        began = time.monotonic()
        body = json.dumps(_swarm.spec(name, replicas=replicas))
        connection.request("POST", "/v1.41/services/create", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != http.client.CREATED:
            raise RuntimeError(f"{name}: {answer.status} {said!r}")
        times.append(time.monotonic() - began)
    connection.close()
    return times


# ------------------------------------------------------------------ what goes wrong


async def lost_agent() -> None:
    """An agent is killed: until all of its tasks run elsewhere (10 agents, 100 tasks, heartbeats every 5 s)."""
    async with _swarm.Swarm.opened(managers=1, agents=9) as swarm:
        (alone,) = await swarm.join(1)
        await swarm.create("web", 100)
        await swarm.running("web", 100)
        held = (await alone.ask("count"))["tasks"]
        meter = Meter(swarm)
        await swarm.lose(alone)
        await swarm.on_agents(100)
        await swarm.running("web", 100)
        say("swarm.lost_agent_s", meter.wall_s(), "s", swarmkit=(15.9, 17.9))
        say("swarm.lost_agent_tasks", held, "tasks")
        await meter.costs("swarm.lost_agent", agents=9)


async def storm() -> None:
    """The leader of three managers is killed: until all 1,000 agents are registered with the next one."""
    async with _swarm.Swarm.opened(managers=3, agents=STORM_AGENTS) as swarm:
        await swarm.create("web", STORM_AGENTS)
        await swarm.running("web", STORM_AGENTS)
        name, addr = await swarm.leader()
        swarm.home = next(node for node in swarm.cluster.nodes if node.name != name)
        began = time.monotonic()
        await swarm.cluster.kill(name)
        meter = Meter(swarm)
        await swarm.call("POST", "/services/create", _swarm.spec("after", replicas=0))
        say("swarm.storm.1000_first_write_s", time.monotonic() - began, "s")
        await swarm.ready(without=addr)
        say("swarm.storm.1000_registered_s", time.monotonic() - began, "s")
        say("swarm.storm.1000_cpu_s", meter.manager_cpu_s(), "s")
        await swarm.running("web", STORM_AGENTS)
        nodes = await swarm.call("GET", "/nodes")
        down = sum(node["Status"]["State"] == "down" for node in nodes)
        say("swarm.storm.1000_agents_down", down, "nodes")


async def join() -> None:
    """1,000 machines join at once: until all have a session."""
    async with _swarm.Swarm.opened(managers=1) as swarm:
        meter = Meter(swarm)
        await swarm.join(1000)
        say("swarm.join.1000_s", meter.wall_s(), "s")
        say("swarm.join.1000_cpu_s", meter.manager_cpu_s(), "s")


async def idle() -> None:
    """5,000 agents and 50,000 tasks that just run: what the leader uses."""
    async with _swarm.Swarm.opened(managers=1) as swarm:
        await _idle(swarm, agents=5000, tasks=50_000)


async def idle_small() -> None:
    """The same with 1,000 agents and 10,000 tasks."""
    async with _swarm.Swarm.opened(managers=1) as swarm:
        await _idle(swarm, agents=1000, tasks=10_000)


async def idle_light() -> None:
    """The same with 5,000 agents and 5,000 tasks, for machines on which 50,000 take too long to start."""
    async with _swarm.Swarm.opened(managers=1) as swarm:
        await _idle(swarm, agents=5000, tasks=5000)


async def _idle(swarm: _swarm.Swarm, *, agents: int, tasks: int) -> None:
    name = f"swarm.idle.{agents}x{tasks}"
    meter = Meter(swarm)
    await swarm.join(agents)
    say(f"{name}_joined_s", meter.wall_s(), "s")
    services = tasks // TASKS_PER_SERVICE
    for number in range(services):
        await swarm.create(f"web-{number}", TASKS_PER_SERVICE)
        await swarm.on_agents(TASKS_PER_SERVICE * (number + 1))  # one after the other: this is not about the creating
    say(f"{name}_running_s", meter.wall_s(), "s")
    await asyncio.sleep(IDLE_SETTLE_S)
    meter = Meter(swarm)
    await asyncio.sleep(IDLE_S)
    wall_s = meter.wall_s()
    say(f"{name}_cpu_pct", meter.manager_cpu_s() / wall_s * 100, "%")
    say(f"{name}_agent_cpu_ms_per_s", meter.agents_cpu_s() / wall_s / agents * 1e3, "ms/s")
    say(f"{name}_memory_mb", sum(each.peak_mb for each in swarm.managers().values()), "MB")
    say(f"{name}_agent_memory_mb", sum(each.peak_mb for each in swarm.agents().values()) / agents, "MB")
    for number in range(services):
        await swarm.running(f"web-{number}", TASKS_PER_SERVICE)
    down = sum(node["Status"]["State"] != "ready" for node in await swarm.call("GET", "/nodes"))
    say(f"{name}_not_ready", down, "nodes")


PARTS: dict[str, Callable[[], Awaitable[None]]] = {
    "run-100": run_100,
    "run-100-3m": run_100_3m,
    "run-1000": run_1000,
    "run-1000-3m": run_1000_3m,
    "update": update,
    "update-3m": update_3m,
    "drain": drain,
    "creates": creates,
    "creates-3m": creates_3m,
    "lost-agent": lost_agent,
    "storm": storm,
    "join": join,
    "idle-1000": idle_small,
    "idle-5000-light": idle_light,
    "idle-5000": idle,
}
VARIANTS = ("idle-1000", "idle-5000-light")  # only when they are asked for


async def _all(parts: list[str]) -> None:
    for part in parts:
        async with asyncio.timeout(PART_TIMEOUT_S):
            await PARTS[part]()


def main(arguments: list[str]) -> None:
    """`make bench BENCH=swarm`, or with parts: `make bench BENCH="swarm drain update"`."""
    unknown = [each for each in arguments if each not in PARTS]
    if unknown:
        raise SystemExit(f"no such part: {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    asyncio.run(_all(arguments or [part for part in PARTS if part not in VARIANTS]))
