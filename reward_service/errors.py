"""Errors of the service; constructors take one message. Those that answer a request carry its HTTP status."""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """A request that cannot be answered; becomes `{"error": name, "detail": message}` with the class's status."""

    status: ClassVar[int] = 500
    error: ClassVar[str] = "internal_error"


class InvalidRequestError(ServiceError):
    """The body is not JSON, or not what the schema asks for."""

    status = 422
    error = "invalid_request"


class UnknownRewardError(ServiceError):
    """A reward of that name is not served here."""

    status = 422
    error = "unknown_reward"


class InvalidParamsError(ServiceError):
    """The parameters of a reward do not fit its schema."""

    status = 422
    error = "invalid_params"


class LimitExceededError(ServiceError):
    """Too many items, or a text that is too long."""

    status = 422
    error = "limit_exceeded"


class BodyTooLargeError(ServiceError):
    """The request body is larger than the service reads."""

    status = 413
    error = "body_too_large"


class BodyTimeoutError(ServiceError):
    """The request body did not arrive in time."""

    status = 408
    error = "body_timeout"


class NotReadyError(ServiceError):
    """The scoring threads do not answer in time."""

    status = 503
    error = "not_ready"


class ServiceStartError(Exception):
    """The service cannot start: a bad address, a port in use, a child process that died."""
