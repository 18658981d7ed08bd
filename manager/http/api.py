"""From a request to a response: routing, who answers it, and errors as users see them. Framework-free.

Reads are linearizable: the leader proves its lead before it answers, everybody else sends the request on to the leader.
Requests wait a few seconds for a leader. What changes something is only sent again when it was certainly not done.
"""

import asyncio

import prometheus_client
import structlog

import skep
from manager.control import control
from manager.http import (
    absent,
    backend,
    draining,
    entering,
    forward,
    logs,
    messages,
    nodes,
    payloads,
    planning,
    rebalancing,
    routing,
    services,
    stale,
    stats,
    swarm,
    system,
    tasks,
    tunnel,
)
from manager.store import commit
from skep import errors

log = structlog.get_logger(__name__)

LEADER_PATIENCE_S = 10.0  # an election takes about a second, two when the first one splits
LEADER_PAUSE_S = 0.05  # between two looks whether there is a leader
NO_LEADER = (
    "The swarm does not have a leader. It's possible that too few managers are online. "
    "Make sure more than half of the managers are online."
)
_ROUTES = (
    *system.ROUTES, *swarm.ROUTES, *services.ROUTES, *tasks.ROUTES, *nodes.ROUTES, *payloads.ROUTES,
    *logs.ROUTES, *entering.ROUTES, *stats.ROUTES, *planning.ROUTES, *draining.ROUTES,
    *rebalancing.ROUTES, *absent.ROUTES,
)  # fmt: skip
_COMMON_HEADERS = {
    "Api-Version": f"{messages.API_VERSION[0]}.{messages.API_VERSION[1]}",
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Server": f"skep/{skep.__version__} (linux)",
}


class Api:
    """Answers requests for one machine. `handle` never raises but for cancellation."""

    def __init__(
        self,
        machine: backend.Machine,
        *,
        registry: prometheus_client.CollectorRegistry | None = None,
        leader_patience_s: float = LEADER_PATIENCE_S,
    ) -> None:
        registry = registry if registry is not None else prometheus_client.CollectorRegistry()
        self._context = messages.Context(machine=machine, registry=registry)
        self._patience_s = leader_patience_s
        self._table = routing.Table(_ROUTES)

    async def handle(self, request: messages.Request) -> messages.Response:
        """The answer to one request."""
        try:
            response = await self._answer(request)
        except errors.SkepError as error:
            response = messages.error_response(_status_of(error), error.message)
            if isinstance(error, commit.NotProposed):
                response.headers[forward.NOT_DONE] = "1"
        except Exception as error:
            log.exception("http.failed", method=request.method, path=request.target.partition("?")[0])
            response = messages.error_response(500, f"internal error ({type(error).__name__}); the log says more")
        response.headers = _COMMON_HEADERS | response.headers
        return response

    def transfer(self, method: str, target: str) -> routing.Transfer:
        """How this request wants to be read. Never raises."""
        try:
            found = self._table.find(method, routing.strip_version(messages.split_target(target)[0]))
        except errors.Invalid:
            return routing.Transfer.WHOLE
        return found[0].transfer if found is not None else routing.Transfer.WHOLE

    async def _answer(self, request: messages.Request) -> messages.Response:
        if request.method == "OPTIONS":
            return messages.empty_response()
        path, query = messages.split_target(request.target)
        found = self._table.find(request.method, routing.strip_version(path))
        if found is None:
            return messages.error_response(404, "page not found")
        route, params = found
        call = messages.Call(context=self._context, request=request, params=params, query=query)
        if route.scope is routing.Scope.LOCAL:
            return await route.handler(call)
        if stale.wanted(call):
            return await stale.answer(route, call)
        return await self._from_leader(route, call)

    async def _from_leader(self, route: routing.Route, call: messages.Call) -> messages.Response:
        """Repeats what may be repeated until there is an answer or patience ends."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (0.0 if call.request.forwarded else self._patience_s)
        while True:
            if call.request.forwarded and self._context.machine.manager is None:
                raise commit.NotProposed("this manager is stopping")  # whoever asks looks for the leader anew
            manager = self._context.manager
            try:
                return await self._once(route, call, manager)
            except errors.Unavailable as problem:
                if route.scope is routing.Scope.WRITE and not isinstance(problem, commit.NotProposed):
                    raise control.OutcomeUnknown(f"{control.UNKNOWN}: {problem.message}") from problem
                if loop.time() >= deadline:
                    if not manager.leader_id:
                        raise commit.NotProposed(NO_LEADER) from problem
                    raise
            await asyncio.sleep(LEADER_PAUSE_S)

    async def _once(self, route: routing.Route, call: messages.Call, manager: backend.Manager) -> messages.Response:
        if manager.committer.is_leader:
            if route.scope is routing.Scope.READ:
                await manager.committer.barrier()
            return await route.handler(call)
        if call.request.forwarded:
            raise commit.NotProposed("this manager does not lead")
        if not manager.leader_id or manager.leader_id == manager.node_id:
            raise commit.NotProposed(NO_LEADER)
        if route.transfer is not routing.Transfer.WHOLE:
            encoded = forward.encode(call.request)
            return await tunnel.response_through(manager.tunnel(), encoded, call.request.incoming)
        return await forward.response_from(manager.forward(forward.encode(call.request)))


def _status_of(error: errors.SkepError) -> int:
    if isinstance(error, control.OutcomeUnknown):
        return 500  # never 503: clients take that for "not done" and repeat
    for kind in type(error).__mro__:
        if kind in errors.HTTP_STATUS:
            return errors.HTTP_STATUS[kind]
    return 500
