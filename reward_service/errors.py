"""Errors of the service; constructors take one message. Those that answer a request carry its HTTP status."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError

_MAX_FINDING_CHARS = 200


class ServiceError(Exception):
    """A request that cannot be answered; becomes `{"error": name, "detail": message}` with the class's status."""

    status: ClassVar[int] = 500
    error: ClassVar[str] = "internal_error"
    headers: Mapping[str, str] = MappingProxyType({})


class InvalidRequestError(ServiceError):
    """The body is not JSON, or not what the schema asks for."""

    status = 422
    error = "invalid_request"


class ContradictionError(ServiceError):
    """The body is what the schema asks for, but its parts do not fit one another."""

    status = 409
    error = "contradiction"


class UnknownRewardError(ServiceError):
    """A reward of that name is not served here."""

    status = 404
    error = "unknown_reward"


class InvalidParamsError(ServiceError):
    """The parameters of a reward do not fit its schema."""

    status = 422
    error = "invalid_params"


class LimitExceededError(ServiceError):
    """Too many items, or a text that is too long."""

    status = 422
    error = "limit_exceeded"


class ContentEncodingError(ServiceError):
    """The request body is compressed."""

    status = 415
    error = "unsupported_encoding"


class BodyTooLargeError(ServiceError):
    """The request body is larger than the service reads."""

    status = 413
    error = "body_too_large"


class BodyTimeoutError(ServiceError):
    """The request body did not arrive in time."""

    status = 408
    error = "body_timeout"


class QueueFullError(ServiceError):
    """More is waiting than the service takes."""

    status = 429
    error = "queue_full"
    headers = MappingProxyType({"retry-after": "1"})


class UnknownProfileError(ServiceError):
    """There is no profile of that name."""

    status = 404
    error = "unknown_profile"


class NoAuditError(ServiceError):
    """The service records nothing."""

    status = 404
    error = "no_audit"


class UnscorableError(ServiceError):
    """An item has no score now, and the protocol has no way to say so."""

    status = 503
    error = "unscorable"


class InvalidLabelError(ServiceError):
    """A label is not what the profile's rewards compare with, and the protocol has no way to say so."""

    status = 409
    error = "invalid_label"


class ShuttingDownError(ServiceError):
    """The service ends what it has accepted, and takes nothing more."""

    status = 503
    error = "shutting_down"


class ClientGoneError(ServiceError):
    """Whoever asked has hung up; nobody reads this."""

    status = 499
    error = "client_gone"


class NotReadyError(ServiceError):
    """No worker can score at the moment."""

    status = 503
    error = "not_ready"


class AuditUnavailableError(ServiceError):
    """Decisions cannot be recorded now: the audit log's writer has failed or is behind."""

    status = 503
    error = "audit_unavailable"


class KeysUnavailableError(ServiceError):
    """The file of API keys cannot be read, so that nobody can be let in."""

    status = 503
    error = "keys_unavailable"


class UnauthorizedError(ServiceError):
    """No valid API key came with the request."""

    status = 401
    error = "unauthorized"
    headers = MappingProxyType({"www-authenticate": 'Bearer realm="rlvr", Basic realm="rlvr"'})
    """Basic is named as clients that take credentials in the URL may wait to be asked for them."""


class RateLimitedError(ServiceError):
    """An API key asks for more items than it may."""

    status = 429
    error = "rate_limited"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = {"retry-after": str(max(1, math.ceil(retry_after_s)))}


class OperatorError(Exception):
    """Something that whoever runs the service has to mend; the message is one sentence with the remedy."""


class UsageError(OperatorError):
    """A setting, or an argument of a command, is not what it may be."""


class ServiceStartError(OperatorError):
    """The service cannot start: a bad address, a port in use, a child process that died."""


class KeysError(OperatorError):
    """The file of API keys cannot be read or changed."""


class SettingsError(UsageError, ServiceStartError):
    """A setting of the service is none, or not what it may be."""


class KeyUsageError(UsageError, KeysError):
    """A key's name, limits or time are not what they may be."""


class AuditError(OperatorError):
    """The audit log cannot be opened, read or written."""


def describe_validation(error: ValidationError, *, limit: int = 3) -> str:
    """The first few findings of a validation on one line, without the input, which may be large or private."""
    findings = error.errors(include_url=False, include_context=False, include_input=False)
    texts = [
        f"{'.'.join(map(str, finding['loc'])) or 'body'}: {finding['msg']}"[:_MAX_FINDING_CHARS] for finding in findings
    ]
    more = f" (and {len(texts) - limit} more)" if len(texts) > limit else ""
    return "; ".join(texts[:limit]) + more
