"""skep's errors over gRPC: from a servicer to the wire, and from the wire back to the caller.

Owns the edge of every RPC. What is not one of skep's errors is logged here and answered as "internal error", so that
the text of an unexpected exception never travels.
"""

import contextlib
import types
from collections.abc import Iterator
from typing import Any
from urllib import parse

import grpc
import grpc.aio
import structlog

from skep import errors, race

log = structlog.get_logger(__name__)

DETAILS_BYTES_MAX = 6000  # the text travels percent-encoded in a header; peers limit all headers to 8 KiB
KIND_KEY = "skep-error"  # trailing metadata: the error's class, which also tells our answers from gRPC's own
INTERNAL = "internal error; the manager's log says more"
BROKEN = "Internal error from Core"  # what gRPC's asyncio half says of a call that broke off while it was written to

_CODE: dict[type[errors.SkepError], grpc.StatusCode] = {
    kind: grpc.StatusCode[name] for kind, name in errors.GRPC_CODE.items()
}
_BY_NAME: dict[str, type[errors.SkepError]] = {kind.__name__: kind for kind in _CODE}
_KIND: dict[grpc.StatusCode, type[errors.SkepError]] = {code: kind for kind, code in _CODE.items()} | {
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: errors.Denied,
    grpc.StatusCode.OUT_OF_RANGE: errors.Invalid,
}


def code_of(error: errors.SkepError) -> grpc.StatusCode:
    """The gRPC status for an error; a subclass without a code of its own has its parent's."""
    return _CODE[_known(error)]


class reported:  # noqa: N801  used as a context manager only
    """`async with reported(context):` around a servicer's body: an error inside ends the call.

    A SkepError with its own code and message, anything else as "internal error" and a line in the log.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if error is None or isinstance(error, grpc.aio.BaseError) or not isinstance(error, Exception):
            return  # nothing, an abort that is already under way, or a cancellation
        if isinstance(error, errors.SkepError):
            await self._context.abort(
                code_of(error), _fitting(error.message), trailing_metadata=((KIND_KEY, _known(error).__name__),)
            )
        log.error("rpc.failed", peer=self._context.peer(), error=type(error).__name__, exc_info=error)
        await self._context.abort(grpc.StatusCode.INTERNAL, INTERNAL, trailing_metadata=((KIND_KEY, "Bug"),))


@contextlib.contextmanager
def translated(target: str) -> Iterator[None]:
    """Wraps a client's call to `target` (an address, for people): gRPC's error becomes the SkepError it was."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, target=target) from None


def from_rpc(error: grpc.aio.AioRpcError, *, target: str) -> errors.SkepError:
    """The SkepError that the other side raised, or Unavailable naming `target` when it was not reached at all.

    Raises CancelledError when the calling task is being cancelled: gRPC loses a cancellation that meets the end of a
    call, and a loop that tries again after every error would never end.
    """
    race.heed_cancellation()
    code = error.code()
    details = error.details() or ""
    kind = _kind_of(error)
    if kind is not None:
        return kind(details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.Unavailable(f"{target} did not answer in time")
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.Unavailable(f"cannot reach {target}: {_reason(details)}")
    if code is grpc.StatusCode.CANCELLED:
        return errors.Unavailable(f"the call to {target} was cut off")
    if code is grpc.StatusCode.INTERNAL and details == BROKEN:
        return errors.Unavailable(f"cannot reach {target}: it closed the connection")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.Unimplemented(f"{target} does not offer this call: is that the right port?")
    return _KIND.get(code, errors.Bug)(details or f"{target} answered {code.name}")


def _known(error: errors.SkepError) -> type[errors.SkepError]:
    """The class of the tree that stands for the error: its own, or the parent that has a code."""
    return next((kind for kind in type(error).__mro__ if kind in _CODE), errors.Bug)


def _kind_of(error: grpc.aio.AioRpcError) -> type[errors.SkepError] | None:
    """The class that a skep servicer raised; None when the answer is gRPC's own."""
    for key, value in error.trailing_metadata():
        if key == KIND_KEY:
            return _BY_NAME.get(str(value))
    return None


def _fitting(text: str) -> str:
    """As much of the text as a header holds once it is percent-encoded."""
    room = DETAILS_BYTES_MAX
    for position, character in enumerate(text):
        room -= len(parse.quote(character, safe=" "))
        if room < 0:
            return text[:position]
    return text


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
    return details or "it does not answer"
