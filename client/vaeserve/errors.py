"""Every error that vaeserve raises on purpose, drawn as one tree.

    VaeserveError
    ├── CallerError              the caller's fault: mend the call
    │   ├── InvalidInputError    a value that the model or the call can't take
    │   ├── NotFoundError        no such model or version
    │   └── OutOfRangeError      a number past what the model or the service allows
    ├── OperatorError            the operator's fault: mend a file, a setting or the installation
    │   ├── ConfigError          a setting that isn't known or can't be
    │   ├── DataError            a file of rows that can't be read or learned from
    │   ├── RunError             a training run that can't be used
    │   ├── BundleError          a bundle that is corrupt, truncated or of another format
    │   ├── ServerError          a server that is none of ours, or doesn't take these credentials
    │   └── MissingExtraError    a component that isn't installed
    ├── RefusedError             the verdict is no: an export or a check that didn't pass
    └── ServiceError             the service's fault: nothing to mend, perhaps to retry
        ├── OverloadedError      the queue is full; retry after a while
        ├── UnavailableError     not there, starting or stopping; another replica may answer
        ├── DeadlineError        the time given for the call has passed
        └── InternalError        a defect of ours

A message names the thing, the value and what was expected. Errors know no
transport: `vaeserve.status` maps them to gRPC's codes and back.
"""


def first_line(error: BaseException) -> str:
    """Return what a library's error says, without its further lines."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class VaeserveError(Exception):
    """The root of the tree."""


class CallerError(VaeserveError):
    """The caller's fault: mend the call."""


class InvalidInputError(CallerError):
    """A value that the model or the call can't take."""


class NotFoundError(CallerError):
    """No such model or version."""


class OutOfRangeError(CallerError):
    """A number past what the model or the service allows."""


class OperatorError(VaeserveError):
    """The operator's fault: mend a file, a setting or the installation."""


class ConfigError(OperatorError):
    """A setting that isn't known or can't be."""


class DataError(OperatorError):
    """A file of rows that can't be read or learned from."""


class RunError(OperatorError):
    """A training run that can't be used."""


class BundleError(OperatorError):
    """A bundle that is corrupt, truncated or of another format."""


class ServerError(OperatorError):
    """A server that is none of ours, or doesn't take these credentials."""


class MissingExtraError(OperatorError):
    """A component that isn't installed."""


class RefusedError(VaeserveError):
    """The verdict is no: an export or a check that didn't pass."""


class ServiceError(VaeserveError):
    """The service's fault: nothing to mend, perhaps to retry."""


class OverloadedError(ServiceError):
    """The queue is full; retry after a while."""


class UnavailableError(ServiceError):
    """Not there, starting or stopping; another replica may answer."""


class DeadlineError(ServiceError):
    """The time given for the call has passed."""


class InternalError(ServiceError):
    """A defect of ours."""
