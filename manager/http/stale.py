"""Reads that need no quorum: what this manager's own store says, marked as such.

For looking around when the cluster has no leader. Such an answer may be behind what was acknowledged to somebody else,
so it is given on request only (`?stale=1`, or the header Skep-Stale) and says how old it may be.
"""

from manager.http import messages, routing
from skep import errors

MARK = "Skep-Stale"  # header of requests that accept an old answer, and of such answers
INDEX = "Skep-Index"  # the last change that the answer knows
AGE = "Skep-Age"  # seconds since this manager knew that it was current, or "unknown"


def wanted(call: messages.Call) -> bool:
    """Whether the request accepts an answer that may be old."""
    return call.flag("stale") or call.request.headers.get(MARK.lower(), "").lower() in ("1", "true")


async def answer(route: routing.Route, call: messages.Call) -> messages.Response:
    """Answers from this manager's store. Raises Invalid for what only the leader can do."""
    if route.scope is not routing.Scope.READ or route.path.endswith("/logs"):
        what = "the output of tasks" if route.path.endswith("/logs") else "a change"
        raise errors.Invalid(f"{what} takes the leader: --stale (?stale=1) only reads this manager's own state")
    manager = call.context.manager
    index, behind_s = manager.store.index, manager.behind_s
    response = await route.handler(call)
    age = "unknown" if behind_s is None else f"{behind_s:.1f}"
    response.headers |= {MARK: "true", INDEX: str(index), AGE: age}
    return response
