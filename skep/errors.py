"""The one tree of errors, ordered by who must act.

    SkepError
     ├── Invalid             the caller: the request itself is wrong
     ├── NotFound            the caller: no such object
     ├── Conflict            the caller: the object moved since it was read; read again and decide again
     │    └── AlreadyExists  the caller: the name is taken
     ├── FailedPrecondition  the caller: the request is fine, the state of the cluster forbids it
     ├── Unimplemented       nobody yet: skep does not do this
     ├── Denied              the operator: wrong or missing identity
     ├── Unavailable         time: no leader, no quorum, too much waiting; try again
     └── Bug                 us

`HTTP_STATUS` and `GRPC_CODE` are the only mapping of these to the wire. Messages name the object and the remedy, and
never hold a secret.
"""


class SkepError(Exception):
    """Base of everything skep raises on purpose."""

    @property
    def message(self) -> str:
        """The sentence shown to the user."""
        return str(self)


class Invalid(SkepError):
    """The request is wrong in itself."""


class NotFound(SkepError):
    """No object answers to that name or ID."""


class Conflict(SkepError):
    """The object has changed since the caller read it."""


class AlreadyExists(Conflict):
    """Another object holds that name or ID."""


class FailedPrecondition(SkepError):
    """Sound, but not in the state the cluster is in."""


class Unimplemented(SkepError):
    """A feature that skep does not have."""


class Denied(SkepError):
    """The caller's identity does not allow this."""


class Unavailable(SkepError):
    """Cannot be answered now; the same call may succeed later."""


class Bug(SkepError):
    """An invariant of skep's own was broken."""


HTTP_STATUS: dict[type[SkepError], int] = {
    Invalid: 400,
    NotFound: 404,
    AlreadyExists: 409,
    Conflict: 500,  # what Docker answers to "update out of sequence", and its clients know
    FailedPrecondition: 400,
    Unimplemented: 501,
    Denied: 403,
    Unavailable: 503,
    Bug: 500,
}

# Names of grpc.StatusCode members: this module must stay free of grpc.
GRPC_CODE: dict[type[SkepError], str] = {
    Invalid: "INVALID_ARGUMENT",
    NotFound: "NOT_FOUND",
    AlreadyExists: "ALREADY_EXISTS",
    Conflict: "ABORTED",
    FailedPrecondition: "FAILED_PRECONDITION",
    Unimplemented: "UNIMPLEMENTED",
    Denied: "PERMISSION_DENIED",
    Unavailable: "UNAVAILABLE",
    Bug: "INTERNAL",
}
