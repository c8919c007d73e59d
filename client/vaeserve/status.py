"""The one table between our errors and gRPC's status codes."""

from grpc import StatusCode

from vaeserve.errors import (
    BundleError,
    DeadlineError,
    InternalError,
    InvalidInputError,
    NotFoundError,
    OutOfRangeError,
    OverloadedError,
    ServerError,
    ServiceError,
    UnavailableError,
    VaeserveError,
)

CODES: dict[type[VaeserveError], StatusCode] = {
    InvalidInputError: StatusCode.INVALID_ARGUMENT,
    NotFoundError: StatusCode.NOT_FOUND,
    OutOfRangeError: StatusCode.OUT_OF_RANGE,
    BundleError: StatusCode.FAILED_PRECONDITION,
    OverloadedError: StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: StatusCode.UNAVAILABLE,
    DeadlineError: StatusCode.DEADLINE_EXCEEDED,
    InternalError: StatusCode.INTERNAL,
}

# Codes of what stands before our RPCs: the service's check of credentials, a proxy, or gRPC as a service stops.
_FOREIGN: dict[StatusCode, type[VaeserveError]] = {
    StatusCode.UNAUTHENTICATED: ServerError,
    StatusCode.PERMISSION_DENIED: ServerError,
    StatusCode.UNIMPLEMENTED: ServerError,
    StatusCode.CANCELLED: UnavailableError,
}

_ERRORS = {code: error for error, code in CODES.items()} | _FOREIGN


def code_of(error: VaeserveError) -> StatusCode:
    """Return the code that tells a caller of `error`; INTERNAL for one that isn't about the call."""
    return CODES.get(type(error), StatusCode.INTERNAL)


def error_of(code: StatusCode, message: str) -> VaeserveError:
    """Return our error for a call that ended with `code`."""
    if code is StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:  # gRPC's own words for a message's size
        return OutOfRangeError(message)
    return _ERRORS.get(code, ServiceError)(message)
