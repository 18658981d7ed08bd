"""skep's errors over gRPC: from a servicer to the wire, and from the wire back to the caller.

Owns the edge of every RPC. What is not one of skep's errors is logged here and answered as "internal error", so that
the text of an unexpected exception never travels.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import structlog

from skep import errors

log = structlog.get_logger(__name__)

DETAILS_CHARS_MAX = 2000  # the text travels percent-encoded in a header; peers limit those to 8 KiB

_CODE: dict[type[errors.SkepError], grpc.StatusCode] = {
    kind: grpc.StatusCode[name] for kind, name in errors.GRPC_CODE.items()
}
_KIND: dict[grpc.StatusCode, type[errors.SkepError]] = {code: kind for kind, code in _CODE.items()} | {
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: errors.Denied,
    grpc.StatusCode.OUT_OF_RANGE: errors.Invalid,
}


def code_of(error: errors.SkepError) -> grpc.StatusCode:
    """The gRPC status for an error; a subclass without a code of its own has its parent's."""
    for kind in type(error).__mro__:
        if kind in _CODE:
            return _CODE[kind]
    return grpc.StatusCode.INTERNAL


@contextlib.asynccontextmanager
async def reported(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Wraps the body of a servicer's method: a SkepError inside ends the call with its code and message."""
    try:
        yield
    except errors.SkepError as error:
        await context.abort(code_of(error), error.message[:DETAILS_CHARS_MAX])
    except grpc.aio.BaseError:
        raise  # an abort that is already under way
    except Exception as error:
        log.exception("rpc.failed", peer=context.peer(), error=type(error).__name__)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; the manager's log says more")


@contextlib.contextmanager
def translated(target: str) -> Iterator[None]:
    """Wraps a client's call to `target` (an address, for people): gRPC's error becomes the SkepError it was."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, target=target) from None


def from_rpc(error: grpc.aio.AioRpcError, *, target: str) -> errors.SkepError:
    """The SkepError that the other side raised, or Unavailable naming `target` when it was not reached at all."""
    code = error.code()
    details = error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.Unavailable(f"{target} did not answer in time")
    if code is grpc.StatusCode.UNAVAILABLE and _is_transport(details):
        return errors.Unavailable(f"cannot reach {target}: {_reason(details)}")
    if code is grpc.StatusCode.CANCELLED:
        return errors.Unavailable(f"the call to {target} was cut off")
    if code is grpc.StatusCode.UNIMPLEMENTED and details in ("", "Method not found!"):
        return errors.Unimplemented(f"{target} does not offer this call: is that the right port?")
    return _KIND.get(code, errors.Bug)(details or f"{target} answered {code.name}")


def _is_transport(details: str) -> bool:
    marks = ("failed to connect", "Socket closed", "handshake", "GOAWAY", "recvmsg", "sendmsg", "Broken pipe",
             "Connection reset", "connection attempt", "DNS resolution", "keepalive", "too_many_pings", "ipv4:",
             "ipv6:", "Endpoint closing", "Cancelling all calls")  # fmt: skip
    return any(mark in details for mark in marks)


def _reason(details: str) -> str:
    """The tail of gRPC's chain of causes, which is the part that says something."""
    for mark, plain in (
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not from this cluster, or has expired"),
        ("Hostname Verification", "its certificate does not carry the expected name"),
        ("Peer name", "its certificate does not carry the expected name"),
        ("Connection refused", "connection refused"),
        ("No route to host", "no route to host"),
        ("DNS resolution", "its name cannot be resolved"),
        ("imed out", "it did not answer in time"),
        ("imeout", "it did not answer in time"),
        ("Socket closed", "it closed the connection"),
    ):
        if mark in details:
            return plain
    return details[:DETAILS_CHARS_MAX]
